"""Balancers against the formulas they take from ModelOpt and from Kendall et al."""

import pytest
import torch

from collegium.training.objective import term_names
from collegium.training.terms.balancing import Balancer, GradientFree, UncertaintyWeighting


def floats(factors):
    return {name: float(factor) for name, factor in factors.items()}


def modelopt(original, logits, intermediate, scale=1.0):
    """`LogitsAndIntermediatesLossBalancer.forward` on numbers; `original` is None where it is skipped."""
    scaled = intermediate * (logits / intermediate)
    if original is None:
        return logits + scaled
    kd = (logits + scaled) * (original / (logits + scaled))
    return original + kd * scale


@pytest.mark.parametrize("original", [None, 3.0])
def test_gradient_free_is_modelopts(original):
    balancer = GradientFree(term_names(1))
    means = {"ce": original or 0.0, "kd": 0.5, "feature/0": 40.0}
    balancer.after_step(means)
    total = sum(floats(balancer.factors())[name] * value for name, value in means.items())
    assert total == pytest.approx(modelopt(original, 0.5, 40.0))


def test_gradient_free_makes_features_as_large_as_the_text_without_a_divergence():
    balancer = GradientFree(term_names(2))
    balancer.after_step({"ce": 2.0, "kd": 0.0, "feature/0": 8.0, "feature/1": 0.5})
    assert floats(balancer.factors()) == {"ce": 1.0, "kd": 1.0, "feature/0": 0.25, "feature/1": 4.0}


def test_a_term_that_is_0_keeps_its_factor():
    balancer = GradientFree(term_names(1))
    balancer.after_step({"ce": 0.0, "kd": 2.0, "feature/0": 1.0})
    balancer.after_step({"ce": 0.0, "kd": 2.0, "feature/0": 0.0})
    assert floats(balancer.factors())["feature/0"] == 2.0


def test_gradient_free_is_part_of_the_state():
    balancer = GradientFree(term_names(1))
    balancer.after_step({"ce": 1.0, "kd": 2.0, "feature/0": 5.0})
    other = GradientFree(term_names(1))
    other.load_state_dict(balancer.state_dict())
    assert floats(other.factors()) == floats(balancer.factors())


def test_uncertainty_has_the_gradient_of_the_paper():
    names = term_names(1)
    balancer = UncertaintyWeighting(names)
    with torch.no_grad():
        balancer.log_variances.copy_(torch.tensor([0.3, -0.2, 1.0]))
    terms = {"kd": torch.tensor(0.7), "ce": torch.tensor(2.0), "feature/0": torch.tensor(9.0)}
    leaves = {name: term.clone().requires_grad_() for name, term in terms.items()}
    factors = balancer.factors()
    loss = sum(factors[name] * leaf for name, leaf in leaves.items()) + balancer.penalty(leaves, torch.tensor(1.0))
    loss.backward()

    s = balancer.log_variances.detach().clone().requires_grad_()
    own = {name: term.clone().requires_grad_() for name, term in terms.items()}
    expected = sum((-s[i]).exp() * own[name] + 0.5 * s[i] for i, name in enumerate(names))
    expected.backward()
    torch.testing.assert_close(loss.detach(), expected.detach())
    torch.testing.assert_close(balancer.log_variances.grad, s.grad)
    for name in names:
        torch.testing.assert_close(leaves[name].grad, own[name].grad)


def test_uncertainty_settles_where_the_variance_is_the_loss():
    """exp(-s) L + s / 2 is least at s = log 2 L."""
    balancer = UncertaintyWeighting(("kd", "ce"))
    terms = {"kd": torch.tensor(0.25), "ce": torch.tensor(4.0)}
    optimizer = torch.optim.SGD(balancer.parameters(), lr=0.5)
    for _ in range(200):
        optimizer.zero_grad()
        balancer.penalty(terms, torch.tensor(1.0)).backward()
        optimizer.step()
    torch.testing.assert_close(
        balancer.log_variances.detach(), (2 * torch.tensor([0.25, 4.0])).log(), atol=1e-4, rtol=0
    )


def test_shares_of_a_step_add_up():
    balancer = UncertaintyWeighting(("kd", "ce"))
    terms = {"kd": torch.tensor(0.5), "ce": torch.tensor(2.0)}
    half = {name: term / 2 for name, term in terms.items()}
    whole = torch.autograd.grad(balancer.penalty(terms, torch.tensor(1.0)), balancer.log_variances)[0]
    parts = sum(
        torch.autograd.grad(balancer.penalty(half, torch.tensor(0.5)), balancer.log_variances)[0] for _ in range(2)
    )
    torch.testing.assert_close(parts, whole)


def test_the_base_changes_nothing():
    assert Balancer(("kd", "ce")).factors() == {"kd": 1.0, "ce": 1.0}
    assert not Balancer(("kd",)).watches

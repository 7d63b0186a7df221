"""Dynamic KD's rules against a few lines that follow the official code."""

import math
from functools import partial

import pytest
import torch
from torch.nn.functional import linear

from collegium.fused.uncertainty import adoption_weights, selected_positions, student_figures


N, V, D = 11, 7, 4


@pytest.fixture
def figures_and_logits():
    torch.manual_seed(0)
    hidden, weight = torch.randn(N, D, dtype=torch.float64), torch.randn(V, D, dtype=torch.float64) * 2
    labels = torch.randint(V, (N,))
    figures = student_figures(hidden, partial(linear, weight=weight), labels, chunk_size=4)
    return figures, hidden @ weight.T, labels


def test_figures_are_those_of_whole_logits(figures_and_logits):
    figures, logits, labels = figures_and_logits
    probs = logits.softmax(-1)
    entropy = -(probs * probs.log()).sum(-1)
    average = torch.full((V,), 1 / V, dtype=torch.float64)
    expected = -entropy / (average * average.log()).sum()
    torch.testing.assert_close(figures.uncertainty, expected, rtol=1e-12, atol=1e-14)
    top = probs.sort(-1, descending=True).values
    torch.testing.assert_close(figures.confidence, top[:, 0], rtol=1e-12, atol=0)
    torch.testing.assert_close(figures.margin, top[:, 0] - top[:, 1], rtol=1e-10, atol=1e-14)
    nll = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(figures.nll, nll, rtol=1e-12, atol=0)


def test_the_uncertain_half_follows_the_small_teacher(figures_and_logits):
    figures, logits, _ = figures_and_logits
    probs = logits.softmax(-1)
    order = (-(probs * probs.log()).sum(-1)).argsort(descending=True)
    weights = adoption_weights(figures.uncertainty, "hard")
    small, large = set(order[: N // 2].tolist()), set(order[N // 2 :].tolist())
    assert set(weights[:, 0].nonzero().flatten().tolist()) == small
    assert set(weights[:, 1].nonzero().flatten().tolist()) == large


def test_soft_adoption_is_by_mean_or_by_position(figures_and_logits):
    u = figures_and_logits[0].uncertainty
    soft, instance = adoption_weights(u, "soft"), adoption_weights(u, "instance")
    torch.testing.assert_close(soft, torch.stack([u.mean(), 1 - u.mean()]).expand(N, 2))
    torch.testing.assert_close(instance, torch.stack([u, 1 - u], -1))


@pytest.mark.parametrize("selection", ["entropy", "confidence", "margin", "label"])
@pytest.mark.parametrize("share", [0.3, 0.5, 1.0])
def test_selection_takes_the_least_sure(figures_and_logits, selection, share):
    figures, logits, labels = figures_and_logits
    probs = logits.softmax(-1)
    top = probs.sort(-1, descending=True).values
    doubt = {
        "entropy": -(probs * probs.log()).sum(-1),
        "confidence": -top[:, 0],
        "margin": top[:, 1] - top[:, 0],
        "label": -probs.gather(-1, labels[:, None]).squeeze(-1),
    }[selection]
    expected = set(doubt.argsort(descending=True)[: int(N * share)].tolist())
    assert set(selected_positions(figures, selection, share).nonzero().flatten().tolist()) == expected


def test_a_share_of_nothing_is_refused(figures_and_logits):
    with pytest.raises(ValueError, match="selected share is 0"):
        selected_positions(figures_and_logits[0], "entropy", 0.0)


def test_uncertainty_lies_between_0_and_1():
    head = partial(linear, weight=torch.eye(V))
    sure, unsure = torch.zeros(2, V)
    sure[0] = 1e4
    found = student_figures(torch.stack([sure, unsure]), head, torch.tensor([0, 1]), chunk_size=2)
    assert found.uncertainty.tolist() == pytest.approx([0.0, 1.0])
    assert found.nll.tolist() == pytest.approx([0.0, math.log(V)])

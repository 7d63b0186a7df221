"""A router learns which teacher is right where, and bends no student."""

import pytest
import torch

from collegium.training.terms.routing import Router, router_loss


def test_loss_is_the_cross_entropy_to_softmax_of_losses():
    torch.manual_seed(0)
    scores = torch.randn(5, 3, dtype=torch.float64)
    nll = torch.rand(5, 3, dtype=torch.float64)
    expected = sum(
        -(torch.softmax(-nll[i] / 0.5, -1) * torch.log_softmax(scores[i], -1)).sum().item() for i in range(5)
    )
    found = router_loss(scores, nll, torch.ones(5, 3, dtype=torch.bool), tau=0.5)
    assert float(found) == pytest.approx(expected, rel=1e-12)
    scores.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: router_loss(s, nll, nll > 0.2, tau=0.5), scores)


def test_invalid_teachers_are_left_out():
    scores, nll = torch.tensor([[0.0, 1.0, 5.0]]), torch.tensor([[1.0, 2.0, float("nan")]])
    valid = torch.tensor([[True, True, False]])
    two = router_loss(scores[:, :2], nll[:, :2], valid[:, :2], tau=1.0)
    torch.testing.assert_close(router_loss(scores, nll.nan_to_num(9.0), valid, tau=1.0), two)
    nobody = router_loss(scores, nll.nan_to_num(9.0), torch.zeros_like(valid), tau=1.0)
    assert float(nobody) == 0.0


def test_it_starts_uniform_and_learns_who_is_right():
    torch.manual_seed(0)
    router = Router(32, 2, tau=0.2)
    states = torch.randn(64, 32)
    better = states[:, 0] > 0
    nll = torch.stack([torch.where(better, 0.1, 2.0), torch.where(better, 2.0, 0.1)], -1)
    assert torch.equal(router(states).softmax(-1), torch.full((64, 2), 0.5))
    optimizer = torch.optim.Adam(router.parameters(), lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        (router.loss(router(states), nll, torch.ones(64, 2, dtype=torch.bool)) / 64).backward()
        optimizer.step()
    assert ((router(states)[:, 0] > router(states)[:, 1]) == better).float().mean() > 0.95


def test_the_student_gets_no_gradient_from_it():
    router = Router(4, 2)
    states = torch.randn(3, 4, requires_grad=True)
    router.loss(router(states), torch.rand(3, 2), torch.ones(3, 2, dtype=torch.bool)).backward()
    assert states.grad is None and float(router.scores.weight.grad.abs().sum()) > 0

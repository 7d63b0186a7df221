"""Schedules against the papers' code on plain floats."""

import math

import pytest
import torch

from collegium.losses.divergence_schedules import TaidState, on_policy_weight, taid_update


def taid_shares(losses, start=0.4, end=1.0, alpha=5e-4, beta=0.99):
    """`TAID.update_t` on floats."""
    t, previous, momentum, shares = start, math.inf, 0.0, []
    for step, loss in enumerate(losses):
        if math.isinf(previous):
            previous = loss
        else:
            momentum = beta * momentum + (1 - beta) * (previous - loss) / (previous + 1e-15)
            line = start + (end - start) * step / len(losses)
            t = min(end, max(line, t + alpha / (1 + math.exp(-momentum)) * (1 - t)))
            previous = loss
        shares.append(t)
    return shares


@pytest.mark.parametrize("alpha", [5e-4, 0.3])
def test_taid_follows_the_paper_step_by_step(alpha):
    torch.manual_seed(0)
    losses = (3.0 + torch.randn(40, dtype=torch.float64).abs()).tolist()
    state = TaidState(*(value.double() for value in TaidState.initial(0.4)))
    found = []
    for step, loss in enumerate(losses):
        loss = torch.tensor(loss, dtype=torch.float64)
        state = taid_update(state, loss, step / len(losses), alpha=alpha)
        found.append(state.t.item())
    expected = taid_shares(losses, start=float(torch.tensor(0.4)), alpha=alpha)
    assert found == pytest.approx(expected, abs=1e-7)
    assert found == sorted(found) and found[-1] <= 1.0


def test_taid_ends_at_the_end():
    state = TaidState(torch.tensor(0.4), torch.tensor(2.0), torch.tensor(0.0))
    assert taid_update(state, torch.tensor(1.0), 1.0, end=0.8).t.item() == pytest.approx(0.8)


def test_weight_of_own_text_rises_in_the_first_half():
    assert [on_policy_weight(share) for share in (0.0, 0.25, 0.5, 1.0)] == [1.0, 1.25, 1.5, 1.5]

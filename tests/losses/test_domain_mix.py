"""Proportions of domains against the paper's formulas on floats."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from collegium.losses.domain_mix import discrepancy, initial_proportions, next_proportions


perplexities = st.lists(st.tuples(st.floats(1.0, 100.0), st.floats(1.0, 100.0)), min_size=1, max_size=6)


def tensors(pairs):
    return torch.tensor(pairs, dtype=torch.float64).unbind(-1)


@given(pairs=perplexities, alpha=st.floats(0.0, 1.0))
def test_follows_the_paper_with_the_ratio_cut_off(pairs, alpha):
    student, target = tensors(pairs)
    weights = [math.exp(min(s / t, 5.0)) for s, t in pairs]
    first = [w / sum(weights) for w in weights]
    found = initial_proportions(student, target)
    torch.testing.assert_close(found, torch.tensor(first, dtype=torch.float64), rtol=1e-10, atol=1e-12)
    psi = [r * w for r, w in zip(first, weights, strict=True)]
    second = [alpha * x / sum(psi) + (1 - alpha) / len(psi) for x in psi]
    found = next_proportions(found, student, target, alpha)
    torch.testing.assert_close(found, torch.tensor(second, dtype=torch.float64), rtol=1e-10, atol=1e-12)
    assert found.sum().item() == pytest.approx(1.0)


def test_more_text_where_the_student_lags():
    student, target = tensors([(20.0, 10.0), (12.0, 10.0), (10.0, 10.0)])
    shares = initial_proportions(student, target)
    assert shares[0] > shares[1] > shares[2]
    for _ in range(50):
        shares = next_proportions(shares, student, target)
    assert shares[0] > shares[1] > shares[2] > 0.16  # half is spread evenly


def test_a_hopeless_student_is_cut_off():
    inf, nan = math.inf, math.nan
    student = torch.tensor([inf, 1e9, 5.0, nan], dtype=torch.float64)
    assert discrepancy(student, torch.ones(4, dtype=torch.float64)).tolist() == [5.0] * 4


def test_alpha_has_bounds():
    ones = torch.ones(2)
    with pytest.raises(ValueError, match=r"alpha is 1.5; it must lie in \[0, 1\]"):
        next_proportions(ones / 2, ones, ones, alpha=1.5)

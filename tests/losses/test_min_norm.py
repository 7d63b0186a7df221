"""The shortest combination of gradients against brute force over what is held at a bound."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from collegium.losses.min_norm import MinNormWeighting, gradient_products, min_norm_weights
from collegium.signals.contracts import Positions


seeds = st.integers(0, 2**32 - 1)


def brute_force(gram, cap):
    """The best feasible point with every choice of weights at 0, at the cap and between."""
    size, best, where = len(gram), torch.inf, None
    for choice in itertools.product((0, 1, 2), repeat=size):
        free = [i for i in range(size) if choice[i] == 2]
        a = torch.tensor([0.0 if c == 0 else cap for c in choice], dtype=torch.float64)
        a[free] = 0.0
        if free:
            n = len(free)
            matrix = torch.ones(n + 1, n + 1, dtype=torch.float64)
            matrix[:n, :n], matrix[n, n] = gram[free][:, free], 0.0
            side = torch.cat((-(gram @ a)[free], 1 - a.sum().reshape(1)))
            a[free] = (torch.linalg.pinv(matrix) @ side)[:n]
        if abs(a.sum() - 1) < 1e-9 and (a > -1e-9).all() and (a < cap + 1e-9).all():
            value = float(a @ gram @ a)
            if value < best:
                best, where = value, a
    return best, where


def draw_gram(seed, size, rank, num_rows=3):
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(num_rows, size, rank, generator=generator, dtype=torch.float64)
    vectors = vectors * torch.rand(num_rows, size, 1, generator=generator, dtype=torch.float64).add(0.1)
    vectors = vectors + torch.randn(num_rows, 1, rank, generator=generator, dtype=torch.float64)
    return vectors @ vectors.transpose(1, 2)


@given(
    seed=seeds, size=st.integers(1, 5), rank=st.sampled_from([1, 2, 6]), cap=st.sampled_from([0.1, 0.4, 0.6, 1.0])
)
@settings(max_examples=40)
def test_min_norm_equals_brute_force(seed, size, rank, cap):
    gram = draw_gram(seed, size, rank)
    valid = torch.ones(len(gram), size, dtype=torch.bool)
    found = min_norm_weights(gram, valid, cap)
    allowed = max(cap, 1 / size)
    assert (found >= 0).all() and (found <= allowed + 1e-12).all()
    torch.testing.assert_close(found.sum(-1), torch.ones(len(gram), dtype=torch.float64), rtol=1e-12, atol=0)
    for matrix, weights in zip(gram, found, strict=True):
        best, where = brute_force(matrix, allowed)
        scale = float(matrix.diagonal().mean())
        assert float(weights @ matrix @ weights) == pytest.approx(best, abs=1e-10 * scale)
        if rank > size:
            torch.testing.assert_close(weights, where, rtol=0, atol=1e-6)


def test_two_teachers_have_a_closed_form():
    gram = draw_gram(3, 2, 5, num_rows=50)
    a = (gram[:, 1, 1] - gram[:, 0, 1]) / (gram[:, 0, 0] + gram[:, 1, 1] - 2 * gram[:, 0, 1])
    expected = a.clamp(0.4, 0.6)
    found = min_norm_weights(gram, torch.ones(50, 2, dtype=torch.bool), 0.6)
    torch.testing.assert_close(found, torch.stack((expected, 1 - expected), -1), rtol=1e-9, atol=1e-9)


@given(seed=seeds)
def test_larger_problems_meet_the_optimality_conditions(seed):
    gram = draw_gram(seed, 12, 30, num_rows=8)
    weights = min_norm_weights(gram, torch.ones(8, 12, dtype=torch.bool), 0.3)
    for matrix, a in zip(gram, weights, strict=True):
        slope = matrix @ a
        lower, upper = slope[a < 0.3 - 1e-12], slope[a > 1e-12]
        assert upper.max() <= lower.min() + 1e-8 * matrix.diagonal().mean()


@given(seed=seeds)
def test_absent_is_removed_and_order_does_not_matter(seed):
    gram = draw_gram(seed, 4, 8)
    valid = torch.tensor([[True, False, True, True]]).expand(3, 4)
    spoilt = torch.where(valid[:, :, None] & valid[:, None, :], gram, torch.nan)
    found = min_norm_weights(spoilt, valid, 0.6)
    kept = [0, 2, 3]
    alone = min_norm_weights(gram[:, kept][:, :, kept], valid[:, kept], 0.6)
    assert torch.equal(found[:, kept], alone) and (found[:, 1] == 0).all()
    turned = [3, 0, 2]
    again = min_norm_weights(gram[:, turned][:, :, turned], valid[:, turned], 0.6)
    torch.testing.assert_close(again[:, [1, 2, 0]], alone, rtol=0, atol=1e-8)


def test_equal_teachers_share_and_nobody_gets_nothing():
    ones = torch.ones(1, 3, 3, dtype=torch.float64)
    everyone = torch.ones(1, 3, dtype=torch.bool)
    torch.testing.assert_close(min_norm_weights(ones, everyone, 0.6), torch.full((1, 3), 1 / 3).double())
    torch.testing.assert_close(min_norm_weights(ones * 0, everyone, 0.6), torch.full((1, 3), 1 / 3).double())
    assert torch.equal(min_norm_weights(ones, ~everyone, 0.6), torch.zeros(1, 3).double())
    assert torch.equal(min_norm_weights(ones[:, :1, :1], everyone[:, :1], 0.6), torch.ones(1, 1).double())
    with pytest.raises(ValueError, match="max_weight is 0"):
        min_norm_weights(ones, everyone, 0.0)


def test_products_are_those_of_the_gradients_and_few_rows_are_alive():
    torch.manual_seed(0)
    student = torch.randn(20, 7, dtype=torch.float64).log_softmax(-1)
    teachers = [torch.randn(20, 7, dtype=torch.float64).log_softmax(-1) for _ in range(3)]
    asked = []

    def rows_of(rows):
        asked.append(rows.stop - rows.start)
        return student[rows]

    options = {"num_rows": 12, "dtype": torch.float64, "device": student.device}
    gram = gradient_products(rows_of, [lambda rows, _, t=t: t[rows] for t in teachers], 20, **options)
    gradients = torch.stack([student.exp() - t.exp() for t in teachers], 1)  # [N M V]
    torch.testing.assert_close(gram, gradients @ gradients.transpose(1, 2), rtol=1e-12, atol=1e-14)
    assert max(asked) == 3 and sum(asked) == 20


def test_a_stretch_is_one_problem():
    gram = draw_gram(5, 3, 8, num_rows=6)
    positions = Positions(*(torch.arange(6),) * 2, torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([0, 1, 2] * 2))
    valid = torch.ones(6, 3, dtype=torch.bool)
    found = MinNormWeighting("sequence", 0.6).weights(gram, valid, positions)
    for rows in (slice(0, 3), slice(3, 6)):
        expected = min_norm_weights(gram[rows].mean(0, keepdim=True), valid[:1], 0.6)
        torch.testing.assert_close(found[rows], expected.expand(3, 3), rtol=0, atol=1e-9)

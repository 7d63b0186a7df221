"""Weights against a loop over positions, their limits, absent teachers, and stretches of text."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from collegium.losses.stretches import window_groups
from collegium.losses.teacher_weights import entropy_weights, group_mean, static_weights, uniform_weights


seeds = st.integers(0, 2**32 - 1)
teacher_counts = st.integers(1, 9)
taus = st.sampled_from([0.05, 0.25, 1.0, 7.0])


def draw_stats(seed, num_teachers, num_positions=6, share_valid=0.7):
    """Entropies [n M] and where they may be read."""
    generator = torch.Generator().manual_seed(seed)
    shape = num_positions, num_teachers
    entropy = 4 * torch.rand(shape, generator=generator, dtype=torch.float64)
    valid = torch.rand(shape, generator=generator) < share_valid
    return entropy, valid


@given(seed=seeds, num_teachers=teacher_counts, tau=taus)
def test_entropy_weights_equal_the_formula(seed, num_teachers, tau):
    entropy, valid = draw_stats(seed, num_teachers)
    found = entropy_weights(entropy, tau=tau, valid=valid)
    for i in range(len(entropy)):
        scores = [
            math.exp(-h / tau) if ok else 0.0 for h, ok in zip(entropy[i].tolist(), valid[i].tolist(), strict=True)
        ]
        expected = [score / (sum(scores) or 1.0) for score in scores]
        torch.testing.assert_close(found[i], torch.tensor(expected, dtype=torch.float64), rtol=1e-11, atol=1e-14)


@given(seed=seeds, num_teachers=teacher_counts, tau=taus)
def test_rows_sum_to_1_over_valid_teachers_and_are_0_without_one(seed, num_teachers, tau):
    entropy, valid = draw_stats(seed, num_teachers, share_valid=0.5)
    weights = entropy_weights(entropy, tau=tau, valid=valid)
    torch.testing.assert_close(weights.sum(-1), valid.any(-1).double(), rtol=1e-14, atol=0)
    assert (weights[~valid] == 0).all() and (weights >= 0).all()


@given(seed=seeds, num_teachers=teacher_counts, tau=taus)
def test_all_teachers_are_valid_by_default(seed, num_teachers, tau):
    entropy, _ = draw_stats(seed, num_teachers)
    everywhere = torch.ones_like(entropy, dtype=torch.bool)
    assert torch.equal(entropy_weights(entropy, tau=tau), entropy_weights(entropy, tau=tau, valid=everywhere))


@given(value=st.floats(0, 12), num_teachers=teacher_counts, tau=taus)
def test_ties_are_exactly_uniform(value, num_teachers, tau):
    entropy = torch.full((2, num_teachers), value, dtype=torch.float64)
    assert torch.equal(entropy_weights(entropy, tau=tau), torch.full_like(entropy, 1 / num_teachers))


@given(seed=seeds, num_teachers=teacher_counts)
def test_large_tau_is_uniform(seed, num_teachers):
    entropy, valid = draw_stats(seed, num_teachers)
    uniform = uniform_weights(valid, dtype=torch.float64)
    nearly = entropy_weights(entropy, tau=1e12, valid=valid)
    torch.testing.assert_close(nearly, uniform, rtol=1e-11, atol=0)
    assert torch.equal(entropy_weights(entropy, tau=math.inf, valid=valid), uniform)


@given(seed=seeds, num_teachers=teacher_counts)
def test_small_tau_picks_the_most_certain_and_splits_ties(seed, num_teachers):
    entropy, _ = draw_stats(seed, num_teachers)
    entropy[0] = entropy[0].round()  # ties
    is_lowest = entropy == entropy.amin(-1, keepdim=True)
    expected = is_lowest.double() / is_lowest.sum(-1, keepdim=True)
    for tau in (1e-12, 1e-300):
        assert torch.equal(entropy_weights(entropy, tau=tau), expected)


@given(seed=seeds, num_teachers=st.integers(2, 9), shift=st.floats(-50, 50), tau=taus)
def test_only_differences_of_entropy_count(seed, num_teachers, shift, tau):
    entropy, valid = draw_stats(seed, num_teachers)
    torch.testing.assert_close(
        entropy_weights(entropy + shift, tau=tau, valid=valid),
        entropy_weights(entropy, tau=tau, valid=valid),
        rtol=1e-9,
        atol=1e-14,
    )


@pytest.mark.parametrize("tau", [0.0, -1.0, math.nan])
def test_tau_must_be_positive(tau):
    with pytest.raises(ValueError, match="must be above 0"):
        entropy_weights(torch.zeros(1, 2), tau=tau)


def make_weights(kind, entropy, valid, values):
    if kind == "uniform":
        return uniform_weights(valid, dtype=entropy.dtype)
    if kind == "static":
        return static_weights(values, valid)
    return entropy_weights(entropy, tau=0.25, valid=valid)


@pytest.mark.parametrize("kind", ["uniform", "static", "entropy"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(seed=seeds, num_teachers=teacher_counts)
def test_absent_is_a_removed_column_bit_for_bit(kind, dtype, seed, num_teachers):
    entropy, valid = draw_stats(seed, num_teachers)
    entropy, values = entropy.to(dtype), entropy[0].to(dtype) + 0.1
    weights = make_weights(kind, entropy, valid, values)
    assert weights.dtype == dtype
    for i, present in enumerate(valid):
        if present.any():
            alone = make_weights(kind, entropy[i, None, present], valid[i, None, present], values[present])
            assert torch.equal(weights[i, present], alone[0])


@given(
    seed=seeds,
    num_teachers=teacher_counts,
    garbage=st.sampled_from([math.nan, math.inf, -math.inf]),
)
def test_entropies_at_invalid_entries_are_not_read(seed, num_teachers, garbage):
    entropy, valid = draw_stats(seed, num_teachers)
    spoilt = torch.where(valid, entropy, torch.full_like(entropy, garbage))
    found = entropy_weights(spoilt, tau=0.25, valid=valid)
    assert torch.equal(found, entropy_weights(entropy, tau=0.25, valid=valid))


@pytest.mark.parametrize("kind", ["uniform", "static", "entropy"])
def test_no_valid_teacher_gives_zeros(kind):
    entropy, none = torch.full((2, 3), math.nan), torch.zeros(2, 3, dtype=torch.bool)
    assert torch.equal(make_weights(kind, entropy, none, torch.ones(3)), torch.zeros(2, 3))


@given(seed=seeds, num_teachers=teacher_counts)
def test_static_weights_are_renormalised_over_valid_teachers(seed, num_teachers):
    values, valid = draw_stats(seed, num_teachers)
    values = values[0]
    found = static_weights(values, valid)
    for i in range(len(valid)):
        kept = [v if ok else 0.0 for v, ok in zip(values.tolist(), valid[i].tolist(), strict=True)]
        expected = torch.tensor([v / (sum(kept) or 1.0) for v in kept], dtype=torch.float64)
        torch.testing.assert_close(found[i], expected, rtol=1e-13, atol=0)


def test_static_weight_0_leaves_a_position_uncovered_rather_than_nan():
    found = static_weights(torch.tensor([0.0, 1.0]), torch.tensor([[True, False], [True, True]]))
    assert torch.equal(found, torch.tensor([[0.0, 0.0], [0.0, 1.0]]))


def test_uniform_weights():
    valid = torch.tensor([[True, True, True], [True, False, True], [False, False, False]])
    found = uniform_weights(valid, dtype=torch.float64)
    expected = torch.tensor([[1 / 3] * 3, [0.5, 0.0, 0.5], [0.0] * 3], dtype=torch.float64)
    assert torch.equal(found, expected)


# Stretches of text


@st.composite
def segmented_positions(draw):
    """Segments and offsets as `predicted_positions` makes them: gaps where nothing is predicted."""
    segments, offsets = [], []
    segment = 0
    for _ in range(draw(st.integers(0, 5))):
        segment += draw(st.integers(1, 3))  # a segment may predict nothing at all
        predicted = draw(st.lists(st.integers(0, 20), unique=True, max_size=12))
        segments += [segment] * len(predicted)
        offsets += sorted(predicted)
    return torch.tensor(segments, dtype=torch.long), torch.tensor(offsets, dtype=torch.long)


@given(positions=segmented_positions(), window=st.sampled_from([None, 1, 2, 5, 64]))
def test_a_group_is_a_window_of_one_segment(positions, window):
    segments, offsets = positions
    groups = window_groups(segments, offsets, window).tolist()
    keys = [(s, o // window if window else 0) for s, o in zip(segments.tolist(), offsets.tolist(), strict=True)]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    assert groups == [numbers[key] for key in keys]


@given(positions=segmented_positions(), seed=seeds, num_teachers=st.integers(1, 4))
def test_group_mean_equals_a_loop(positions, seed, num_teachers):
    groups = window_groups(*positions, 5)
    values, valid = draw_stats(seed, num_teachers, num_positions=len(groups), share_valid=0.5)
    values[~valid] = math.nan
    means, any_valid = group_mean(values, valid, groups)
    for i, group in enumerate(groups.tolist()):
        for m in range(num_teachers):
            members = values[(groups == group) & valid[:, m], m]
            assert any_valid[i, m] == (len(members) > 0)
            expected = members.mean() if len(members) else torch.tensor(0.0, dtype=torch.float64)
            torch.testing.assert_close(means[i, m], expected, rtol=1e-13, atol=1e-15)


def test_the_means_of_a_teacher_do_not_depend_on_its_neighbours():
    values, valid = draw_stats(0, 5, num_positions=40)
    groups = torch.arange(40) // 7
    means, _ = group_mean(values, valid, groups)
    fewer, _ = group_mean(values[:, [0, 3]], valid[:, [0, 3]], groups)
    assert torch.equal(means[:, [0, 3]], fewer)


def test_weights_of_frozen_statistics_carry_no_gradient():
    entropy, valid = draw_stats(0, 3)
    shared, _ = group_mean(entropy, valid, torch.arange(6) // 2)
    assert not entropy_weights(shared, valid=valid).requires_grad


def test_weights_of_learned_entropies_have_a_gradient():
    entropy, _ = draw_stats(0, 3)
    valid = torch.tensor([[True, True, False]]).expand(6, 3)
    assert torch.autograd.gradcheck(
        lambda h: entropy_weights(h, tau=0.5, valid=valid), (entropy.requires_grad_(),)
    )

"""Fading sums and stretch means against loops over positions, in one piece and in chunks."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from collegium.losses import stretches
from collegium.losses.stretches import Stretches, fading_sums
from collegium.signals.contracts import Positions


seeds = st.integers(0, 2**32 - 1)


def draw_text(seed, num_positions, num_segments=6):
    """Segments with gaps in their numbers, offsets, and values [n 2]."""
    generator = torch.Generator().manual_seed(seed)
    segments = torch.randint(3 * num_segments, (num_positions,), generator=generator).sort().values
    offsets = torch.tensor([int((segments[:i] == segments[i]).sum()) for i in range(num_positions)])
    values = torch.randn(num_positions, 2, generator=generator, dtype=torch.float64)
    return segments, offsets, values


def naive(values, segments, decay, past_only):
    sums = torch.zeros_like(values)
    for t in range(len(values)):
        for s in range(t if past_only else t + 1):
            if segments[s] == segments[t]:
                sums[t] += decay ** (t - s - int(past_only)) * values[s]
    return sums


@pytest.mark.parametrize("past_only", [False, True])
@given(
    seed=seeds,
    decay=st.sampled_from([0.0, 0.5, 0.97, 1.0]),
    num_positions=st.integers(0, 40),
    block=st.sampled_from([1, 3, 16, 256]),
    chunk_size=st.sampled_from([1, 5, 7, 64]),
)
def test_fading_sums_equal_a_loop_however_they_are_cut(past_only, seed, decay, num_positions, block, chunk_size):
    segments, _, values = draw_text(seed, num_positions)
    expected = naive(values, segments, decay, past_only)
    before, stretches.BLOCK = stretches.BLOCK, block
    try:
        carry, parts = None, []
        for start in range(0, max(1, num_positions), chunk_size):
            rows = slice(start, start + chunk_size)
            part, carry = fading_sums(values[rows], segments[rows], decay, past_only=past_only, carry=carry)
            parts.append(part)
    finally:
        stretches.BLOCK = before
    torch.testing.assert_close(torch.cat(parts), expected, rtol=1e-12, atol=1e-12)


def test_long_sums_are_exact():
    segments, _, values = draw_text(0, 1500, num_segments=1)
    for decay in (0.97, 1.0):
        expected, running, last = [], torch.zeros(2, dtype=torch.float64), None
        for value, segment in zip(values, segments.tolist(), strict=True):
            running = value if segment != last else decay * running + value
            last = segment
            expected.append(running)
        found, _ = fading_sums(values, segments, decay)
        torch.testing.assert_close(found, torch.stack(expected), rtol=1e-11, atol=1e-11)


def loop_mean(values, counts, segments, offsets, granularity, past_only, t):
    kind, _, size = granularity.partition(":")
    total = weight = 0.0
    for s in range(len(values)):
        if segments[s] != segments[t]:
            continue
        if kind == "causal":
            distance = sum(1 for r in range(s, t) if segments[r] == segments[t]) if s <= t else -1
            distance -= int(past_only)
            share = (1.0 - 1.0 / int(size)) ** distance if distance >= 0 else 0.0
        elif kind == "window":
            share = float(offsets[s] // int(size) == offsets[t] // int(size))
        else:
            share = 1.0 if kind == "sequence" else float(s == t)
        if counts[s]:
            total, weight = total + share * float(values[s]), weight + share
    return total / weight if weight else 0.0


@pytest.mark.parametrize("granularity", ["token", "window:3", "sequence", "causal:1", "causal:4"])
@given(seed=seeds, past_only=st.booleans())
def test_means_equal_a_loop(granularity, seed, past_only):
    segments, offsets, values = draw_text(seed, 20)
    values, counts = values[:, 0], values[:, 1] > -0.5
    counts = counts | past_only
    positions = Positions(torch.arange(20), torch.zeros(20, dtype=torch.long), segments, offsets)
    past = past_only and granularity.startswith("causal")
    found = Stretches(positions, granularity, past_only=past_only).means(values, counts, slice(0, 20))
    for t in range(20):
        if counts[t]:
            expected = loop_mean(values, counts, segments, offsets, granularity, past, t)
            assert found[t] == pytest.approx(expected, rel=1e-11, abs=1e-13)


def test_each_teacher_has_a_carry_of_its_own():
    segments, offsets, values = draw_text(1, 30, num_segments=1)
    positions = Positions(torch.arange(30), torch.zeros(30, dtype=torch.long), segments, offsets)
    counts = torch.ones(30, dtype=torch.bool)
    whole, cut = Stretches(positions, "causal:8"), Stretches(positions, "causal:8")
    parts = [
        [cut.means(column[rows], counts[rows], rows, m) for m, column in enumerate(values.unbind(-1))]
        for rows in (slice(0, 11), slice(11, 12), slice(12, 30))
    ]
    for m, column in enumerate(values.unbind(-1)):
        expected = whole.means(column, counts, slice(0, 30), m)
        torch.testing.assert_close(torch.cat([part[m] for part in parts]), expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("granularity", ["document", "window", "window:0", "window:-3", "causal:", "tokens", ""])
def test_other_granularities_are_refused(granularity):
    positions = Positions(*(torch.arange(3) for _ in range(4)))
    with pytest.raises(ValueError, match="give token, sequence, window:W or causal:W"):
        Stretches(positions, granularity)

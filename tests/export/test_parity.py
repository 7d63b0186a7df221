import math

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from collegium.export.parity import measure_parity, parity_figures


def reference(original, exported):
    """Position by position in plain float64."""
    same, kls = [], []
    for p_logits, q_logits in zip(original.tolist(), exported.tolist(), strict=True):
        same.append(float(p_logits.index(max(p_logits)) == q_logits.index(max(q_logits))))
        log_p, log_q = ([x - math.log(sum(map(math.exp, row))) for x in row] for row in (p_logits, q_logits))
        kls.append(sum(math.exp(p) * (p - q) for p, q in zip(log_p, log_q, strict=True)))
    return same, kls


def logits_pair(seed=0, n=7, v=11, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    original = torch.randn(n, v, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, v, generator=generator, dtype=torch.float64)
    return original.to(dtype), (original + 0.7 * noise).to(dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_figures_are_those_of_the_formula(dtype, tolerance):
    original, exported = logits_pair(dtype=dtype)
    same, kl = parity_figures(original, exported)
    expected_same, expected_kl = reference(original, exported)
    assert same.tolist() == expected_same and 0 < sum(expected_same) < 7
    assert kl.dtype == dtype
    assert kl.tolist() == pytest.approx(expected_kl, rel=tolerance)


def test_direction_is_that_of_the_name():
    peaked, flat = torch.tensor([[4.0, 0.0]]).double(), torch.zeros(1, 2).double()
    _, kl = parity_figures(peaked, flat)
    p = math.exp(4) / (math.exp(4) + 1)
    assert kl.item() == pytest.approx(p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p)))


def test_half_precision_is_raised_first():
    original, exported = logits_pair(dtype=torch.bfloat16)
    _, kl = parity_figures(original, exported)
    assert kl.dtype == torch.float32
    assert kl.tolist() == pytest.approx(reference(original.double(), exported.double())[1], rel=1e-4)


finite = st.floats(-30, 30, allow_nan=False, width=32)
matrices = arrays.arrays(np.float64, (3, 5), elements=finite)


@settings(max_examples=50, deadline=None)
@given(matrices, matrices, finite)
def test_what_must_hold(original, exported, shift):
    first, second = torch.from_numpy(original), torch.from_numpy(exported)
    same, kl = parity_figures(first, second)
    assert ((same == 0) | (same == 1)).all()
    assert (kl >= -1e-9).all()
    _, shifted = parity_figures(first, second + shift)  # logits are known up to a constant
    assert torch.allclose(kl, shifted, atol=1e-9)
    same, kl = parity_figures(first, first.clone())
    assert (same == 1).all() and kl.abs().max() < 1e-12


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_broken_logits_are_no_agreement(bad):
    original, exported = logits_pair()
    exported[2, 3] = bad
    same, kl = parity_figures(original, exported)
    assert same[2].isnan() and kl[2].isnan() and kl[:2].isfinite().all()


def test_figures_over_segments_are_means_over_positions():
    table = {name: logits_pair(seed, n=20) for seed, name in enumerate("ab")}
    original, exported = torch.cat([table[n][0] for n in "ab"]), torch.cat([table[n][1] for n in "ab"])
    segments = [[0, 1, 2, 3], [20, 21], [22, 23, 24]]
    parity = measure_parity(segments, lambda t: original[t], lambda t: exported[t], vocab_size=9)
    rows = [0, 1, 2, 20, 22, 23]  # the last of a segment predicts nothing
    same, kl = reference(original[rows, :9], exported[rows, :9])
    assert (parity.positions, parity.segments) == (6, 3)
    assert parity.top1_agreement == pytest.approx(sum(same) / 6)
    assert parity.mean_kl == pytest.approx(sum(kl) / 6) and parity.max_kl == pytest.approx(max(kl))

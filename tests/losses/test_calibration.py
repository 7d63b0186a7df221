"""Fitted temperatures: the identity that holds at the optimum, known temperatures, and what must not matter."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from collegium.losses.calibration import CalibrationSums, calibration_sums, fit_temperatures
from collegium.signals.signals import DenseSignal, ProjectedSignal


N, D, V = 400, 6, 11


def teacher(seed=0, *, scale=1.0, dtype=torch.float64, temperature=1.0):
    """Hidden states with an identity-like head, and labels drawn at a temperature."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(N, D, generator=generator, dtype=torch.float64)
    weight = torch.randn(V, D, generator=generator, dtype=torch.float64)
    probs = (hidden @ weight.T / temperature).softmax(-1)
    labels = torch.multinomial(probs, 1, generator=generator).squeeze(-1)
    return ProjectedSignal(hidden.to(dtype), lambda h: scale * (h @ weight.to(dtype).T)), labels


def fit(signal, labels, *, chunk_size=64, **options):
    def look(temperatures, _):
        return calibration_sums(signal, labels, temperatures, chunk_size=chunk_size)

    return fit_temperatures(look, 1, **options)[0]


def reference_nll(signal, labels, temperature):
    logits = signal.logits(slice(None)) / temperature
    return float(torch.nn.functional.cross_entropy(logits, labels))


def test_sums_are_the_derivatives_of_the_loss():
    signal, labels = teacher()
    for c in (0.5, 1.0, 2.3):
        beta = torch.tensor(1 / c, dtype=torch.float64, requires_grad=True)
        logits = signal.logits(slice(None))
        nll = torch.nn.functional.cross_entropy(beta * logits, labels, reduction="sum")
        (slope,) = torch.autograd.grad(nll, beta, create_graph=True)
        (curvature,) = torch.autograd.grad(slope, beta)
        (sums,) = calibration_sums(signal, labels, [c], chunk_size=7)
        expected = (N, *(figure.detach().item() for figure in (nll, slope, curvature)))
        assert (sums.count, sums.nll, sums.slope, sums.curvature) == pytest.approx(expected, rel=1e-10)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), scale=st.floats(0.3, 3.0))
def test_mean_entropy_is_mean_loss_at_the_optimum(seed, scale):
    signal, labels = teacher(seed, scale=scale)
    fitted = fit(signal, labels, tolerance=1e-9)
    logprobs = (signal.logits(slice(None)) / fitted.temperature).log_softmax(-1)
    entropy = float(-(logprobs.exp() * logprobs).sum(-1).mean())
    nll = reference_nll(signal, labels, fitted.temperature)
    assert not fitted.at_bound
    assert entropy == pytest.approx(nll, abs=1e-6)
    assert (fitted.entropy, fitted.nll) == pytest.approx((entropy, nll), abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_no_other_temperature_is_better(seed):
    signal, labels = teacher(seed, scale=1.7)
    fitted = fit(signal, labels)
    others = [reference_nll(signal, labels, fitted.temperature * f) for f in (0.9, 0.99, 1.01, 1.1)]
    assert fitted.nll < min(others)
    assert fitted.raw_nll == pytest.approx(reference_nll(signal, labels, 1.0), abs=1e-10)
    assert fitted.raw_gap > 0.05 and abs(fitted.gap) < 1e-6


def test_sharper_logits_want_a_temperature_as_much_higher():
    plain, labels = teacher(1)
    sharp, _ = teacher(1, scale=3.0)
    assert fit(sharp, labels).temperature == pytest.approx(3 * fit(plain, labels).temperature, rel=1e-5)


def test_a_known_temperature_is_found():
    signal, labels = teacher(2, temperature=2.0)
    assert fit(signal, labels).temperature == pytest.approx(2.0, rel=0.15)  # 400 draws


def test_few_looks_are_needed():
    for scale in (0.4, 1.0, 3.0):
        signal, labels = teacher(3, scale=scale)
        looks = 0

        def look(temperatures, _, signal=signal, labels=labels):
            nonlocal looks
            looks += 1
            return calibration_sums(signal, labels, temperatures, chunk_size=64)

        fit_temperatures(look, 1)
        assert looks <= 8


@pytest.mark.parametrize(("scale", "bound"), [(50.0, math.exp(1.6)), (0.02, math.exp(-1.6))])
def test_a_bound_is_told(scale, bound):
    signal, labels = teacher(4, scale=scale)
    fitted = fit(signal, labels)
    assert fitted.at_bound
    assert fitted.temperature == pytest.approx(bound)
    assert fitted.nll < fitted.raw_nll


def test_a_teacher_that_is_always_right_goes_to_the_bound():
    logprobs = torch.full((9, V), -30.0, dtype=torch.float64)
    logprobs[:, 2] = 0.0
    fitted = fit(DenseSignal(logprobs), torch.full((9,), 2))
    assert fitted.nll == pytest.approx(0.0, abs=1e-6)


def test_chunks_constants_and_precision_do_not_matter():
    signal, labels = teacher(5, scale=2.0)
    whole = fit(signal, labels, chunk_size=N)
    assert fit(signal, labels, chunk_size=13).temperature == pytest.approx(whole.temperature, rel=1e-12)
    shifted = ProjectedSignal(signal.hidden, lambda h: signal.head(h) + 5.0)
    assert fit(shifted, labels).temperature == pytest.approx(whole.temperature, rel=1e-9)
    single, _ = teacher(5, scale=2.0, dtype=torch.float32)
    assert fit(single, labels).temperature == pytest.approx(whole.temperature, rel=1e-5)


def test_bad_and_absent_positions_do_not_count():
    signal, labels = teacher(6, scale=2.0)
    logprobs = signal.logits(slice(None)).clone()
    valid = torch.ones(N, dtype=torch.bool)
    logprobs[3, 1], logprobs[4, 2], valid[5:9] = torch.nan, torch.inf, False
    kept = torch.ones(N, dtype=torch.bool)
    kept[3:9] = False
    fitted = fit(DenseSignal(logprobs, valid=valid), labels)
    expected = fit(DenseSignal(logprobs[kept]), labels[kept])
    assert fitted.positions == N - 6
    assert fitted.temperature == pytest.approx(expected.temperature, rel=1e-9)


def test_tokens_that_are_ruled_out_do_no_harm():
    signal, labels = teacher(7)
    logprobs = signal.logits(slice(None)).clone()
    out = (labels + 1) % V
    logprobs[torch.arange(N), out] = -torch.inf
    assert math.isfinite(fit(DenseSignal(logprobs), labels).temperature)


def test_several_fits_share_looks_and_keep_their_text():
    (one, labels), (two, _) = teacher(8, scale=2.0), teacher(8, scale=0.7)
    signals = [one, two]

    def look(temperatures, which):
        pairs = zip(temperatures, which, strict=True)
        return [calibration_sums(signals[i], labels, [c], chunk_size=64)[0] for c, i in pairs]

    together = fit_temperatures(look, 2)
    apart = [fit(one, labels), fit(two, labels)]
    assert together == apart


def test_no_position_is_an_error():
    with pytest.raises(ValueError, match="valid at none"):
        fit_temperatures(lambda temperatures, which: [CalibrationSums()], 1)

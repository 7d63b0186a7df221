"""What only the fused loss has: a head read as a map, a compiler, gradients made early."""

import logging
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from collegium.fused import chunked, compiled, fused
from collegium.fused.chunked import KdTarget
from collegium.fused.completion import dense_logprobs
from collegium.fused.products import project
from collegium.fused.traversal import whole_groups
from collegium.losses.divergences import forward_kl
from collegium.losses.fusion import geometric_logprobs, mixture_logprobs
from collegium.losses.weighting import Weighting
from collegium.models.head import ProjectionHead
from collegium.signals.signals import DenseSignal, ProjectedSignal, TopKSignal
from tests.support.heads import WeightHead
from tests.support.loss_problem import FORMS, D, E, N, problem, run


def relative(found, expected):
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("padding", [0, 5])
def test_bias_scale_cap_padding_and_smoothing(padding, scale, softcap, label_smoothing):
    hidden, linear_head, signals, positions = problem(37, torch.float64, padding=padding)
    head = ProjectionHead(linear_head, 37, scale, softcap)
    results = [
        run(driver, hidden, head, signals, positions, label_smoothing=label_smoothing)
        for driver in (fused.distillation_loss, chunked.distillation_loss)
    ]
    for found, expected in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(results[0][0].loss, results[1][0].loss, rtol=1e-13, atol=0)
    assert (results[0][1][1][37:] == 0).all()


@pytest.mark.parametrize("fusion", [mixture_logprobs, geometric_logprobs])
@pytest.mark.parametrize("divergence", [name for name in FORMS if name != "total_variation"])
def test_float32_is_near_to_float64(divergence, fusion):
    target = KdTarget(FORMS[divergence], fusion, 1.3)
    hidden, head, signals, positions = problem(5000, torch.float64)
    expected = run(
        chunked.distillation_loss, hidden, ProjectionHead(head, 5000), signals, positions, target=target
    )[1]
    narrow = [
        ProjectedSignal(s.hidden.float(), partial(linear, weight=s.head.projection.weight.float()))
        for s in signals
    ]
    found = run(
        fused.distillation_loss,
        hidden.float(),
        ProjectionHead(head.float(), 5000),
        narrow,
        positions,
        target=target,
    )[1]
    assert max(map(relative, found, expected)) < 1e-5


@pytest.mark.skipif(not compiled._compiler_found(), reason="needs a compiler")
@pytest.mark.parametrize(
    ("divergence", "fusion"),
    [("forward_kl", mixture_logprobs), ("reverse_kl", mixture_logprobs), ("jsd", geometric_logprobs)],
)
def test_compiled_and_in_blocks_agree(divergence, fusion, monkeypatch):
    target = KdTarget(FORMS[divergence], fusion)
    hidden, head, signals, positions = problem(1000, torch.float32)
    signals[0].hidden[5] = torch.nan
    arguments = (fused.distillation_loss, hidden, ProjectionHead(head, 1000), signals, positions)
    monkeypatch.setattr(compiled, "BLOCK_ELEMENTS", 3000)
    in_blocks, of_blocks = run(*arguments, target=target)
    monkeypatch.setattr(compiled, "_compiled_from", 0)
    whole, of_compiled = run(*arguments, target=target)
    assert not compiled._failures
    assert max(map(relative, of_compiled, of_blocks)) < 1e-5
    torch.testing.assert_close(whole.teacher_kl, in_blocks.teacher_kl, rtol=1e-4, atol=1e-4)
    again, of_again = run(*arguments, target=target)
    assert torch.equal(again.loss, whole.loss)
    assert all(torch.equal(a, b) for a, b in zip(of_again, of_compiled, strict=True))


def test_without_a_working_compiler_it_says_so_once_and_goes_on(monkeypatch, caplog):
    hidden, head, signals, positions = problem(50, torch.float32)
    arguments = (fused.distillation_loss, hidden, ProjectionHead(head, 50), signals, positions)
    expected = run(*arguments)[0].loss

    def broken(kernel):
        raise torch._dynamo.exc.BackendCompilerFailed(kernel, RuntimeError("no such compiler"), None)

    monkeypatch.setattr(compiled, "_compiled", broken)
    monkeypatch.setattr(compiled, "_compiler_found", lambda: True)
    monkeypatch.setattr(compiled, "_compiled_from", 0)
    monkeypatch.setattr(compiled, "_failures", set())
    with caplog.at_level(logging.WARNING):
        assert torch.equal(run(*arguments)[0].loss, expected)
    assert len(caplog.records) == 1 and "without a compiler" in caplog.text


def test_two_runs_are_the_same_bit_for_bit():
    hidden, head, signals, positions = problem(3000, torch.float32)
    arguments = (fused.distillation_loss, hidden, ProjectionHead(head, 3000), signals, positions)
    (one, of_one), (two, of_two) = run(*arguments), run(*arguments)
    assert torch.equal(one.loss, two.loss)
    assert all(torch.equal(a, b) for a, b in zip(of_one, of_two, strict=True))


def test_gradients_are_handed_over_once():
    hidden, head, signals, positions = problem(20, torch.float32)
    sums = fused.distillation_loss(
        hidden.requires_grad_(),
        ProjectionHead(head, 20),
        positions,
        signals,
        Weighting(),
        target=KdTarget(forward_kl, mixture_logprobs),
        kd_weight=0.5,
        chunk_size=16,
    )
    (2.0 * sums.loss).backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="handed over once"):
        sums.loss.backward()


def test_each_logit_is_made_once(monkeypatch):
    hidden, head, signals, positions = problem(20, torch.float64)
    rows = []

    def counting(hidden, weight, bias=None, **options):
        if weight.shape[1] == E:
            rows.append(len(hidden))
        return project(hidden, weight, bias, **options)

    for module in ("collegium.fused.streamed", "collegium.models.head"):
        monkeypatch.setattr(f"{module}.project", counting)
    run(fused.distillation_loss, hidden, ProjectionHead(head, 20), signals, positions)
    assert sum(rows) == N * len(signals)
    rows.clear()  # weights over a stretch longer than a chunk need a pass of their own
    run(fused.distillation_loss, hidden, ProjectionHead(head, 20), signals, positions, chunk_size=8)
    assert sum(rows) == 2 * N * len(signals)


def test_frozen_heads_and_states_get_no_gradient():
    hidden, head, signals, positions = problem(20, torch.float64)
    _, expected = run(fused.distillation_loss, hidden, ProjectionHead(head, 20), signals, positions)
    head.requires_grad_(False)
    options = {"target": KdTarget(forward_kl, mixture_logprobs), "kd_weight": 0.6, "chunk_size": 32}
    weighting = Weighting("entropy", "window:16", 0.25)
    leaf = hidden.clone().requires_grad_()
    head.zero_grad()
    arguments = (ProjectionHead(head, 20), positions, signals, weighting)
    fused.distillation_loss(leaf, *arguments, **options).loss.backward()
    assert torch.equal(leaf.grad, expected[0]) and head.weight.grad is None


def test_a_tied_head_gets_both_gradients():
    hidden, _, signals, positions = problem(20, torch.float64)
    tokens = torch.randint(20, (N,))
    gradients = []
    for driver in (fused.distillation_loss, chunked.distillation_loss):
        weight = torch.linspace(-1, 1, 20 * D, dtype=torch.float64).reshape(20, D).requires_grad_()
        sums = driver(
            weight[tokens] + hidden,
            WeightHead(weight),
            positions,
            signals,
            Weighting("uniform"),
            target=KdTarget(forward_kl, mixture_logprobs),
            kd_weight=0.5,
            chunk_size=16,
        )
        sums.loss.backward()
        gradients.append(weight.grad)
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-13)


def test_mixed_precision_is_near_to_float32():
    hidden, head, signals, positions = problem(600, torch.float32)
    arguments = (fused.distillation_loss, hidden, ProjectionHead(head, 600), signals, positions)
    expected = run(*arguments)[1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = run(*arguments)[1]
    assert all(gradient.dtype == torch.float32 for gradient in found)
    assert 1e-6 < max(map(relative, found, expected)) < 1e-2


@pytest.mark.parametrize("spoil", ["hook", "adapter", "own class"])
def test_a_head_that_is_more_than_a_map_is_called(spoil):
    hidden, head, signals, positions = problem(20, torch.float64)
    calls = []
    if spoil == "hook":
        head.register_forward_hook(lambda *_: calls.append(1))
    elif spoil == "adapter":
        head.forward = lambda states: calls.append(1) or linear(states, head.weight, head.bias)
    else:
        head.__class__ = type(
            "Linear8", (nn.Linear,), {"forward": lambda m, h: calls.append(1) or linear(h, m.weight, m.bias)}
        )
    projection = ProjectionHead(head, 20)
    assert projection.as_linear() is None
    run(fused.distillation_loss, hidden, projection, signals, positions)
    assert calls


@pytest.mark.parametrize("driver", [chunked.distillation_loss, fused.distillation_loss])
def test_top_k_of_everything_is_the_dense_signal_and_signals_mix(driver):
    hidden, head, signals, positions = problem(30, torch.float64)
    logprobs = torch.randn(N, 30, dtype=torch.float64).log_softmax(-1)
    kept, ids = logprobs.topk(30)
    entropies = -(logprobs.exp() * logprobs).sum(-1)
    at_label = logprobs.gather(-1, positions.labels[:, None]).squeeze(-1)
    listed = TopKSignal(ids, kept, entropies, at_label, 30)
    results = [
        run(driver, hidden, ProjectionHead(head, 30), [signals[0], signal], positions)
        for signal in (listed, DenseSignal(logprobs))
    ]
    for found, expected in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("driver", [chunked.distillation_loss, fused.distillation_loss])
def test_a_short_list_keeps_the_exact_figures_and_spreads_the_rest(driver):
    hidden, head, _, positions = problem(30, torch.float64)
    logprobs = torch.randn(N, 30, dtype=torch.float64).log_softmax(-1)
    kept, ids = logprobs.topk(4)
    entropies = -(logprobs.exp() * logprobs).sum(-1)
    at_label = logprobs.gather(-1, positions.labels[:, None]).squeeze(-1)
    signal = TopKSignal(ids, kept, entropies, at_label, 30, tail="uniform")
    dense = dense_logprobs(signal, slice(0, N))
    torch.testing.assert_close(dense.exp().sum(-1), torch.ones(N, dtype=torch.float64))
    sums, _ = run(driver, hidden, ProjectionHead(head, 30), [signal], positions)
    torch.testing.assert_close(sums.stats.entropy[:, 0], entropies)
    torch.testing.assert_close(sums.stats.cross_entropy[:, 0], -at_label)
    expected, _ = run(driver, hidden, ProjectionHead(head, 30), [DenseSignal(dense)], positions)
    torch.testing.assert_close(sums.loss, expected.loss)


def test_chunks_cut_no_group():
    groups = torch.tensor([0, 0, 0, 1, 1, 2, 3, 3, 3, 3])
    assert whole_groups(groups, 5) == [slice(0, 5), slice(5, 10)]
    assert whole_groups(groups, 4) == [slice(0, 3), slice(3, 6), slice(6, 10)]
    assert whole_groups(groups, 3) is None
    assert whole_groups(groups[:0], 3) == [slice(0, 0)]

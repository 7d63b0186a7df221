"""Weights of single positions, losses that read labels, and positions left to the text: both drivers alike."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from collegium.fused import chunked, compiled, fused
from collegium.fused.chunked import KdTarget
from collegium.losses.divergences import entropy, forward_kl, reverse_kl
from collegium.losses.fusion import geometric_logprobs, mixture_logprobs
from collegium.losses.weighting import Weighting
from collegium.models.head import ProjectionHead
from collegium.signals.signals import DenseSignal
from tests.support.loss_problem import N, problem


V = 37
DRIVERS = {"plain": chunked.distillation_loss, "fused": fused.distillation_loss}
each_driver = pytest.mark.parametrize("driver", DRIVERS.values(), ids=DRIVERS)
FORWARD = KdTarget(forward_kl, mixture_logprobs)


def losses(driver, *, target=FORWARD, signals=None, weighting=None, vocab_size=V, **weights):
    """Sums, and gradients of hidden states and head."""
    hidden, head, own, positions = problem(vocab_size, torch.float64)
    hidden.requires_grad_()
    sums = driver(
        hidden,
        ProjectionHead(head, vocab_size),
        positions,
        own if signals is None else signals,
        weighting or Weighting("uniform"),
        target=target,
        chunk_size=20,
        **weights,
    )
    return sums, torch.autograd.grad(sums.loss, (hidden, head.weight, head.bias))


def reference(kd_weight, ce_weight, divergence):
    """By autograd on whole tensors."""
    hidden, head, signals, positions = problem(V, torch.float64)
    hidden.requires_grad_()
    logprobs = head(hidden).log_softmax(-1)
    target = torch.stack([s.logits(slice(0, N)).softmax(-1) for s in signals]).mean(0).log()
    nll = -logprobs.gather(-1, positions.labels[:, None]).squeeze(-1)
    loss = (kd_weight * divergence(logprobs, target) + ce_weight * nll).sum()
    return loss, torch.autograd.grad(loss, (hidden, head.weight, head.bias))


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


@each_driver
@given(seed=st.integers(0, 2**16))
@pytest.mark.parametrize("divergence", [forward_kl, reverse_kl])
def test_each_position_has_its_own_weights_of_any_sign(driver, divergence, seed):
    generator = torch.Generator().manual_seed(seed)
    kd, ce = torch.randn(2, N, generator=generator, dtype=torch.float64)
    sums, gradients = losses(driver, target=KdTarget(divergence, mixture_logprobs), kd_weight=kd, ce_weight=ce)
    loss, expected = reference(kd, ce, divergence)
    torch.testing.assert_close(sums.loss, loss, rtol=1e-11, atol=1e-12)
    assert_same(gradients, expected)


@each_driver
def test_one_weight_for_all_is_the_same_weight_for_each(driver):
    one, of_one = losses(driver, kd_weight=0.3, ce_weight=0.9)
    each, of_each = losses(driver, kd_weight=torch.full((N,), 0.3), ce_weight=torch.tensor(0.9))
    torch.testing.assert_close(one.loss, each.loss, rtol=1e-6, atol=0)
    assert_same((one.kd, one.cross_entropy), (each.kd, each.cross_entropy))
    assert max(float((a - b).abs().max()) for a, b in zip(of_one, of_each, strict=True)) < 1e-6


class TowardsLabels:
    """A made-up loss that reads everything a positional divergence is given."""

    def at(self, student_logprobs, teacher_logprobs, labels, parameter):
        at_label = student_logprobs.gather(-1, labels[:, None]).squeeze(-1)
        return (1.0 + parameter) * forward_kl(student_logprobs, teacher_logprobs) - parameter * at_label


@each_driver
def test_a_loss_that_reads_labels_and_a_parameter(driver):
    parameter = torch.linspace(0, 1, N, dtype=torch.float64)
    target = KdTarget(TowardsLabels(), mixture_logprobs, parameter=parameter)
    sums, gradients = losses(driver, target=target, kd_weight=0.7, ce_weight=0.2)
    _, expected = reference(0.7 * (1 + parameter), 0.2 + 0.7 * parameter, forward_kl)
    assert_same(gradients, expected)
    assert torch.isfinite(sums.loss)


@pytest.mark.skipif(not compiled._compiler_found(), reason="needs a compiler")
def test_any_divergence_is_compiled_with_its_gradient(monkeypatch):
    def own(student_logprobs, teacher_logprobs):
        return (teacher_logprobs.exp() - student_logprobs.exp()).square().sum(-1)

    target = KdTarget(own, mixture_logprobs)
    in_blocks, of_blocks = losses(fused.distillation_loss, target=target, kd_weight=1.0)
    monkeypatch.setattr(compiled, "_compiled_from", 0)
    whole, of_whole = losses(fused.distillation_loss, target=target, kd_weight=1.0)
    assert not compiled._failures
    torch.testing.assert_close(whole.loss, in_blocks.loss)
    assert_same(of_whole, of_blocks)


@pytest.mark.skipif(not compiled._compiler_found(), reason="needs a compiler")
def test_one_that_cannot_be_compiled_leaves_the_others_compiled(monkeypatch):
    def stubborn(student_logprobs, teacher_logprobs):
        torch._dynamo.graph_break()
        return forward_kl(student_logprobs, teacher_logprobs)

    monkeypatch.setattr(compiled, "_failures", set())
    monkeypatch.setattr(compiled, "_compiled_from", 0)
    _, found = losses(fused.distillation_loss, target=KdTarget(stubborn, mixture_logprobs), kd_weight=0.5)
    assert {kernel.__name__ for kernel, *_ in compiled._failures} == {"finish_by_autograd"}
    assert_same(found, losses(fused.distillation_loss, kd_weight=0.5)[1])


@each_driver
@pytest.mark.parametrize("fusion", [mixture_logprobs, geometric_logprobs])
def test_positions_in_conflict_are_left_to_the_text(driver, fusion):
    _, _, signals, _ = problem(V, torch.float64)
    probs = torch.stack([signal.logits(slice(0, N)).softmax(-1) for signal in signals])  # [M N V]
    if fusion is mixture_logprobs:
        conflict = entropy(probs.mean(0).log()) - entropy(probs.log()).mean(0)
    else:
        conflict = -probs.log().mean(0).logsumexp(-1)
    limit = float(conflict.sort().values[N // 2 - 1 : N // 2 + 1].mean())  # between two, not on one
    settled = (conflict <= limit).double()
    assert 0 < settled.sum() < N
    sums, gradients = losses(
        driver, target=KdTarget(forward_kl, fusion, conflict_limit=limit), kd_weight=0.6, ce_weight=0.3
    )
    _, expected = losses(
        driver, target=KdTarget(forward_kl, fusion), kd_weight=0.6 * settled, ce_weight=0.3 + 0.6 * (1 - settled)
    )
    assert_same(gradients, expected)
    torch.testing.assert_close(sums.conflict, conflict.sum())


@each_driver
def test_a_limit_that_nothing_exceeds_changes_nothing(driver):
    limited = KdTarget(forward_kl, mixture_logprobs, conflict_limit=100.0)
    assert_same(losses(driver, target=limited, kd_weight=0.6)[1], losses(driver, kd_weight=0.6)[1])


@each_driver
def test_a_position_without_a_teacher_is_in_no_conflict(driver):
    _, _, _, positions = problem(V, torch.float64)
    absent = torch.arange(N) % 3 != 0
    logprobs = torch.randn(2, N, V, dtype=torch.float64).log_softmax(-1)
    signals = [DenseSignal(p, valid=absent) for p in logprobs]
    limited = KdTarget(forward_kl, mixture_logprobs, conflict_limit=0.0)
    sums, _ = losses(driver, target=limited, signals=signals, kd_weight=1.0)
    torch.testing.assert_close(sums.loss, sums.cross_entropy - _nll_where(~absent, positions))


def _nll_where(condition, positions):
    hidden, head, *_ = problem(V, torch.float64)
    nll = nn.functional.cross_entropy(head(hidden), positions.labels, reduction="none")
    return nll[condition].sum().detach()

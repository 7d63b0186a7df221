"""What the chunked loss holds at once, in buffers of [n V], counted tensor by tensor."""

from functools import partial

import pytest
import torch
from torch import nn

from collegium.fused import chunked, compiled, fused
from collegium.fused.chunked import KdTarget
from collegium.fused.teacher_stats import teacher_stats
from collegium.losses.divergences import forward_kl, generalized_jsd, reverse_kl
from collegium.losses.fusion import geometric_logprobs, mixture_logprobs
from collegium.losses.weighting import Weighting
from collegium.models.head import ProjectionHead
from collegium.signals.contracts import Positions
from collegium.signals.signals import ProjectedSignal
from tests.support.buffers import CHUNK_SIZE, VOCAB_SIZE, WIDTH, BufferCounter


DIVERGENCES = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jsd": partial(generalized_jsd, beta=0.5),
}
FUSIONS = {"mixture": mixture_logprobs, "geometric": geometric_logprobs}


def make_signals(num_teachers, num_positions):
    heads = [nn.Linear(WIDTH, VOCAB_SIZE, bias=False) for _ in range(num_teachers)]
    return [ProjectedSignal(torch.randn(num_positions, WIDTH), head.requires_grad_(False)) for head in heads]


def peak_of_loss(
    num_teachers,
    *,
    driver=chunked.distillation_loss,
    divergence="forward_kl",
    fusion="mixture",
    temperature=1.0,
    num_positions=96,
    train=True,
):
    torch.manual_seed(0)
    hidden = torch.randn(num_positions, WIDTH, requires_grad=True)
    head = nn.Linear(WIDTH, VOCAB_SIZE, bias=False)
    index = torch.arange(num_positions)
    positions = Positions(index, torch.zeros_like(index), torch.zeros_like(index), index)
    signals = make_signals(num_teachers, num_positions)
    with BufferCounter() as counter, torch.set_grad_enabled(train):
        sums = driver(
            hidden,
            ProjectionHead(head, VOCAB_SIZE),
            positions,
            signals,
            Weighting("entropy", "window:8"),
            kd_weight=0.5,
            target=KdTarget(DIVERGENCES[divergence], FUSIONS[fusion], temperature),
            chunk_size=CHUNK_SIZE,
        )
        if train:
            sums.loss.backward()
    return counter.peak


def test_the_counter_counts():
    with BufferCounter() as counter:
        one = torch.ones(CHUNK_SIZE, VOCAB_SIZE)
        two = one + 1
        del one
        three = two + 1
        del two, three
        torch.ones(CHUNK_SIZE, VOCAB_SIZE)
    assert counter.peak == 2.0


@pytest.mark.parametrize("train", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_memory_does_not_grow_with_the_number_of_teachers(divergence, fusion, temperature, train):
    kind = {"divergence": divergence, "fusion": fusion, "temperature": temperature, "train": train}
    one, six = peak_of_loss(1, **kind), peak_of_loss(6, **kind)
    assert one == pytest.approx(six, rel=0.05)


def test_memory_does_not_grow_with_the_number_of_positions():
    assert peak_of_loss(2, num_positions=384) == pytest.approx(peak_of_loss(2, num_positions=96), rel=0.05)


@pytest.mark.parametrize(
    ("kind", "num_buffers"),
    [
        ({}, 5),
        ({"temperature": 2.0}, 6),  # the student's at both temperatures
        ({"fusion": "geometric"}, 6),  # the mixture too, for the conflict
        ({"divergence": "reverse_kl"}, 5),
        ({"divergence": "jsd"}, 9),
    ],
)
def test_number_of_buffers(kind, num_buffers):
    assert peak_of_loss(3, **kind) <= num_buffers + 0.05


@pytest.mark.parametrize("num_teachers", [1, 3, 6])
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("divergence", [*DIVERGENCES, "of a user"])
def test_the_fused_loss_holds_three_buffers(divergence, fusion, num_teachers, monkeypatch):
    # Without a compiler temporaries are as large as a block of rows, here half of one.
    monkeypatch.setattr(compiled, "BLOCK_ELEMENTS", VOCAB_SIZE // 2)
    monkeypatch.setitem(DIVERGENCES, "of a user", lambda student, teacher: forward_kl(student, teacher))
    kind = {"divergence": divergence, "fusion": fusion, "driver": fused.distillation_loss}
    gradient_of_head = WIDTH / CHUNK_SIZE
    for temperature in (1.0, 2.0):
        assert peak_of_loss(num_teachers, temperature=temperature, **kind) <= 3.05 + gradient_of_head


def test_memory_of_the_statistics_is_that_of_one_teacher():
    def peak(num_teachers):
        signals, labels = make_signals(num_teachers, 96), torch.zeros(96, dtype=torch.long)
        with BufferCounter() as counter:
            teacher_stats(signals, labels, chunk_size=CHUNK_SIZE)
        return counter.peak

    assert peak(6) == pytest.approx(peak(1), rel=0.05)
    assert peak(6) <= 5.05

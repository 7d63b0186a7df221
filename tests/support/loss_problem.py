"""A small student with two teachers, for tests of the loss."""

from functools import partial

import torch
from torch import nn

from collegium.fused.chunked import KdTarget
from collegium.losses.divergences import forward_kl, generalized_jsd, reverse_kl, total_variation
from collegium.losses.fusion import mixture_logprobs
from collegium.losses.weighting import Weighting
from collegium.models.head import ProjectionHead
from collegium.signals.contracts import Positions
from collegium.signals.signals import ProjectedSignal


N, D, E = 48, 12, 10


FORMS = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jsd": partial(generalized_jsd, beta=0.4),
    "total_variation": total_variation,
}


def positions_of(labels, window=16):
    index = torch.arange(len(labels))
    return Positions(index, labels, index // window, index % window)


def problem(vocab_size, dtype, *, seed=0, bias=True, padding=0):
    torch.manual_seed(seed)
    head = nn.Linear(D, vocab_size + padding, bias=bias, dtype=dtype)
    hidden = torch.randn(N, D, dtype=dtype)
    teachers = [nn.Linear(E, vocab_size, bias=False, dtype=dtype).requires_grad_(False) for _ in range(2)]
    signals = [
        ProjectedSignal(torch.randn(N, E, dtype=dtype) * 2, ProjectionHead(t, vocab_size)) for t in teachers
    ]
    return hidden, head, signals, positions_of(torch.randint(vocab_size, (N,)))


def run(driver, hidden, head, signals, positions, *, target=None, chunk_size=32, **options):
    """Sums of the loss, and gradients of hidden states and head."""
    hidden = hidden.clone().requires_grad_()
    module = getattr(head, "projection", head)
    module.zero_grad()
    sums = driver(
        hidden,
        head,
        positions,
        signals,
        options.pop("weighting", Weighting("entropy", "window:16", 0.25)),
        target=target or KdTarget(forward_kl, mixture_logprobs),
        kd_weight=options.pop("kd_weight", 0.6),
        chunk_size=chunk_size,
        **options,
    )
    sums.loss.backward()
    return sums, [hidden.grad, *(p.grad.clone() for p in module.parameters())]

"""A small student with two teachers, for tests of the loss."""

import torch
from torch import nn

from collegium.contracts import Positions
from collegium.head import ProjectionHead
from collegium.signals import ProjectedSignal


N, D, E = 48, 12, 10


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

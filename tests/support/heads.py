"""Heads for tests."""

from dataclasses import dataclass

import torch
from torch.nn.functional import linear

from collegium.signals.signals import LinearHead


@dataclass
class WeightHead:
    """A head that is its weight."""

    weight: torch.Tensor

    def __call__(self, hidden):
        return linear(hidden, self.weight)

    def as_linear(self):
        return LinearHead(self.weight, None, len(self.weight))

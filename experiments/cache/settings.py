"""What is compared: ways to keep a teacher, and ways to fill in what was not kept."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from collegium.cache.manifest import CacheSettings
from collegium.fused.completion import Entries, dense_logprobs
from collegium.signals.signals import TopKSignal


FIXED = (8, 16, 32, 64, 128, 256)
THRESHOLDS = (1e-2, 5e-3, 3e-3, 2e-3, 1.5e-3, 1e-3, 7e-4, 5e-4, 3e-4)
DRAWS = (25, 50, 100)


def kept() -> dict[str, CacheSettings]:
    """By name: lists of fixed length, lists above a probability, draws."""
    found = {f"k={k}": CacheSettings(max_kept=k, min_probability=0.0) for k in FIXED}
    found |= {f"p>={t:g}": CacheSettings(max_kept=4096, min_probability=t) for t in THRESHOLDS}
    return found | {f"draws={n}": CacheSettings(mode="sampled", num_samples=n) for n in DRAWS}


Fill = Callable[[TopKSignal, slice, Tensor], Tensor]
"""Log-probabilities over the whole vocabulary, given the student's."""


@dataclass(frozen=True)
class Unigram:
    """A tail in the shape of the corpus's token counts."""

    counts: Tensor

    def __call__(self, signal: TopKSignal, rows: slice, student: Tensor) -> Tensor:
        """As `plain_bucket`, with another shape."""
        return _shaped(signal, rows, self.counts.log().expand_as(student))


def plain_bucket(signal: TopKSignal, rows: slice, student: Tensor) -> Tensor:
    """A bucket as it is usually meant: the student's shape, however probable that makes a token."""
    return _shaped(signal, rows, student)


def _shaped(signal: TopKSignal, rows: slice, shape: Tensor) -> Tensor:
    entries = Entries.of(signal, rows)
    ids = torch.where(entries.listed, entries.ids, entries.ids[:, :1])
    rest = shape.scatter(-1, ids, -torch.inf)
    dense = rest + (entries.tail.log() - rest.logsumexp(-1)).unsqueeze(-1)
    kept_logprobs = torch.where(entries.listed, entries.logprobs, entries.logprobs[:, :1])
    return dense.scatter(-1, ids, kept_logprobs)


def with_tail(tail: str) -> Fill:
    """The package's own."""

    def fill(signal: TopKSignal, rows: slice, student: Tensor) -> Tensor:
        changed = TopKSignal(**{**vars(signal), "tail": tail})
        return dense_logprobs(changed, rows, student)

    return fill

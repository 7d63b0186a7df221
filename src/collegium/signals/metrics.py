"""Metrics as (total, count) pairs, added without synchronising and reduced only when they are logged.

The mean of the means of micro-batches of unequal length is not the mean over tokens; pairs add up to it. Both
members stay tensors on the device until `reduce_means`, so no step waits for a metric.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from collegium.base.digests import sealed_line, unsealed_line
from collegium.base.finite import null_where_unknown


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Mean:
    """A sum and the number of its summands, both scalar tensors."""

    total: Tensor
    count: Tensor

    def __add__(self, other: "Mean") -> "Mean":
        return Mean(self.total + other.total, self.count + other.count)

    def like(self, other: "Mean") -> "Mean":
        """The same numbers in the types and on the device of another."""
        return Mean(self.total.to(other.total), self.count.to(other.count))

    @property
    def value(self) -> float:
        """The mean; NaN where nothing was counted. Waits for the device."""
        count = float(self.count)
        return float(self.total) / count if count else math.nan


class MeanAccumulator:
    """Adds up named means between two log lines."""

    def __init__(self) -> None:
        self._means: dict[str, Mean] = {}
        self._loaded: set[str] = set()

    def add(self, means: Mapping[str, Mean]) -> None:
        """Add one micro-batch."""
        for name, mean in means.items():
            if name in self._loaded:
                self._loaded.remove(name)
                self._means[name] = self._means[name].like(mean)  # so that the sum is rounded as it was
            self._means[name] = self._means[name] + mean if name in self._means else mean

    def document(self) -> dict[str, list[float]]:
        """Sums over all ranks, for a checkpoint. A collective call."""
        return _summed(self._means)

    def load(self, document: Mapping[str, Sequence[float]], device: torch.device) -> None:
        """Go on from sums over all ranks, which one of them takes up."""
        share = float(not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0)
        for name, (total, count) in document.items():
            self._means[name] = Mean(
                *torch.tensor([share * total, share * count], dtype=torch.float64, device=device)
            )
        self._loaded = set(document)

    def pop(self) -> dict[str, float]:
        """Return values over all ranks, and start again. A collective call: every rank must make it."""
        means = self._means
        self._means = {}
        return reduce_means(means)


def reduce_means(means: Mapping[str, Mean]) -> dict[str, float]:
    """Return the values of `means` over all ranks, in one all-reduce; names that nobody counted are left out."""
    return {name: total / count for name, (total, count) in _summed(means).items() if count}


def _summed(means: Mapping[str, Mean]) -> dict[str, list[float]]:
    if not means:
        return {}
    names = sorted(means)
    pairs = torch.stack([torch.stack([means[n].total.double(), means[n].count.double()]) for n in names])
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(pairs)
    return dict(zip(names, pairs.tolist(), strict=True))


def max_over_ranks(value: int) -> int:
    """Return the largest value of any rank. A collective call: every rank must make it."""
    if not (dist.is_available() and dist.is_initialized()):
        return value
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    largest = torch.tensor(value, device=device)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return int(largest)


class JsonlWriter:
    """Appends one JSON object a line; a line torn by a crash is dropped at the next start."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, record: Mapping[str, Any]) -> None:
        """Append `record`; numbers that JSON does not know become null."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(sealed_line(null_where_unknown(record)) + "\n")

    def keep(self, *, up_to_step: int) -> None:
        """Drop torn lines and those after `up_to_step`, as a resumed run writes them again."""
        if not self._path.exists():
            return
        kept = [line for line in read_jsonl(self._path) if line.get("step", 0) <= up_to_step]
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text("".join(sealed_line(line) + "\n" for line in kept), encoding="utf-8")
        temporary.replace(self._path)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Lines of `path` that are as they were written; it is said which are not, and left out.

    Each line carries its digest. Those of earlier versions do not, and are taken as they are. A last line that a
    crash tore is no damage.
    """
    found = _read(path)
    if found.damaged:
        shown = ", ".join(map(str, found.damaged[:5])) + (", ..." if len(found.damaged) > 5 else "")
        _warn(
            f"{path}: {len(found.damaged)} of its lines (line {shown}) are not as they were written and are left "
            "out: curves and weights of teachers lack these steps"
        )
    return found.records


@cache
def _warn(sentence: str) -> None:
    logger.warning("%s", sentence)


class _Lines(NamedTuple):
    """Records of whole lines, and the numbers of damaged ones."""

    records: list[dict[str, Any]]
    damaged: list[int]


def _read(path: Path) -> _Lines:
    whole: dict[int, tuple[dict[str, Any], bool]] = {}
    damaged = []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, 1):
        try:
            if line:
                whole[number] = unsealed_line(line)
        except (ValueError, RecursionError):
            if number < len(lines):
                damaged.append(number)
    if any(is_sealed for _, is_sealed in whole.values()):  # then every line was
        damaged += [number for number, (_, is_sealed) in whole.items() if not is_sealed]
        whole = {number: line for number, line in whole.items() if line[1]}
    return _Lines([record for record, _ in whole.values()], sorted(damaged))

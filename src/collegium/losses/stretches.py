"""Sums of a figure over the stretch of text that each position shares its weights with.

A stretch never crosses a segment. It is the position itself (`token`), `window:W` positions, a whole segment
(`sequence`), or all that came before, fading by 1 - 1/W from one position to the next (`causal:W`). Windows
and sequences must be known whole before their first position is weighted; `causal` needs nothing from ahead,
so it is summed in one pass over chunks of any size, with a carry from each to the next.

A fading sum is a product with a triangle of powers, a block of positions at a time: no loop over tokens, and
n * 256 numbers in memory, whatever n is. The carry keeps it independent of where blocks and chunks end.
"""

import re
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from collegium.signals.contracts import Positions


BLOCK = 256
"""Positions of one triangle."""


def window_groups(
    segments: Int[Tensor, " N"], offsets: Int[Tensor, " N"], window: int | None
) -> Int[Tensor, " N"]:
    """Number, from 0 in reading order, of the stretch of text that each position belongs to.

    A stretch shares its weights and never crosses a segment: it is a whole segment (`window` None)
    or `window` positions of it.
    """
    changed = segments.diff(prepend=segments[:1]) != 0
    if window is not None:
        block = offsets // window
        changed = changed | (block.diff(prepend=block[:1]) != 0)
    return changed.cumsum(0)


def group_sums(values: Float[Tensor, "N c"], groups: Int[Tensor, " N"]) -> Float[Tensor, "N c"]:
    """Sum of each group, at every member."""
    return torch.zeros_like(values).index_add_(0, groups, values)[groups]


@dataclass(frozen=True)
class Carry:
    """State of a fading sum at the positions before a chunk.

    Attributes:
        sums: At the last of them, itself included.
        segment: Its segment.
    """

    sums: Float[Tensor, " c"]
    segment: Int[Tensor, ""]


def fading_sums(
    values: Float[Tensor, "n c"],
    segments: Int[Tensor, " n"],
    decay: float,
    *,
    past_only: bool = False,
    carry: Carry | None = None,
) -> tuple[Float[Tensor, "n c"], Carry | None]:
    """Sum at each t over s <= t of decay^(t - s) values[s], s in the segment of t.

    Args:
        values: Finite; 0 where there is nothing to add.
        segments: Numbers that never fall.
        decay: In [0, 1]; 0 leaves the position alone, 1 forgets nothing.
        past_only: Over s < t instead, of decay^(t - 1 - s): 0 where a segment begins.
        carry: State at the positions before, if they were summed already.

    Returns:
        The sums, and the carry for the positions that follow.
    """
    parts = []
    for block, numbers in zip(values.split(BLOCK), segments.split(BLOCK), strict=True):
        if len(block):
            sums, carry = _fading_block(block, numbers, decay, int(past_only), carry)
            parts.append(sums)
    return torch.cat(parts) if parts else values, carry


def _fading_block(
    values: Tensor, segments: Tensor, decay: float, shift: int, carry: Carry | None
) -> tuple[Tensor, Carry]:
    # sums[t] = sum over s of decay^(t - s - shift) values[s]: a triangle of powers times the values. `last` is the
    # same at the block's last position, itself included, which is all that the next block needs of this one.
    steps = torch.arange(len(values), device=values.device)
    powers = torch.pow(decay, torch.arange(len(values) + 1, device=values.device, dtype=values.dtype))
    distance = steps.unsqueeze(1) - steps - shift  # [b b]
    reaches = (distance >= 0) & (segments.unsqueeze(1) == segments)
    sums = torch.where(reaches, powers[distance.clamp_min(0)], 0.0) @ values
    last = torch.where(segments == segments[-1], powers[len(values) - 1 - steps], 0.0) @ values
    if carry is not None:  # earlier positions fade by one more factor with each step into the block
        carried = torch.where(segments == carry.segment, powers[steps + 1 - shift], 0.0)
        sums = sums + carried.unsqueeze(1) * carry.sums
        last = last + torch.where(segments[-1] == carry.segment, powers[-1], 0.0) * carry.sums
    return sums, Carry(last, segments[-1])


def require_granularity(granularity: str) -> None:
    """See that there is such a granularity.

    Raises:
        ValueError: there is none.
    """
    if not re.fullmatch(r"token|sequence|(window|causal):[1-9]\d*", str(granularity)):
        raise ValueError(f"granularity {granularity!r}: give token, sequence, window:W or causal:W")


class Stretches:
    """Sums over stretches, chunk after chunk in reading order.

    Args:
        positions: All positions of the batch.
        granularity: `token`, `window:W`, `sequence` or `causal:W`.
        past_only: Leave the position itself out of `causal`, for figures that have read its label.

    Attributes:
        groups: Number of each position's stretch, which no chunk may cut; None if chunks may lie anywhere.

    Raises:
        ValueError: there is no such granularity.
    """

    def __init__(self, positions: Positions, granularity: str, *, past_only: bool = False) -> None:
        require_granularity(granularity)
        kind, _, size = granularity.partition(":")
        self.segments = positions.segments
        self.groups: Int[Tensor, " N"] | None = None
        if kind in ("window", "sequence"):
            window = int(size) if kind == "window" else None
            self.groups = window_groups(positions.segments, positions.offsets, window)
        self.past_only = past_only and kind == "causal"
        self._decay = 1.0 - 1.0 / int(size) if kind == "causal" else None
        self._carries: dict[int, Carry | None] = {}

    def sums(self, values: Float[Tensor, "n c"], rows: slice, key: int = 0) -> Float[Tensor, "n c"]:
        """Sum of the stretch of each position.

        Args:
            values: At `rows`; finite.
            rows: Chunks follow one another from the first position on, for each key.
            key: Owner of the values; each has a carry of its own.
        """
        if self._decay is not None:
            sums, self._carries[key] = fading_sums(
                values,
                self.segments[rows],
                self._decay,
                past_only=self.past_only,
                carry=self._carries.get(key),
            )
            return sums
        if self.groups is None:
            return values
        groups = self.groups[rows]
        return group_sums(values, groups - groups[:1])

    def means(self, values: Float[Tensor, " n"], counts: Tensor, rows: slice, key: int = 0) -> Float[Tensor, " n"]:
        """Mean of the values that count, over the stretch of each position; 0 where none does.

        Within `causal`, only positions that count themselves have a mean.
        """
        columns = torch.stack((torch.where(counts, values, 0.0), counts.to(values.dtype)), -1)
        total, count = self.sums(columns, rows, key).unbind(-1)
        return total / count.clamp_min(1.0)

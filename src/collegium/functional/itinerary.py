"""In which chunks the fused loss walks a batch, and what it must know before it starts.

Weights that are shared by a stretch of text need the whole stretch: chunks that cut none are made where a
stretch fits in one; else the weights are made in a pass of their own, which makes teachers' logits twice.
"""

from collections.abc import Sequence
from typing import cast

from jaxtyping import Int
from torch import Tensor

from collegium.contracts import Positions, TeacherSignal, TeacherStats, TopKSignal
from collegium.functional.chunked import KdTarget, chunks, require_captured, weigh
from collegium.functional.divergences import forward_kl
from collegium.functional.fusion import mixture_logprobs
from collegium.functional.listed import all_listed
from collegium.functional.weighting import GivenWeights, Weighting


Listed = tuple[Sequence[TopKSignal], TeacherStats]


def order(
    positions: Positions,
    signals: Sequence[TeacherSignal],
    weighting: Weighting | GivenWeights,
    target: KdTarget,
    chunk_size: int,
) -> tuple[Weighting | GivenWeights, Tensor | None, list[slice], Listed | None]:
    """In which chunks to walk, what must be known before, and the lists if teachers are nothing else."""
    spans = list(chunks(len(positions), chunk_size))
    linear = target.divergence is forward_kl and target.fusion is mixture_logprobs
    if linear and target.conflict_limit is None and all_listed(signals):
        lists = cast(Sequence[TopKSignal], signals)
        for signal in lists:
            require_captured(signal, target.temperature)
        # Weights are known without any logits.
        stats, weights = weigh(signals, positions, weighting, chunk_size=max(1, len(positions)))
        return GivenWeights(weights, stats.valid), None, spans, (lists, stats)
    groups = weighting.groups(positions) if isinstance(weighting, Weighting) and signals else None
    if groups is None:
        return weighting, None, spans, None
    aligned = whole_groups(groups, chunk_size)
    if aligned is None:  # a stretch longer than a chunk: its weights are needed before its first token
        stats, weights = weigh(signals, positions, weighting, chunk_size=chunk_size)
        return GivenWeights(weights, stats.valid), groups, spans, None
    return weighting, groups, aligned, None


def whole_groups(groups: Int[Tensor, " N"], chunk_size: int) -> list[slice] | None:
    """Chunks of at most `chunk_size` positions that cut no group; None if a group is longer.

    Reads the sizes of the groups on the host, once a batch.
    """
    sizes: list[int] = groups.unique_consecutive(return_counts=True)[1].tolist()
    if not sizes:
        return [slice(0, 0)]
    if max(sizes) > chunk_size:
        return None
    spans, start, stop = [], 0, 0
    for size in sizes:
        if stop + size - start > chunk_size:
            spans.append(slice(start, stop))
            start = stop
        stop += size
    return [*spans, slice(start, stop)]

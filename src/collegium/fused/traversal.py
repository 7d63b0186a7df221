"""In which chunks the fused loss walks a batch, and what it must know before it starts.

Weights that are shared by a stretch of text need the whole stretch: chunks that cut none are made where a
stretch fits in one; else the weights are made in a pass of their own, which makes teachers' logits twice.
"""

from collections.abc import Callable, Sequence
from typing import cast

from jaxtyping import Int
from torch import Tensor

from collegium.fused.chunked import KdTarget
from collegium.fused.listed import all_listed
from collegium.fused.teacher_stats import TeacherWeighting, require_captured, weigh
from collegium.losses.chunks import chunks
from collegium.losses.divergences import forward_kl
from collegium.losses.fusion import mixture_logprobs
from collegium.losses.weighting import GivenScores, GivenWeights, Scorer, Weighting
from collegium.signals.contracts import Positions, TeacherStats
from collegium.signals.signals import TeacherSignal, TopKSignal


Listed = tuple[Sequence[TopKSignal], TeacherStats]


def order(
    positions: Positions,
    signals: Sequence[TeacherSignal],
    weighting: TeacherWeighting,
    target: KdTarget,
    *,
    student: Callable[[slice], Tensor],
    chunk_size: int,
) -> tuple[Scorer | GivenWeights, list[slice], Listed | None]:
    """How to weigh, in which chunks to walk, and the lists if teachers are nothing else.

    Weights come from a pass of their own where they compare all teachers, or where a stretch of text is
    longer than a chunk, so that they are needed before its first token.
    """
    spans = list(chunks(len(positions), chunk_size))
    linear = target.divergence is forward_kl and target.fusion is mixture_logprobs
    listed = linear and target.conflict_limit is None and all_listed(signals)
    if isinstance(weighting, GivenScores | GivenWeights) and not listed:
        return weighting, spans, None
    if isinstance(weighting, Weighting) and not listed:
        scorer = weighting.scorer(positions)
        groups = scorer.stretches.groups if signals else None
        aligned = spans if groups is None else whole_groups(groups, chunk_size)
        if aligned is not None:
            return scorer, aligned, None
    if listed:
        for signal in signals:
            require_captured(cast(TopKSignal, signal), target.temperature)
    stats, weights = weigh(
        signals, positions, weighting, student=student, temperature=target.temperature, chunk_size=chunk_size
    )
    lists = (cast(Sequence[TopKSignal], signals), stats) if listed else None
    return GivenWeights(weights, stats.valid), spans, lists


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

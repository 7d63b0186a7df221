"""Plan of the fused loss's walk over a batch: its chunks, and what must be known before it starts.

No gradient is derived here; it is decided which of three ways a chunk's target is made, so that each logit of a
teacher is made as seldom as possible:

    weights follow from each teacher's own figures,
        or are given                                         one walk: scores and mixing together
    ... of a stretch of text longer than a chunk,
        or from all teachers compared                        two walks: figures and weights, then the loss
    all teachers are lists and the divergence is the         two walks, of which the first reads lists alone:
        forward KL to their mixture                          no logit of a teacher is ever made

Buffers over time, with two walks (`=` alive; a row of [n V] is one chunk's):

    walk          figures and weights (`teacher_stats`)      the loss (`fused`)
    teachers      [n V] =|=|=|=|=|=|=|                       =|=|=|=|=|=|=|
    student       [n V]                                      =================
    figures       [N M]      ================================================> logged
    weights       [N M]                       ===============================> logged

Weights that are shared by a stretch of text need the whole stretch: chunks that cut none are made where a stretch
fits in one; else the weights are made in a walk of their own, which makes teachers' logits twice.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

from jaxtyping import Int
from torch import Tensor

from collegium.fused.chunked import KdTarget
from collegium.fused.completion import all_listed
from collegium.fused.teacher_stats import TeacherWeighting, require_captured, weigh
from collegium.losses.chunks import chunks
from collegium.losses.divergences import forward_kl
from collegium.losses.fusion import mixture_logprobs
from collegium.losses.weighting import GivenScores, GivenWeights, Scorer, Weighting
from collegium.signals.contracts import Positions, TeacherStats
from collegium.signals.signals import TeacherSignal, TopKSignal


class Lists(NamedTuple):
    """Teachers that are nothing but lists, and what their first walk found out."""

    signals: Sequence[TopKSignal]
    stats: TeacherStats


class Traversal(NamedTuple):
    """A walk over a batch.

    Attributes:
        weighting: Weights, or what scores each teacher from its own figures.
        spans: The chunks, in order.
        lists: The teachers, where all of them are lists that need no buffer.
    """

    weighting: Scorer | GivenWeights
    spans: list[slice]
    lists: Lists | None = None


def plan_traversal(
    positions: Positions,
    signals: Sequence[TeacherSignal],
    weighting: TeacherWeighting,
    target: KdTarget,
    *,
    student: Callable[[slice], Tensor],
    chunk_size: int,
) -> Traversal:
    """Choose the way, and do the first of two walks where there are two.

    Args:
        positions: The batch's.
        signals: One per teacher.
        weighting: Teacher weights, or how they follow from the teachers' statistics.
        target: Divergence, fusion and temperature.
        student: Makes the student's logits of some rows; weights may follow from its gradient.
        chunk_size: Positions of a chunk at most.
    """
    spans = list(chunks(len(positions), chunk_size))
    # Only the forward KL to a mixture is linear in the target, which is what lets lists be added where they are.
    linear = target.divergence is forward_kl and target.fusion is mixture_logprobs
    # A limit on the conflict is judged from the finished target, which lists never make as a whole.
    listed = linear and target.conflict_limit is None and all_listed(signals)
    if isinstance(weighting, GivenScores | GivenWeights) and not listed:
        return Traversal(weighting, spans)
    if isinstance(weighting, Weighting) and not listed:
        scorer = weighting.scorer(positions)
        groups = scorer.stretches.groups if signals else None
        aligned = spans if groups is None else whole_groups(groups, chunk_size)
        if aligned is not None:
            return Traversal(scorer, aligned)
    if listed:
        for signal in signals:
            require_captured(cast(TopKSignal, signal), target.temperature)
    stats, weights = weigh(
        signals, positions, weighting, student=student, temperature=target.temperature, chunk_size=chunk_size
    )
    lists = Lists(cast(Sequence[TopKSignal], signals), stats) if listed else None
    return Traversal(GivenWeights(weights, stats.valid), spans, lists)


def whole_groups(groups: Int[Tensor, " N"], chunk_size: int) -> list[slice] | None:
    """Chunks of at most `chunk_size` positions that cut no group; None if a group is longer.

    Reads the sizes of the groups on the host, once a batch.
    """
    sizes: list[int] = groups.unique_consecutive(return_counts=True)[1].tolist()
    if not sizes:
        # A batch that predicts nothing still walks once, so that every parameter has a gradient of 0.
        return [slice(0, 0)]
    if max(sizes) > chunk_size:
        return None
    spans = []
    start = 0
    stop = 0
    # Greedy is best here: a group that does not fit any more begins the next chunk.
    for size in sizes:
        if stop + size - start > chunk_size:
            spans.append(slice(start, stop))
            start = stop
        stop += size
    return [*spans, slice(start, stop)]

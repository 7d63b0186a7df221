"""The plan of a batch on its device: from a worker's arrays to the rows that are carried to each position."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from collegium.alignment.carry import CarryRows
from collegium.alignment.plan import AlignmentPlan
from collegium.signals.contracts import Batch, Positions
from collegium.signals.own_vocabulary import AlignedSpans


READ_AHEAD = "cached/"
"""Prefix of the tensors in a plan that the teacher itself read ahead of its own blocks."""


def tensors_of(plan: AlignmentPlan) -> dict[str, Tensor]:
    """Turn a plan into the tensors that travel in a batch."""
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in vars(plan).items()}


class BatchPlan:
    """An `AlignmentPlan` as tensors; `stored` is on the device."""

    def __init__(self, stored: Mapping[str, Tensor]) -> None:
        self._stored = stored
        self.kinds: Int[Tensor, " F"] = stored["kinds"]
        self.teacher_segments: Int[Tensor, " U"] = stored["teacher_segments"]

    def batch(self, name: str) -> Batch:
        """Make the batch of the same text in the teacher's tokens, with the tensors that were read ahead of it."""
        stored = self._stored
        own = Batch.of_text(stored["input_ids"], stored["attention_mask"], stored["position_ids"])
        cached = {key.removeprefix(READ_AHEAD): v for key, v in stored.items() if key.startswith(READ_AHEAD)}
        return replace(own, stored={name: cached}) if cached else own

    def rows(
        self,
        places: Int[Tensor, " N"],
        labels: Int[Tensor, " N"],
        tokens: Int[Tensor, " E"],
        follows: Int[Tensor, " E"],
    ) -> CarryRows:
        """Find the teacher's rows from which the distributions at these places are made.

        Args:
            places: Some of the F positions.
            labels: The student's next token there.
            tokens: Tokens of the entries in the map of vocabularies.
            follows: Tokens that follow them there.
        """
        main = self._stored["main"][places]
        before = self._stored["before"][places]
        chain = self._stored["chain"][places]
        first, last = self._stored["entries"][:, places]
        counts = last - first
        place = torch.repeat_interleave(torch.arange(len(places), device=places.device), counts)
        within = torch.arange(len(place), device=places.device) - (counts.cumsum(0) - counts)[place]
        entry = first[place] + within
        return CarryRows(main, before, chain, labels, place, tokens[entry], follows[entry])

    @property
    def one_to_one(self) -> Bool[Tensor, " F"]:
        """Mark where the student's next token and one of the teacher's are the same bytes."""
        own = self._stored["student_spans"]
        other = self._stored["teacher_spans"]
        size = len(self._stored["span_bytes"])
        # One more than there are spans: -1, in no span, indexes the last.
        alone = torch.ones(size + 1, dtype=torch.bool, device=own.device)
        alone[-1] = False
        for spans in (own, other):
            alone[:-1] &= torch.bincount(spans[spans >= 0], minlength=size) == 1
        return alone[own] & (self._stored["main"] >= 0)

    def spans(self, places: Int[Tensor, " N"] | None = None) -> AlignedSpans:
        """Return the common stretches, at these places of the student's, or at all of them."""
        student = self._stored["student_spans"]
        return AlignedSpans(
            student if places is None else student[places],
            self._stored["teacher_spans"],
            self._stored["span_bytes"],
        )


def per_student_token(entropy: Float[Tensor, " U"], spans: AlignedSpans) -> Float[Tensor, " N"]:
    """Divide the sum of a teacher's entropies over each span by the number of the student's tokens there.

    The result is NaN outside of spans, and in a span of which the teacher predicts nothing.

    Both count the same bytes, so this is the entropy per byte times the student's bytes per token: teachers
    with longer and shorter tokens are compared in one unit.
    """
    num_spans = len(spans.num_bytes)
    of_teacher = spans.teacher >= 0
    of_student = spans.student >= 0
    total = entropy.new_zeros(num_spans).index_add_(0, spans.teacher[of_teacher], entropy[of_teacher])
    tokens = torch.bincount(spans.student[of_student], minlength=num_spans).clamp_min(1)
    unread = torch.bincount(spans.teacher[of_teacher], minlength=num_spans) == 0
    mean = (total / tokens).masked_fill(unread, torch.nan)
    mean = torch.nn.functional.pad(mean, (0, 1), value=torch.nan)  # -1, in no span, indexes the last
    return mean[spans.student]


def places_of(batch: Batch, positions: Positions) -> Int[Tensor, " N"]:
    """Number these positions among all that have a next token in their segment."""
    starts = (batch.position_ids == 0) | ~batch.attention_mask
    follows = torch.nn.functional.pad(~starts[:, 1:], (0, 1))
    return (follows.flatten().cumsum(0) - 1)[positions.index]


def segment_numbers(batch: Batch) -> Int[Tensor, " segments"]:
    """Number the segments of text as `Positions.segments` does, which counts those of padding too."""
    starts = (batch.position_ids == 0).flatten()
    return starts.cumsum(0)[starts & batch.attention_mask.flatten()]


def without_entries(rows: CarryRows) -> CarryRows:
    """Return the same rows with nothing taken from the cut before."""
    none = rows.entry_rows[:0]
    return replace(
        rows, before=torch.full_like(rows.before, -1), entry_rows=none, entry_tokens=none, entry_follows=none
    )


def without(rows: CarryRows, absent: Bool[Tensor, " N"]) -> CarryRows:
    """Return the same rows with nothing carried to some places."""
    kept = ~absent[rows.entry_rows]
    return CarryRows(
        rows.main.masked_fill(absent, -1),
        rows.before.masked_fill(absent, -1),
        rows.chain.masked_fill(absent, 0),
        rows.labels,
        rows.entry_rows[kept],
        rows.entry_tokens[kept],
        rows.entry_follows[kept],
    )

"""The plan of a batch on its device: from the arrays that a worker made to what is carried to which position."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from collegium.alignment.carry import CarryRows
from collegium.alignment.plan import AlignmentPlan
from collegium.signals.contracts import AlignedSpans, Batch, Positions


CACHED = "cached/"
"""What a cache says of a teacher's blocks is stored under its own names with this before them."""


def tensors_of(plan: AlignmentPlan) -> dict[str, Tensor]:
    """The plan as it travels in a batch."""
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in vars(plan).items()}


class BatchPlan:
    """See the module and `AlignmentPlan`; `stored` is on the device."""

    def __init__(self, stored: Mapping[str, Tensor]) -> None:
        self._stored = stored
        self.kinds: Int[Tensor, " F"] = stored["kinds"]
        self.teacher_segments: Int[Tensor, " U"] = stored["teacher_segments"]

    def batch(self, name: str) -> Batch:
        """The same text as the teacher's tokens, with what was read of it."""
        stored = self._stored
        own = Batch.of_text(stored["input_ids"], stored["attention_mask"], stored["position_ids"])
        cached = {key.removeprefix(CACHED): v for key, v in stored.items() if key.startswith(CACHED)}
        return replace(own, stored={name: cached}) if cached else own

    def rows(
        self,
        places: Int[Tensor, " N"],
        labels: Int[Tensor, " N"],
        tokens: Int[Tensor, " E"],
        follows: Int[Tensor, " E"],
    ) -> CarryRows:
        """Where the distributions at these places come from.

        Args:
            places: Which of the F positions.
            labels: The student's next token there.
            tokens: Of the map of vocabularies.
            follows: Likewise.
        """
        main, before, chain = (self._stored[name][places] for name in ("main", "before", "chain"))
        first, last = self._stored["entries"][:, places]
        counts = last - first
        place = torch.repeat_interleave(torch.arange(len(places), device=places.device), counts)
        within = torch.arange(len(place), device=places.device) - (counts.cumsum(0) - counts)[place]
        entry = first[place] + within
        return CarryRows(main, before, chain, labels, place, tokens[entry], follows[entry])

    @property
    def one_to_one(self) -> Bool[Tensor, " F"]:
        """Where the student's next token and one of the teacher's are the same bytes."""
        own, other = self._stored["student_spans"], self._stored["teacher_spans"]
        size = len(self._stored["span_bytes"])
        alone = torch.ones(size + 1, dtype=torch.bool, device=own.device)  # the last is what -1 points at
        alone[-1] = False
        for spans in (own, other):
            alone[:-1] &= torch.bincount(spans[spans >= 0], minlength=size) == 1
        return alone[own] & (self._stored["main"] >= 0)

    def spans(self, places: Int[Tensor, " N"] | None = None) -> AlignedSpans:
        """Common stretches, at these places of the student's, or all of them."""
        student = self._stored["student_spans"]
        return AlignedSpans(
            student if places is None else student[places],
            self._stored["teacher_spans"],
            self._stored["span_bytes"],
        )


def per_student_token(entropy: Float[Tensor, " U"], spans: AlignedSpans) -> Float[Tensor, " N"]:
    """Sum of a teacher's entropies over each span, divided by the student's tokens there.

    NaN in no span, and in one of which the teacher predicts nothing.

    Both count the same bytes, so this is the entropy per byte times the student's bytes per token: teachers
    with longer and shorter tokens are compared in one unit.
    """
    num_spans = len(spans.num_bytes)
    of_teacher, of_student = spans.teacher >= 0, spans.student >= 0
    total = entropy.new_zeros(num_spans).index_add_(0, spans.teacher[of_teacher], entropy[of_teacher])
    tokens = torch.bincount(spans.student[of_student], minlength=num_spans).clamp_min(1)
    unread = torch.bincount(spans.teacher[of_teacher], minlength=num_spans) == 0
    mean = (total / tokens).masked_fill(unread, torch.nan)
    mean = torch.nn.functional.pad(mean, (0, 1), value=torch.nan)  # the last is what -1 points at
    return mean[spans.student]


def places_of(batch: Batch, positions: Positions) -> Int[Tensor, " N"]:
    """Which of the positions with a next token in their segment these are."""
    starts = (batch.position_ids == 0) | ~batch.attention_mask
    follows = torch.nn.functional.pad(~starts[:, 1:], (0, 1))
    return (follows.flatten().cumsum(0) - 1)[positions.index]


def segment_numbers(batch: Batch) -> Int[Tensor, " segments"]:
    """Number of each segment of text, as `Positions.segments` counts them with those of padding."""
    starts = (batch.position_ids == 0).flatten()
    return starts.cumsum(0)[starts & batch.attention_mask.flatten()]


def without_entries(rows: CarryRows) -> CarryRows:
    """The same with nothing taken from the cut before."""
    none = rows.entry_rows[:0]
    return replace(
        rows, before=torch.full_like(rows.before, -1), entry_rows=none, entry_tokens=none, entry_follows=none
    )


def without(rows: CarryRows, absent: Bool[Tensor, " N"]) -> CarryRows:
    """The same with nothing carried to some places."""
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

"""Stretches of text that two models with different tokenizers have both predicted in full.

Between two places where both tokenizers have cut, each model says how probable the text in between is. What
is compared there needs the rows of either model that predict it, and to know which stretch follows at once.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from collegium.signals.own_vocabulary import AlignedSpans


@dataclass(frozen=True)
class CommonSpans:
    """G spans in reading order, with rows of student and teacher.

    Attributes:
        first: Student row that predicts the first token of each.
        last: Likewise the last token.
        own_first: Teacher row that predicts the first token of each.
        own_last: Likewise the last token.
        adjoins: Whether the next of these spans follows at once, in rows of both and in the same segment: then
            its first rows are those that predict from after this one.
        of_student: Span of each student row; -1 in none of these.
        of_teacher: Span of each teacher row; -1 in none of these.
    """

    first: Int[Tensor, " G"]
    last: Int[Tensor, " G"]
    own_first: Int[Tensor, " G"]
    own_last: Int[Tensor, " G"]
    adjoins: Bool[Tensor, " G"]
    of_student: Int[Tensor, " N"]
    of_teacher: Int[Tensor, " U"]

    def __len__(self) -> int:
        return len(self.first)


def common_spans(
    spans: AlignedSpans,
    segments: Int[Tensor, " N"],
    *,
    usable: Bool[Tensor, " N"] | None = None,
    own_usable: Bool[Tensor, " U"] | None = None,
) -> CommonSpans:
    """The spans of which both models predict every token.

    Args:
        spans: Where the tokenizations meet.
        segments: Segment of each student row; no two spans of different ones adjoin.
        usable: Student rows that may be read; a span with any other is left out. None: all.
        own_usable: Likewise of the teacher.
    """
    num_spans = len(spans.num_bytes)
    first, last, kept = _extent(spans.student, num_spans, usable)
    own_first, own_last, own_kept = _extent(spans.teacher, num_spans, own_usable)
    number = (kept & own_kept).nonzero().squeeze(-1)  # of the kept ones among all
    place = spans.student.new_full((num_spans + 1,), -1)  # the last is what -1 points at
    place[number] = torch.arange(len(number), device=number.device)
    segment = segments[first[number]]
    adjoins = torch.zeros_like(number, dtype=torch.bool)
    first, last, own_first, own_last = (rows[number] for rows in (first, last, own_first, own_last))
    adjoins[:-1] = (
        (segment[1:] == segment[:-1]) & (first[1:] == last[:-1] + 1) & (own_first[1:] == own_last[:-1] + 1)
    )
    return CommonSpans(first, last, own_first, own_last, adjoins, place[spans.student], place[spans.teacher])


def _extent(
    of_row: Int[Tensor, " R"], num_spans: int, usable: Bool[Tensor, " R"] | None
) -> tuple[Int[Tensor, " G"], Int[Tensor, " G"], Bool[Tensor, " G"]]:
    """First and last row of each span, and whether it has rows, all of them usable."""
    rows = (of_row >= 0).nonzero().squeeze(-1)
    span = of_row[rows]
    first = of_row.new_full((num_spans,), len(of_row)).scatter_reduce_(0, span, rows, "amin")
    last = of_row.new_full((num_spans,), -1).scatter_reduce_(0, span, rows, "amax")
    kept = last >= 0
    if usable is not None:
        kept[span[~usable[rows]]] = False
    return first, last, kept

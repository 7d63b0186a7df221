"""ALM: the text of a chunk is as probable to the student as to the teacher, whatever their tokens."""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from collegium.base.schedule import Schedule
from collegium.fused.teacher_stats import teacher_stats
from collegium.losses.cross_tokenizer import binary_kl, chunk_of_spans, label_and_boundary, sum_by
from collegium.report.metric_names import COMPARED
from collegium.signals.contracts import Capability
from collegium.signals.metrics import Mean
from collegium.signals.own_vocabulary import OwnView
from collegium.signals.signals import TopKSignal
from collegium.training.terms.cross_tokenizer import CrossTokenizerTerm, compared, spans_of
from collegium.training.terms.own_views import (
    StudentRows,
    concatenated,
    is_trivial,
    teacher_figures,
    vocab_size_of_signal,
)


class AlmTerm(CrossTokenizerTerm):
    """Approximate likelihood matching: the text of a chunk is as probable to the student as to the teacher.

    arXiv:2503.20083. A chunk is one stretch, or several until the teacher finds a token boundary likely behind
    them; both probabilities are multiplied by that of the boundary, so that neither says which tokens would
    have gone on ("outcome chunk debiasing"). Where no stretch follows at once there is nothing behind. A
    teacher with the student's tokenizer has no such bias, and one that gives lists does not know the boundary:
    with these each stretch is a chunk and its probability is left as it is.

    Args:
        teacher_names: See `CrossTokenizerTerm`.
        tau: Both probabilities are taken to the power 1 / tau.
        threshold: Probability of a boundary that ends a chunk.
        boundaries: Ids of the student's tokens that begin with a boundary; and of each teacher's, None for one
            with the student's tokenizer. None: no debiasing.
        importance: See `CrossTokenizerTerm`.
        weight: See `CrossTokenizerTerm`.
    """

    need = frozenset({Capability.SAMPLES})

    def __init__(
        self,
        teacher_names: Sequence[str],
        *,
        tau: float = 100.0,
        threshold: float = 0.1,
        boundaries: tuple[Int[Tensor, " K"], Sequence[Int[Tensor, " L"] | None]] | None = None,
        importance: Sequence[float] | None = None,
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(teacher_names, importance=importance, weight=weight)
        self.tau = tau
        self.threshold = threshold
        own, theirs = boundaries or (None, [None] * len(self.teacher_names))
        self.register_buffer("boundary", own, persistent=False)
        for m, ids in enumerate(theirs):
            self.register_buffer(f"boundary_{m}", ids, persistent=False)

    def of_teacher(self, m: int, student: StudentRows, view: OwnView) -> tuple[Tensor, Mapping[str, Mean]]:
        """See `CrossTokenizerTerm`."""
        theirs = None if is_trivial(view) else cast(Tensor | None, getattr(self, f"boundary_{m}"))
        own_label, own_boundary = self._teacher(student, view, theirs)
        usable = ~own_label.isnan()
        if view.signal.valid is not None:
            usable = usable & view.signal.valid
        spans = spans_of(student, view, usable)
        debias = theirs is not None and not isinstance(view.signal, TopKSignal)
        label, boundary = self._student(student, cast(Tensor, self.boundary) if debias else None)

        behind, own_behind = (rows.roll(-1) for rows in (spans.first, spans.own_first))
        own_end = own_boundary[own_behind].masked_fill(~spans.adjoins, torch.nan)
        chunk = chunk_of_spans(own_end, spans.adjoins, self.threshold)
        num_chunks = int(chunk[-1]) + 1 if len(chunk) else 0
        chunk_of = torch.nn.functional.pad(chunk, (0, 1), value=-1)  # the last is what -1 points at
        ends = torch.ones_like(spans.adjoins)
        ends[:-1] = chunk[1:] != chunk[:-1]
        known = ends & ~own_end.isnan()
        of_student, of_teacher = (
            sum_by(values, chunk_of[of_row], num_chunks) + sum_by(end[known], chunk[known], num_chunks)
            for values, of_row, end in (
                (label, spans.of_student, boundary[behind]),
                (own_label, spans.of_teacher, own_end),
            )
        )
        value = binary_kl(of_student, of_teacher, self.tau).sum()
        return value, {COMPARED: compared(num_chunks, student)}

    def _student(self, student: StudentRows, boundary: Tensor | None) -> tuple[Tensor, Tensor]:
        """Log-probability of each label and of a boundary."""
        labels = student.positions.labels
        each = torch.arange(len(student.hidden), device=student.hidden.device)

        def figures(rows: slice) -> tuple[Tensor, ...]:
            return label_and_boundary(student.logprobs(each[rows]), labels[rows], boundary)

        label, of_boundary = concatenated(figures, student.chunks(len(each)))
        return label, of_boundary

    def _teacher(
        self, student: StudentRows, view: OwnView, boundary: Tensor | None
    ) -> tuple[Float[Tensor, " U"], Float[Tensor, " U"]]:
        """Likewise of the teacher, at its rows; NaN where it says nothing."""
        signal = view.signal
        if isinstance(signal, TopKSignal):
            stats = teacher_stats([signal], view.labels, chunk_size=student.chunk_size)
            label = (-stats.cross_entropy).masked_fill(~stats.valid, torch.nan).squeeze(-1)
            return label, torch.full_like(label, torch.nan)
        each = torch.arange(len(view.labels), device=view.labels.device)
        parts = [
            teacher_figures(signal, each[rows], view.labels, boundary)
            for rows in student.chunks(len(each), vocab_size_of_signal(signal))
        ]
        label, of_boundary = (torch.cat(part) for part in zip(*parts, strict=True))
        return label, of_boundary

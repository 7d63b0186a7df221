"""DSKD: each model's hidden states made into the other's, and read by the other's head (arXiv:2406.17328)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from collegium.base.schedule import Schedule
from collegium.losses.cross_model_attention import attend, frozen, keys_of, scaled_by_segment
from collegium.losses.divergences import forward_kl
from collegium.losses.precision import full_precision
from collegium.report.metric_names import PROJECTED_ACCURACY, PROJECTED_CROSS_ENTROPY
from collegium.signals.metrics import Mean
from collegium.signals.own_vocabulary import OwnView
from collegium.signals.signals import ProjectedSignal
from collegium.training.terms.cross_tokenizer import CrossTokenizerTerm
from collegium.training.terms.own_views import (
    StudentRows,
    softened,
    summed,
    teacher_logprobs,
    vocab_size_of_signal,
)


Embed = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class _Side:
    """One model at its rows: what attends, what is attended to, and in which segments."""

    index: Float[Tensor, "R K"]
    values: Float[Tensor, "R W"]
    segments: Int[Tensor, " R"]

    def read(self, other: "_Side", rows: slice) -> Float[Tensor, "n W"]:
        """Values of the other side at some of these rows."""
        mine = self.segments[rows]
        keys = keys_of(self.segments[rows], other.segments)
        with torch.autocast(self.index.device.type, enabled=False):
            return attend(self.index[rows], other.index[keys], other.values[keys], mine, other.segments[keys])

    def meets(self, other: "_Side") -> Tensor:
        """Rows whose segment has rows of the other side."""
        return torch.isin(self.segments, other.segments)


class _InStudentSpace(NamedTuple):
    """Cross-entropy and KL in the student's space; how often its labels are predicted, and how well."""

    loss: Tensor
    right: Tensor
    cross_entropy: Tensor


class DualSpaceTerm(CrossTokenizerTerm):
    """Dual-space distillation with cross-model attention, as in the official code.

    With teacher states made the student's by attention and read by the student's frozen head: the cross-entropy
    of its labels (which trains the projections), and where these are predicted right the KL of the student to
    them. With student states made the teacher's and read by the teacher's head: the KL to the teacher. All are
    sums over rows at one temperature, without its square.

    Embeddings and teacher states are divided by the standard deviation of their segment, not of the batch.

    Args:
        teacher_names: See `CrossTokenizerTerm`.
        student_size: Widths of the student's embeddings and hidden states.
        teacher_sizes: Width of each teacher's embeddings and hidden states.
        embeds: Input embeddings of each teacher that does not bring its own view.
        temperature: Of both KLs; the official one is 2.
        importance: See `CrossTokenizerTerm`.
        weight: See `CrossTokenizerTerm`.
    """

    def __init__(
        self,
        teacher_names: Sequence[str],
        student_size: tuple[int, int],
        teacher_sizes: Sequence[int],
        *,
        embeds: Sequence[Embed | None] | None = None,
        temperature: float = 2.0,
        importance: Sequence[float] | None = None,
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(teacher_names, importance=importance, weight=weight)
        self.temperature = temperature
        self._embeds = list(embeds or [None] * len(self.teacher_names))
        embedded, hidden = student_size
        self.projections = nn.ModuleList(
            nn.ModuleDict(
                {
                    "query": nn.Linear(2 * embedded, 2 * size),
                    "t2s": nn.Linear(size, hidden),
                    "s2t": nn.Linear(hidden, size),
                }
            )
            for size in teacher_sizes
        )

    def of_teacher(self, m: int, student: StudentRows, view: OwnView) -> tuple[Tensor, Mapping[str, Mean]]:
        """See `CrossTokenizerTerm`."""
        name = self.teacher_names[m]
        signal = view.signal
        embed = view.embed or self._embeds[m]
        if not isinstance(signal, ProjectedSignal) or embed is None or student.embed is None:
            raise ValueError(
                f"teacher {name!r} gives no hidden states with input embeddings, as kind: dskd needs them: run it "
                "here (kind: local, cached: false), or use kind: uld, gold or alm"
            )
        usable = signal.hidden.isfinite().all(-1)
        if signal.valid is not None:
            usable = usable & signal.valid
        rows = usable.nonzero().squeeze(-1)
        mine, theirs = self._sides(m, student, view, signal.hidden[rows], embed, rows)
        to_student = self._teacher_to_student(student, mine, theirs)
        value = self._student_to_teacher(signal, rows, student, mine, theirs)
        count = mine.meets(theirs).sum()
        logged = {
            PROJECTED_ACCURACY: Mean(to_student.right, count),
            PROJECTED_CROSS_ENTROPY: Mean(to_student.cross_entropy, count),
        }
        return to_student.loss + value, logged

    def _sides(
        self, m: int, student: StudentRows, view: OwnView, hidden: Tensor, embed: Embed, rows: Tensor
    ) -> tuple[_Side, _Side]:
        """Student and teacher."""
        assert student.embed is not None, "see of_teacher"
        projections = cast(nn.ModuleDict, self.projections[m])
        dtype = full_precision(student.hidden).dtype
        with torch.no_grad():
            inputs = student.embed(student.inputs)
            targets = student.embed(student.positions.labels)
            index = torch.cat([inputs, targets], -1).to(dtype)
            segments = view.segments[rows]
            number, places = torch.unique_consecutive(segments, return_inverse=True)
            own_targets = embed(view.labels[rows])
            own_index, own_targets, hidden = (
                scaled_by_segment(states.to(dtype), places, len(number))
                for states in (torch.cat([embed(view.inputs[rows]), own_targets], -1), own_targets, hidden)
            )
        query = projections["query"](index)
        to_teacher = projections["s2t"](student.hidden)
        to_student = projections["t2s"](hidden + own_targets)
        return (
            _Side(full_precision(query), full_precision(to_teacher), student.positions.segments),
            _Side(own_index, full_precision(to_student), segments),
        )

    def _teacher_to_student(self, student: StudentRows, mine: _Side, theirs: _Side) -> "_InStudentSpace":
        """Compare in the student's space."""
        labels = student.positions.labels
        met = mine.meets(theirs)
        each = torch.arange(len(labels), device=labels.device)

        def of_rows(rows: slice) -> _InStudentSpace:
            logits = frozen(student.head, mine.read(theirs, rows).to(student.hidden.dtype))
            logprobs = softened(logits, 1.0)
            cross_entropy = -logprobs.gather(-1, labels[rows].unsqueeze(-1)).squeeze(-1)
            right = met[rows] & (logits.argmax(-1) == labels[rows])
            target = softened(logits.detach(), self.temperature)
            divergence = forward_kl(student.logprobs(each[rows], self.temperature), target)
            cross_entropy = cross_entropy.masked_fill(~met[rows], 0.0).sum()
            loss = cross_entropy + divergence.masked_fill(~right, 0.0).sum()
            return _InStudentSpace(loss, right.sum(), cross_entropy.detach())

        return _InStudentSpace(*summed(of_rows, student.chunks(len(labels))))

    def _student_to_teacher(
        self, signal: ProjectedSignal, rows: Tensor, student: StudentRows, mine: _Side, theirs: _Side
    ) -> Tensor:
        """KL to the teacher in its space."""
        met = theirs.meets(mine)

        def of_rows(part: slice) -> tuple[Tensor, ...]:
            projected = theirs.read(mine, part).to(signal.hidden.dtype)
            with torch.autocast(projected.device.type, enabled=False):
                logits = signal.head(projected)
            teacher, bad = teacher_logprobs(signal, rows[part], self.temperature)
            divergence = forward_kl(softened(logits, self.temperature), teacher)
            return (divergence.masked_fill(bad | ~met[part], 0.0).sum(),)

        (value,) = summed(of_rows, student.chunks(len(rows), vocab_size_of_signal(signal)))
        return value

"""Terms of the loss that compare a student with teachers in the teachers' own vocabularies.

They are what the literature does instead of carrying distributions to the student's vocabulary. Each is a sum
over stretches of text that both tokenizers delimit, which the caller divides once by the global count of
predicted positions, so that how a step is cut does not matter. No term reads across segments.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from collegium.alignment.common_spans import CommonSpans, common_spans
from collegium.base.schedule import Schedule, largest, smallest, value_at
from collegium.losses.cross_tokenizer import hybrid, label_and_boundary, sorted_l1, sum_by, with_chain, with_path
from collegium.report.metric_names import (
    COMPARED,
    CROSS_TOKENIZER_LOSS,
    MATCHED,
    UNMATCHED,
    below,
    cross_tokenizer_term,
)
from collegium.signals.contracts import Capability, TeacherOutput
from collegium.signals.metrics import Mean
from collegium.signals.own_vocabulary import OwnView
from collegium.training.module import TrainedModule
from collegium.training.terms.features import normalized_importance
from collegium.training.terms.own_views import (
    FullSignal,
    StudentRows,
    concatenated,
    full_signal,
    is_trivial,
    own_view,
    summed,
    teacher_figures,
    teacher_logprobs,
    vocab_size_of_signal,
)


class CrossTokenizerTerm(TrainedModule):
    """Sum over teachers k of beta_k times what a sub-class says of one teacher.

    Args:
        teacher_names: In the order in which their outputs are given.
        importance: beta of each teacher; normalised to sum to 1. Equal if None.
        weight: Weight among the terms of an objective; a schedule may change it between steps.

    Attributes:
        need: What teachers must provide.

    Raises:
        ValueError: the importances do not fit.
    """

    need = frozenset({Capability.FULL_VOCAB})

    def __init__(
        self,
        teacher_names: Sequence[str],
        *,
        importance: Sequence[float] | None = None,
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__()
        self.teacher_names = tuple(teacher_names)
        self.betas = normalized_importance(importance, len(self.teacher_names))
        self.weight = weight

    def forward(
        self, student: StudentRows, outputs: Sequence[TeacherOutput]
    ) -> tuple[Float[Tensor, ""], dict[str, Mean]]:
        """Sum over stretches, not yet divided by the count of positions, and what is logged besides.

        Raises:
            ValueError: a teacher does not give what the term reads.
        """
        total = student.hidden.new_zeros(())
        metrics: dict[str, Mean] = {}
        for m, (name, beta, output) in enumerate(zip(self.teacher_names, self.betas, outputs, strict=True)):
            value, logged = self.of_teacher(m, student, own_view(name, output, student))
            total = total + beta * value
            metrics |= {below(name, key): mean for key, mean in logged.items()}
        return total, metrics

    def of_teacher(self, m: int, student: StudentRows, view: OwnView) -> tuple[Tensor, Mapping[str, Mean]]:
        """Sum over stretches for teacher `m`, and what is logged of it."""
        raise NotImplementedError


def spans_of(student: StudentRows, view: OwnView, own_usable: Tensor | None) -> CommonSpans:
    """Spans that can be compared; of single positions it does not matter what is beside them."""
    usable = None if is_trivial(view) else student.usable
    return common_spans(view.spans, student.positions.segments, usable=usable, own_usable=own_usable)


def compared(spans: int | Tensor, student: StudentRows) -> Mean:
    """Stretches of text that are compared, for each predicted position."""
    device = student.hidden.device
    return Mean(torch.as_tensor(spans, device=device), torch.tensor(len(student.positions), device=device))


class UldTerm(CrossTokenizerTerm):
    """Universal logit distillation: sum over sorted probabilities of |student - teacher| (arXiv:2402.12030).

    The paper compares the i-th token of an answer with the i-th of the teacher's, whatever they are, and cuts
    the longer answer short. Here the two are compared at the first token of each stretch that both tokenizers
    delimit: there both predict from the same text. Within a stretch nothing is compared.

    Args:
        teacher_names: See `CrossTokenizerTerm`.
        temperature: Softens both sides; the paper's is 1.
        importance: See `CrossTokenizerTerm`.
        weight: See `CrossTokenizerTerm`.
    """

    def __init__(
        self,
        teacher_names: Sequence[str],
        *,
        temperature: float = 1.0,
        importance: Sequence[float] | None = None,
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(teacher_names, importance=importance, weight=weight)
        self.temperature = temperature

    def of_teacher(self, m: int, student: StudentRows, view: OwnView) -> tuple[Tensor, Mapping[str, Mean]]:
        """See `CrossTokenizerTerm`."""
        signal = full_signal(self.teacher_names[m], view.signal)
        spans = spans_of(student, view, signal.valid)

        def distance(rows: slice) -> tuple[Tensor, ...]:
            teacher, bad = teacher_logprobs(signal, spans.own_first[rows], self.temperature)
            mine = student.logprobs(spans.first[rows], self.temperature)
            return sorted_l1(mine.exp(), teacher.exp()).masked_fill(bad, 0.0).sum(), (~bad).sum()

        value, count = summed(distance, student.chunks(len(spans), vocab_size_of_signal(signal)))
        return value, {COMPARED: compared(count, student)}


Merge = Literal["bayesian", "first"]
"""How the tokens of a stretch become one distribution: `with_path` or `with_chain`."""


class _GoldSums(NamedTuple):
    """Sums over stretches: the loss, its two parts, and how many stretches there were."""

    value: Tensor
    matched: Tensor
    rest: Tensor
    num_compared: Tensor


class GoldTerm(CrossTokenizerTerm):
    """TRL's GOLD: a Jensen-Shannon divergence on tokens that both vocabularies have, sorted L1 on the rest.

    TRL's default merge reads logits one place too late. Of the merges here `bayesian` is its corrected one;
    `first` keeps the distribution at the first token, from where both models have read the same text.

    Args:
        teacher_names: See `CrossTokenizerTerm`.
        beta: Of the divergence: 0 is the forward KL, 1 the reverse KL.
        merge: See `Merge`.
        part_weights: Of the divergence and of the rest; None weighs the first by the share of the teacher's
            vocabulary that the student has, the second by the remainder, as TRL does.
        temperature: Softens both sides.
        importance: See `CrossTokenizerTerm`.
        weight: See `CrossTokenizerTerm`.
    """

    def __init__(
        self,
        teacher_names: Sequence[str],
        *,
        beta: float = 0.5,
        merge: Merge = "bayesian",
        part_weights: tuple[float, float] | None = None,
        temperature: float = 1.0,
        importance: Sequence[float] | None = None,
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(teacher_names, importance=importance, weight=weight)
        self.beta = beta
        self.merge = merge
        self.part_weights = part_weights
        self.temperature = temperature

    def of_teacher(self, m: int, student: StudentRows, view: OwnView) -> tuple[Tensor, Mapping[str, Mean]]:
        """See `CrossTokenizerTerm`."""
        signal = full_signal(self.teacher_names[m], view.signal)
        spans = spans_of(student, view, signal.valid)
        size = vocab_size_of_signal(signal)
        weights = self.part_weights or _by_overlap(len(view.shared_tokens), size)
        base, own_base = self._base(spans)
        path, own_path = self._paths(student, signal, view.labels, spans, size)
        unread = own_path.isnan()

        def divergence(rows: slice) -> _GoldSums:
            teacher, bad = teacher_logprobs(signal, own_base[rows], self.temperature)
            bad = bad | unread[rows]
            teacher = self._merged(teacher, view.labels[own_base[rows]], own_path[rows].masked_fill(bad, 0.0))
            mine = student.logprobs(base[rows], self.temperature)
            mine = self._merged(mine, student.positions.labels[base[rows]], path[rows])
            parts = hybrid(mine, teacher, view.shared_tokens, self.beta)
            matched, rest = (part.masked_fill(bad, 0.0).sum() for part in parts)
            value = weights[0] * matched + weights[1] * rest
            return _GoldSums(value, matched.detach(), rest.detach(), (~bad).sum())

        sums = _GoldSums(*summed(divergence, student.chunks(len(spans), size)))
        return sums.value, {
            MATCHED: Mean(sums.matched, sums.num_compared),
            UNMATCHED: Mean(sums.rest, sums.num_compared),
            COMPARED: compared(sums.num_compared, student),
        }

    def _base(self, spans: CommonSpans) -> tuple[Int[Tensor, " G"], Int[Tensor, " G"]]:
        """Rows of student and teacher whose distributions are merged."""
        if self.merge == "bayesian":
            return spans.last, spans.own_last
        return spans.first, spans.own_first

    def _merged(self, logprobs: Tensor, labels: Tensor, path: Tensor) -> Tensor:
        return with_path(logprobs, path) if self.merge == "bayesian" else with_chain(logprobs, labels, path)

    def _paths(
        self, student: StudentRows, signal: FullSignal, own_labels: Tensor, spans: CommonSpans, size: int
    ) -> tuple[Float[Tensor, " G"], Float[Tensor, " G"]]:
        """Log-probability of each stretch's other tokens; NaN where the teacher says nothing of one."""
        base, own_base = self._base(spans)
        others = _others(spans.of_student, base)
        own_others = _others(spans.of_teacher, own_base)

        def mine(rows: slice) -> tuple[Tensor, ...]:
            labels = student.positions.labels[others[rows]]
            return label_and_boundary(student.logprobs(others[rows], self.temperature), labels, None)

        own = [
            teacher_figures(signal, own_others[rows], own_labels, None, self.temperature)[0]
            for rows in student.chunks(len(own_others), size)
        ]
        (path, _) = concatenated(mine, student.chunks(len(others)))
        return (
            sum_by(path, spans.of_student[others], len(spans)),
            sum_by(torch.cat(own), spans.of_teacher[own_others], len(spans)),
        )


def _by_overlap(num_shared: int, vocab_size: int) -> tuple[float, float]:
    share = num_shared / max(1, vocab_size)
    return share, 1.0 - share


def _others(of_row: Int[Tensor, " R"], base: Int[Tensor, " G"]) -> Int[Tensor, " Q"]:
    """Rows of stretches that are not among `base`."""
    is_other = of_row >= 0
    is_other[base] = False
    return is_other.nonzero().squeeze(-1)


class CrossTokenizerLoss(TrainedModule):
    """The weighted terms of an objective.

    Args:
        weight: Weight of the terms together; a schedule may change it between steps.
        terms: The terms, each with its own weight among them.

    Attributes:
        need: What teachers must provide.

    Raises:
        ValueError: the weight is negative or never above 0, or there are no terms.
    """

    def __init__(self, weight: float | Schedule, terms: Sequence[CrossTokenizerTerm]) -> None:
        super().__init__()
        if smallest(weight) < 0 or largest(weight) <= 0 or not terms:
            raise ValueError(f"terms and a weight of 0 or more, at times above 0, go together; got {weight}")
        self._weight = weight
        self.terms = nn.ModuleList(terms)

    @property
    def need(self) -> frozenset[Capability]:
        """Capabilities that teachers must have."""
        return frozenset[Capability]().union(*(term.need for term in self._named().values()))

    def weights(self, progress: float) -> dict[str, float]:
        """Weight of each term at a share of the training, by its name."""
        whole = value_at(self._weight, progress)
        return {name: whole * value_at(term.weight, progress) for name, term in self._named().items()}

    def forward(
        self, student: StudentRows, outputs: Sequence[TeacherOutput], progress: float
    ) -> tuple[dict[str, Tensor], dict[str, Mean]]:
        """Each term's weighted sum, not yet divided by the count of positions, and what is logged of them."""
        values: dict[str, Tensor] = {}
        metrics: dict[str, Mean] = {}
        own: list[Tensor] = []
        count = torch.tensor(len(student.positions), device=student.hidden.device)
        weights = self.weights(progress)
        for name, term in self._named().items():
            if weights[name] > 0:
                value, logged = term(student, outputs)
                metrics[name] = Mean(value.detach(), count)
                metrics |= {below(name, key): mean for key, mean in logged.items()}
                own.append(value_at(term.weight, progress) * value.detach())
            else:  # for now; but its parameters must have a gradient on every rank
                value = sum((0.0 * p.sum() for p in term.parameters()), start=student.hidden.new_zeros(()))
            values[name] = weights[name] * value
        if own:  # without `cross_tokenizer_weight`, as the other terms are logged without theirs
            metrics[CROSS_TOKENIZER_LOSS] = Mean(torch.stack(own).sum(), count)
        return values, metrics

    def _named(self) -> dict[str, CrossTokenizerTerm]:
        names = cross_tokenizer_names(len(self.terms))
        return dict(zip(names, cast(Sequence[CrossTokenizerTerm], self.terms), strict=True))


def cross_tokenizer_names(num_terms: int) -> tuple[str, ...]:
    """Names of terms in metrics, and of what a balancer weighs."""
    return tuple(cross_tokenizer_term(i) for i in range(num_terms))

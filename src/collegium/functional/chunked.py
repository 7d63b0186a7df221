"""The distillation loss over chunks of positions, by autograd: the reference, and the general case.

Of the [N V] tensors of a batch only one chunk's rows exist at a time, and of these one teacher's:
the forward KL holds five [n V] buffers (student, fused target, a teacher and two temporaries),
whatever the number of teachers. One pass makes `teacher_stats`, from which weights over any stretch
of text are made; a second makes the loss, each chunk under activation checkpointing. So a teacher's
logits are made three times a step; `fused` makes them once and is what the objective calls.

Autograd needs to know nothing of the head or of the weights: adapters on the head, hooks, sharded
weights and learned teacher weights go this way.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import add

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from collegium.contracts import Head, Positions, TeacherSignal, TeacherStats, TopKSignal
from collegium.functional.divergences import LOG_ZERO, Divergence, entropy
from collegium.functional.elementwise import full_precision
from collegium.functional.fusion import (
    Fusion,
    add_to_mixture,
    add_to_product,
    geometric_logprobs,
    mixture_logprobs,
)
from collegium.functional.listed import dense_logprobs
from collegium.functional.weighting import GivenWeights, Weighting


@dataclass(frozen=True)
class KdTarget:
    """How teachers become one target and how the student is held to it.

    Attributes:
        divergence: From the student to the fused target.
        fusion: From teachers to the fused target.
        temperature: Softens student and teachers alike.
        scale_by_squared_temperature: Multiply by temperature^2, which keeps the gradient's size
            about constant (arXiv:1503.02531, section 2.1).
    """

    divergence: Divergence
    fusion: Fusion
    temperature: float = 1.0
    scale_by_squared_temperature: bool = True

    @property
    def scale(self) -> float:
        """Factor of the divergence."""
        return self.temperature**2 if self.scale_by_squared_temperature else 1.0


@dataclass
class DistillationSums:
    """Sums over positions, and what was known of the teachers. Only `loss` carries a gradient.

    Attributes:
        loss: kd_weight * kd + (1 - kd_weight) * cross-entropy, smoothed if asked.
        kd: Divergence to the fused target, over covered positions.
        cross_entropy: -log probability of the labels, over all positions.
        covered: Number of positions where some teacher has weight.
        target_entropy: Entropy of the fused target, over covered positions.
        conflict: Weighted mean divergence between teachers and target, over covered positions, in the
            direction whose minimum the fusion is: of the teachers from a mixture (which makes it the
            Jensen-Shannon divergence among them), of a geometric mean from the teachers.
        teacher_kl: KL(teacher || student) over the positions where the teacher is valid, [M].
        stats: What each teacher's weight was made from.
        weights: Teacher weights, [N M].
    """

    loss: Tensor
    kd: Tensor
    cross_entropy: Tensor
    covered: Tensor
    target_entropy: Tensor
    conflict: Tensor
    teacher_kl: Tensor
    stats: TeacherStats
    weights: Tensor


def target_logprobs(
    signal: TeacherSignal,
    rows: slice,
    valid: Bool[Tensor, " n"],
    temperature: float = 1.0,
    student_logprobs: Float[Tensor, "n V"] | None = None,
) -> Float[Tensor, "n V"]:
    """The distribution that is mixed, never below `LOG_ZERO`; uniform where it is not valid.

    A list's bucket takes the shape of `student_logprobs`.
    """
    if isinstance(signal, TopKSignal):
        require_captured(signal, temperature)
        logprobs = select_valid(dense_logprobs(signal, rows, student_logprobs), valid)
        return _log_softmax(logprobs, 1.0).clamp_min(LOG_ZERO)
    logits = select_valid(full_precision(signal.logits(rows)), valid)
    scale = temperature * signal.target_temperature
    return _log_softmax(logits, scale).clamp_min(LOG_ZERO)


def require_captured(signal: TopKSignal, temperature: float) -> None:
    """Refuse a list that was made at another temperature.

    Raises:
        ValueError: with both.
    """
    if signal.kd_temperature != temperature:
        raise ValueError(
            f"a teacher's list was made at kd_temperature {signal.kd_temperature:g}, the loss is at "
            f"{temperature:g}: set kd_temperature to {signal.kd_temperature:g}, or make the list anew"
        )


def select_valid(logits: Float[Tensor, "n V"], valid: Bool[Tensor, " n"]) -> Float[Tensor, "n V"]:
    """Zeros where not valid. Filling, not multiplying: 0 * NaN is NaN."""
    return logits.masked_fill(~valid.unsqueeze(-1), 0.0)


@torch.no_grad()
def teacher_stats(signals: Sequence[TeacherSignal], labels: Int[Tensor, " N"], *, chunk_size: int) -> TeacherStats:
    """Entropy, cross-entropy and validity of every teacher at every position, a chunk at a time."""
    columns = [_stats_of_teacher(signal, labels, chunk_size) for signal in signals]
    return TeacherStats(*(torch.stack(column, -1) for column in zip(*columns, strict=True)))


def _stats_of_teacher(signal: TeacherSignal, labels: Tensor, chunk_size: int) -> tuple[Tensor, ...]:
    parts = [_stats_of_rows(signal, labels[rows], rows) for rows in chunks(len(labels), chunk_size)]
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


def _stats_of_rows(signal: TeacherSignal, labels: Tensor, rows: slice) -> tuple[Tensor, ...]:
    """Entropy, cross-entropies at the target and at the weight temperature, and validity."""
    if isinstance(signal, TopKSignal):
        return listed_stats(signal, rows)
    logits = full_precision(signal.logits(rows))  # [n V]
    weight_logprobs = _log_softmax(logits, signal.weight_temperature)
    same = signal.target_temperature == signal.weight_temperature
    logprobs = weight_logprobs if same else _log_softmax(logits, signal.target_temperature)
    nll, weight_nll = (-p.gather(-1, labels[:, None]).squeeze(-1) for p in (logprobs, weight_logprobs))
    return checked_stats(signal, rows, entropy(weight_logprobs), nll, weight_nll, logits.shape[-1])


def checked_stats(
    signal: TeacherSignal, rows: slice, entropies: Tensor, nll: Tensor, weight_nll: Tensor, vocab_size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The figures of some rows, uniform where the teacher is absent, and where it is not."""
    # NaN, +Inf and rows of nothing but -Inf leave no finite entropy.
    valid = entropies.isfinite()
    if signal.valid is not None:
        valid = valid & signal.valid[rows]
    uniform = math.log(vocab_size)
    figures = (figure.masked_fill(~valid, uniform) for figure in (entropies, nll, weight_nll))
    entropies, nll, weight_nll = figures
    return entropies, nll, weight_nll, valid


_ROUNDING = 0.01
"""Nats by which a listed log-probability may lie above 0."""


def listed_stats(signal: TopKSignal, rows: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What a list knows of its full distribution, as `checked_stats` gives it."""
    at_weight = signal.label_logprob if signal.weight_label_logprob is None else signal.weight_label_logprob
    figures = (full_precision(figure[rows]) for figure in (signal.entropy, signal.label_logprob, at_weight))
    entropies, at_label, at_weight = figures
    no_logprob = ~(signal.logprobs[rows] < _ROUNDING) & (signal.token_ids[rows] >= 0)
    bad = no_logprob.any(-1) | at_label.isnan() | at_weight.isnan()
    entropies = entropies.masked_fill(bad, torch.nan)
    return checked_stats(signal, rows, entropies, -at_label, -at_weight, signal.vocab_size)


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    return (logits if temperature == 1.0 else logits / temperature).log_softmax(-1)


def weigh(
    signals: Sequence[TeacherSignal],
    positions: Positions,
    weighting: Weighting | GivenWeights,
    *,
    chunk_size: int,
) -> tuple[TeacherStats, Float[Tensor, "N M"]]:
    """Statistics and weights of the teachers at every position, in a pass of its own."""
    if not signals:
        empty = positions.labels.new_zeros((len(positions), 0), dtype=torch.float32)
        return TeacherStats(empty, empty, empty, empty.bool()), empty
    stats = teacher_stats(signals, positions.labels, chunk_size=chunk_size)
    if isinstance(weighting, GivenWeights):
        return replace(stats, valid=weighting.valid), weighting.weights
    return stats, weighting(stats, positions)


def distillation_loss(
    student_hidden: Float[Tensor, "N D"],
    student_head: Head,
    positions: Positions,
    signals: Sequence[TeacherSignal],
    weighting: Weighting | GivenWeights,
    *,
    target: KdTarget,
    kd_weight: float | Float[Tensor, " N"],
    ce_weight: float | Float[Tensor, " N"] | None = None,
    label_smoothing: float = 0.0,
    chunk_size: int,
) -> DistillationSums:
    """The loss and what is logged, as sums over all positions.

    Args:
        student_hidden: Student's last hidden states at the predicted positions.
        student_head: Projects them to logits; called as a module, so that it may hold an adapter.
        positions: What is to be predicted, and the stretches of text that share weights.
        signals: One per teacher; none for cross-entropy alone.
        weighting: Teacher weights, or how they follow from the teachers' statistics.
        target: Divergence, fusion and temperature.
        kd_weight: Weight of the divergence, of all positions or of each.
        ce_weight: Weight of the cross-entropy; 1 - kd_weight if not given.
        label_smoothing: Share of the label's probability that is spread over the vocabulary in the
            cross-entropy of the loss.
        chunk_size: Positions whose [n V] tensors are alive at once. Does not change the result
            beyond rounding.
    """
    stats, weights = weigh(signals, positions, weighting, chunk_size=chunk_size)
    ce_weight = 1.0 - kd_weight if ce_weight is None else ce_weight

    def chunk_sums(hidden: Tensor, chunk_weights: Tensor, rows: slice) -> tuple[Tensor, ...]:
        valid, labels = stats.valid[rows], positions.labels[rows]
        kd, ce = (w[rows] if isinstance(w, Tensor) else w for w in (kd_weight, ce_weight))
        chunk = _Chunk(rows, labels, signals, chunk_weights, valid, target, label_smoothing, kd, ce)
        return chunk.sums(*_student_logprobs(student_head(hidden), target.temperature))

    parts = [
        _checkpointed(chunk_sums, student_hidden[rows], weights[rows], rows)
        for rows in chunks(len(positions), chunk_size)
    ]
    loss, kd, *logged = (reduce(add, part) for part in zip(*parts, strict=True))
    kd, cross_entropy, covered, target_entropy, conflict, teacher_kl = (
        figure.detach() for figure in (kd, *logged)
    )
    return DistillationSums(
        loss, kd, cross_entropy, covered, target_entropy, conflict, teacher_kl, stats, weights.detach()
    )


def chunks(num_positions: int, chunk_size: int) -> Iterator[slice]:
    """Consecutive slices of at most `chunk_size` positions; an empty one where there are none.

    So a batch that predicts nothing runs the same code, and its loss of 0 has a gradient of 0 for
    every parameter, as DDP needs on each rank.
    """
    for start in range(0, max(num_positions, 1), chunk_size):
        yield slice(start, min(start + chunk_size, num_positions))


def _checkpointed(
    function: Callable[..., tuple[Tensor, ...]], hidden: Tensor, weights: Tensor, rows: slice
) -> tuple[Tensor, ...]:
    if not torch.is_grad_enabled():
        return function(hidden, weights, rows)
    result: tuple[Tensor, ...] = checkpoint(function, hidden, weights, rows, use_reentrant=False)
    return result


def _student_logprobs(logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities at temperature 1 and at `temperature`; the logits end with this call."""
    logits = full_precision(logits)
    logprobs = logits.log_softmax(-1)
    return logprobs, logprobs if temperature == 1.0 else (logits / temperature).log_softmax(-1)


@dataclass
class _Chunk:
    """One chunk's teachers, streamed one at a time past the fusion and the statistics."""

    rows: slice
    labels: Tensor
    signals: Sequence[TeacherSignal]
    weights: Tensor
    valid: Tensor
    target: KdTarget
    label_smoothing: float
    kd_weight: float | Tensor
    ce_weight: float | Tensor
    _entropies: list[Tensor] = field(default_factory=list)
    _teacher_kls: list[Tensor] = field(default_factory=list)
    _mixture: Tensor | None = None
    _product: Tensor | None = None

    def sums(self, logprobs: Tensor, softened: Tensor) -> tuple[Tensor, ...]:
        """As in `DistillationSums`, up to what is kept of the teachers."""
        nll = -logprobs.gather(-1, self.labels[:, None]).squeeze(-1)
        cross_entropy = nll.sum()
        smoothed = nll
        if self.label_smoothing > 0.0:
            smoothed = (1.0 - self.label_smoothing) * nll - self.label_smoothing * logprobs.mean(-1)
        loss = (self.ce_weight * smoothed).sum()
        if not self.signals:
            zero = cross_entropy.detach() * 0.0
            return loss, zero, cross_entropy, zero, zero, zero, zero.expand(0)
        covered = self.weights.detach().sum(-1) > 0  # [n]
        # Positions that no teacher covers get some target too; its divergence is finite, not used.
        weights = torch.where(covered[:, None], self.weights, torch.ones_like(self.weights))
        fused = self.target.fusion(self._teachers(softened.detach()), weights)
        divergence = torch.where(covered, self.target.divergence(softened, fused), 0.0) * self.target.scale
        loss = (self.kd_weight * divergence).sum() + loss
        kd = divergence.sum()
        num_covered = covered.sum().to(kd.dtype)
        figures = (num_covered, *self._statistics(fused, covered), torch.stack(self._teacher_kls))
        return loss, kd, cross_entropy, *figures

    def _teachers(self, student_logprobs: Tensor) -> Iterator[Tensor]:
        for m in range(len(self.signals)):
            yield self._teacher(m, student_logprobs)  # bound to no name, which would keep it alive

    @torch.no_grad()
    def _teacher(self, m: int, student_logprobs: Tensor) -> Tensor:
        logprobs = target_logprobs(
            self.signals[m], self.rows, self.valid[:, m], self.target.temperature, student_logprobs
        )
        if self.target.fusion is geometric_logprobs:
            self._product = add_to_product(self._product, logprobs, self.weights[:, m])
        elif self.target.fusion is not mixture_logprobs:
            self._mixture = add_to_mixture(self._mixture, logprobs, self.weights[:, m])
        probs = logprobs.exp()
        entropies = -(probs * logprobs).sum(-1)
        # nansum: a token that both rule out is 0 * -inf.
        teacher_kl = -(probs * student_logprobs).nansum(-1) - entropies
        self._entropies.append(entropies)
        self._teacher_kls.append(_sum_where(self.valid[:, m], teacher_kl))
        return logprobs

    @torch.no_grad()
    def _statistics(self, fused: Tensor, covered: Tensor) -> tuple[Tensor, Tensor]:
        """Sums of the target's entropy and of the conflict."""
        fused_entropy = entropy(fused)
        if self._product is not None:
            return _sum_where(covered, fused_entropy), _sum_where(covered, -self._product.logsumexp(-1))
        mixture_entropy = fused_entropy if self._mixture is None else entropy(self._mixture)
        mean_entropy = (self.weights * torch.stack(self._entropies, -1)).sum(-1)  # [n]
        return _sum_where(covered, fused_entropy), _sum_where(covered, mixture_entropy - mean_entropy)


def _sum_where(condition: Tensor, values: Tensor) -> Tensor:
    return torch.where(condition, values, torch.zeros_like(values)).sum()

"""The distillation loss over chunks of positions: the plain driver.

Of the [N V] tensors of a batch only one chunk's rows exist at a time, and of these one teacher's:
the forward KL holds five [n V] buffers (student, fused target, a teacher and two temporaries),
whatever the number of teachers. Each chunk runs under activation checkpointing, so backward makes
its logits once more: the price is one extra product per head and chunk, the gain is memory that is
flat in N and M. Autograd does the rest, so learned weights and adapters on the head need nothing
special; but weights that are learned keep [n V] terms of every teacher for their own gradient.

One pass makes `teacher_stats`, from which weights over any stretch of text are made; a second makes
the loss.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import add

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from collegium.contracts import Head, TeacherSignal, TeacherStats
from collegium.functional.divergences import LOG_ZERO, Divergence, entropy
from collegium.functional.fusion import Fusion, add_to_mixture, mixture_logprobs


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
    """Sums over positions. `kd` and `cross_entropy` carry the gradient, the others do not.

    Attributes:
        kd: Divergence to the fused target, over covered positions.
        cross_entropy: -log probability of the labels, over all positions.
        covered: Number of positions where some teacher has weight.
        target_entropy: Entropy of the fused target, over covered positions.
        conflict: Weighted Jensen-Shannon divergence among teachers, over covered positions.
        teacher_kl: KL(teacher || student) over the positions where the teacher is valid, [M].
    """

    kd: Tensor
    cross_entropy: Tensor
    covered: Tensor
    target_entropy: Tensor
    conflict: Tensor
    teacher_kl: Tensor

    def __add__(self, other: "DistillationSums") -> "DistillationSums":
        return DistillationSums(*(a + b for a, b in zip(self._astuple(), other._astuple(), strict=True)))

    def _astuple(self) -> tuple[Tensor, ...]:
        return (
            self.kd,
            self.cross_entropy,
            self.covered,
            self.target_entropy,
            self.conflict,
            self.teacher_kl,
        )


def full_precision(logits: Float[Tensor, "n V"]) -> Float[Tensor, "n V"]:
    """At least float32: a softmax in half precision has a floor of 2e-2 nats at V = 248k."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def target_logprobs(
    signal: TeacherSignal, rows: slice, valid: Bool[Tensor, " n"], temperature: float = 1.0
) -> Float[Tensor, "n V"]:
    """The distribution that is mixed, never below `LOG_ZERO`; uniform where it is not valid."""
    logits = select_valid(full_precision(signal.logits(rows)), valid)
    scale = temperature * signal.target_temperature
    return _log_softmax(logits, scale).clamp_min(LOG_ZERO)


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
    logits = full_precision(signal.logits(rows))  # [n V]
    weight_logprobs = _log_softmax(logits, signal.weight_temperature)
    entropies = entropy(weight_logprobs)
    # NaN, +Inf and rows of nothing but -Inf leave no finite entropy.
    valid = entropies.isfinite()
    if signal.valid is not None:
        valid = valid & signal.valid[rows]
    same = signal.target_temperature == signal.weight_temperature
    logprobs = weight_logprobs if same else _log_softmax(logits, signal.target_temperature)
    figures = (entropies, *(-p.gather(-1, labels[:, None]).squeeze(-1) for p in (logprobs, weight_logprobs)))
    uniform = math.log(logits.shape[-1])  # what an absent teacher counts as, where it is counted at all
    return *(figure.masked_fill(~valid, uniform) for figure in figures), valid


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    return (logits if temperature == 1.0 else logits / temperature).log_softmax(-1)


def distillation_sums(
    student_hidden: Float[Tensor, "N D"],
    student_head: Head,
    labels: Int[Tensor, " N"],
    signals: Sequence[TeacherSignal],
    weights: Float[Tensor, "N M"],
    valid: Bool[Tensor, "N M"],
    *,
    target: KdTarget,
    chunk_size: int,
) -> DistillationSums:
    """Sums of divergence, cross-entropy and what is logged, over all positions.

    Args:
        student_hidden: Student's last hidden states at the predicted positions.
        student_head: Projects them to logits; called as a module, so that it may hold an adapter.
        labels: Token to be predicted at each position.
        signals: One per teacher; none for cross-entropy alone.
        weights: Teacher weights; 0 where a teacher is absent.
        valid: Where each teacher's logits may be read.
        target: Divergence, fusion and temperature.
        chunk_size: Positions whose [n V] tensors are alive at once. Does not change the result
            beyond rounding.
    """

    def chunk_sums(hidden: Tensor, chunk_weights: Tensor, rows: slice) -> tuple[Tensor, ...]:
        chunk = _Chunk(rows, labels[rows], signals, chunk_weights, valid[rows], target)
        return chunk.sums(*_student_logprobs(student_head(hidden), target.temperature))._astuple()

    parts = (
        DistillationSums(*_checkpointed(chunk_sums, student_hidden[rows], weights[rows], rows))
        for rows in chunks(len(labels), chunk_size)
    )
    return reduce(add, parts)


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
    _entropies: list[Tensor] = field(default_factory=list)
    _teacher_kls: list[Tensor] = field(default_factory=list)
    _mixture: Tensor | None = None

    def sums(self, logprobs: Tensor, softened: Tensor) -> DistillationSums:
        cross_entropy = -logprobs.gather(-1, self.labels[:, None]).sum()
        if not self.signals:
            zero = cross_entropy.detach() * 0.0
            return DistillationSums(zero, cross_entropy, zero, zero, zero, zero.expand(0))
        covered = self.weights.detach().sum(-1) > 0  # [n]
        # Positions that no teacher covers get some target too; its divergence is finite, not used.
        weights = torch.where(covered[:, None], self.weights, torch.ones_like(self.weights))
        fused = self.target.fusion(self._teachers(softened.detach()), weights)
        target_entropy, conflict = self._statistics(fused, covered)
        kd = _sum_where(covered, self.target.divergence(softened, fused)) * self.target.scale
        return DistillationSums(
            kd=kd,
            cross_entropy=cross_entropy,
            covered=covered.sum().to(kd.dtype),
            target_entropy=target_entropy,
            conflict=conflict,
            teacher_kl=torch.stack(self._teacher_kls),
        )

    def _teachers(self, student_logprobs: Tensor) -> Iterator[Tensor]:
        for m in range(len(self.signals)):
            yield self._teacher(m, student_logprobs)  # bound to no name, which would keep it alive

    @torch.no_grad()
    def _teacher(self, m: int, student_logprobs: Tensor) -> Tensor:
        logprobs = target_logprobs(self.signals[m], self.rows, self.valid[:, m], self.target.temperature)
        if self.target.fusion is not mixture_logprobs:
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
        mixture_entropy = fused_entropy if self._mixture is None else entropy(self._mixture)
        mean_entropy = (self.weights * torch.stack(self._entropies, -1)).sum(-1)  # [n]
        conflict = mixture_entropy - mean_entropy
        return _sum_where(covered, fused_entropy), _sum_where(covered, conflict)


def _sum_where(condition: Tensor, values: Tensor) -> Tensor:
    return torch.where(condition, values, torch.zeros_like(values)).sum()

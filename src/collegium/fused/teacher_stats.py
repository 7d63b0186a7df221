"""Figures of teachers at each position, a chunk at a time, and the weights that follow from them.

A pass of its own over the teachers' logits, for the plain loss and for weights that must be known before the
fused loss starts; that one makes the same figures as it goes.

Derivation. With z_k the logits of teacher k, c^w its weight temperature and c^d its own, a position's figures
are

    H_k          -sum p log p,  p = softmax(z_k / c^w)        the entropy that sets the weight
    CE_k         -log softmax(z_k / c^d) at the label         for weightings that read labels
    CE_k^w       -log softmax(z_k / c^w) at the label         its mean is that of H_k where c^w is fitted
    valid        H_k is finite, and the teacher did not say that it is absent

Where a teacher is absent all are log V, the figures of a uniform distribution: means over a stretch of text read
them. None carries a gradient, as teachers are frozen. `MinNormWeighting` alone also compares gradients: at the
student's logits that of a forward KL is (q^T - p_k) up to a factor, of which it needs the products between
teachers.

    time ->           chunk 1            chunk 2            ...
    teacher 1 [n V]   logits, log p |    logits, log p |         one teacher after another, all of its chunks
    figures   [n]     ================================> [N] joined
    teacher 2 [n V]   ...                                        when teacher 1 is done
    figures   [N M]   ==========================================> stacked, weights
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from collegium.fused.completion import dense_logprobs
from collegium.losses.chunks import chunks
from collegium.losses.divergences import LOG_ZERO, entropy
from collegium.losses.joint_weighting import JointWeighting
from collegium.losses.min_norm import MinNormWeighting, gradient_products
from collegium.losses.precision import full_precision
from collegium.losses.weighting import Figures, GivenScores, GivenWeights, Weighting
from collegium.signals.contracts import Positions, TeacherStats
from collegium.signals.signals import CarriedSignal, TeacherSignal, TopKSignal


TeacherWeighting = Weighting | JointWeighting | MinNormWeighting | GivenScores | GivenWeights
"""How much each teacher counts at each position, or how that follows from the teachers."""


class TeacherColumns(NamedTuple):
    """Figures of one teacher at some positions; columns of `TeacherStats`.

    Attributes:
        entropy: H_k, at the weight temperature.
        cross_entropy: -log probability of the label at its own temperature.
        weight_cross_entropy: The same at the weight temperature.
        valid: False where the teacher is absent.
    """

    entropy: Float[Tensor, " n"]
    cross_entropy: Float[Tensor, " n"]
    weight_cross_entropy: Float[Tensor, " n"]
    valid: Bool[Tensor, " n"]

    @property
    def figures(self) -> Figures:
        """Those that a score may be made from."""
        return Figures(self.entropy, self.cross_entropy, self.valid)


def absences(valid: Sequence[Bool[Tensor, " N"] | None], spans: Sequence[slice]) -> list[list[bool]]:
    """True for each chunk and teacher if the teacher says nothing anywhere in it, so that its head need not run.

    A batch of five domains, each with a teacher of its own, costs one head a position and not five. Reads the
    host once, where a teacher may be absent at all.

    Args:
        valid: Where each teacher says something; None: everywhere.
        spans: The chunks.
    """
    found = [[False] * len(valid) for _ in spans]
    partial = {number: where for number, where in enumerate(valid) if where is not None}
    if partial:
        # Running counts, so that all chunks of all teachers are answered by one transfer to the host.
        before = torch.nn.functional.pad(torch.stack(list(partial.values())).cumsum(1), (1, 0))  # [K N+1]
        ends = torch.tensor([[span.start, span.stop] for span in spans], device=before.device)
        counts = before[:, ends[:, 1]] - before[:, ends[:, 0]]  # [K C]
        for number, of_chunks in zip(partial, counts.tolist(), strict=True):
            for chunk, count in enumerate(of_chunks):
                found[chunk][number] = count == 0 and spans[chunk].stop > spans[chunk].start
    return found


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
            f"{temperature:g}: set kd_temperature to {signal.kd_temperature:g}, or make the list again"
        )


def select_valid(logits: Float[Tensor, "n V"], valid: Bool[Tensor, " n"]) -> Float[Tensor, "n V"]:
    """Zeros where not valid. Filling, not multiplying: 0 * NaN is NaN."""
    return logits.masked_fill(~valid.unsqueeze(-1), 0.0)


@torch.no_grad()
def teacher_stats(signals: Sequence[TeacherSignal], labels: Int[Tensor, " N"], *, chunk_size: int) -> TeacherStats:
    """Entropy, cross-entropy and validity of every teacher at every position, a chunk at a time."""
    columns = [_stats_of_teacher(signal, labels, chunk_size) for signal in signals]
    return TeacherStats(*(torch.stack(column, -1) for column in zip(*columns, strict=True)))


def _stats_of_teacher(signal: TeacherSignal, labels: Tensor, chunk_size: int) -> TeacherColumns:
    spans = list(chunks(len(labels), chunk_size))
    parts = [
        _stats_of_silence(signal, rows) if absent else _stats_of_rows(signal, labels[rows], rows)
        for rows, (absent,) in zip(spans, absences([signal.valid], spans), strict=True)
    ]
    return TeacherColumns(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _stats_of_rows(signal: TeacherSignal, labels: Tensor, rows: slice) -> TeacherColumns:
    if isinstance(signal, TopKSignal):
        return listed_stats(signal, rows)
    logits = full_precision(signal.logits(rows))  # [n V]
    weight_logprobs = _log_softmax(logits, signal.weight_temperature)
    # One [n V] less where a teacher has one temperature, as most have.
    same = signal.target_temperature == signal.weight_temperature
    logprobs = weight_logprobs if same else _log_softmax(logits, signal.target_temperature)
    nll = -logprobs.gather(-1, labels[:, None]).squeeze(-1)
    weight_nll = -weight_logprobs.gather(-1, labels[:, None]).squeeze(-1)
    entropies = entropy(weight_logprobs)
    columns = TeacherColumns(entropies, nll, weight_nll, entropies.isfinite())
    return checked_stats(signal, rows, columns, logits.shape[-1])


def checked_stats(signal: TeacherSignal, rows: slice, columns: TeacherColumns, vocab_size: int) -> TeacherColumns:
    """The figures of some rows, uniform where the teacher is absent, and where it is not.

    `columns.valid` says where the entropy is finite: NaN, +Inf and rows of nothing but -Inf leave none.
    """
    entropies = columns.entropy
    valid = columns.valid
    if isinstance(signal, CarriedSignal) and signal.entropy is not None:
        # That of the teacher's own tokens over the same text, which a carried distribution only approximates.
        entropies = signal.entropy[rows].to(entropies.dtype)
        valid = valid & entropies.isfinite()
    if signal.valid is not None:
        valid = valid & signal.valid[rows]
    # Means over a stretch and sums over the past read these rows too, so they must hold a number: a teacher that
    # says nothing counts as a uniform distribution.
    uniform = math.log(vocab_size)
    return TeacherColumns(
        entropies.masked_fill(~valid, uniform),
        columns.cross_entropy.masked_fill(~valid, uniform),
        columns.weight_cross_entropy.masked_fill(~valid, uniform),
        valid,
    )


def stats_of_absent(like: Float[Tensor, " n"], vocab_size: int) -> TeacherColumns:
    """Figures of rows in which a teacher says nothing, as `checked_stats` would give them."""
    uniform = torch.full_like(like, math.log(vocab_size))
    return TeacherColumns(uniform, uniform, uniform, torch.zeros_like(like, dtype=torch.bool))


def _stats_of_silence(signal: TeacherSignal, rows: slice) -> TeacherColumns:
    if isinstance(signal, TopKSignal):
        return listed_stats(signal, rows)
    one = full_precision(signal.logits(slice(rows.start, rows.start + 1)))  # [1 V], for its size alone
    return stats_of_absent(one.new_empty(rows.stop - rows.start), one.shape[-1])


_ROUNDING = 0.01
"""Nats by which a listed log-probability may lie above 0."""


def listed_stats(signal: TopKSignal, rows: slice) -> TeacherColumns:
    """Figures of the full distribution that a list was made of, as `checked_stats` gives them."""
    weight_label = signal.label_logprob if signal.weight_label_logprob is None else signal.weight_label_logprob
    entropies = full_precision(signal.entropy[rows])
    at_label = full_precision(signal.label_logprob[rows])
    at_weight = full_precision(weight_label[rows])
    # A damaged cache may hold any bits; a list with one impossible entry is not believed at all.
    no_logprob = ~(signal.logprobs[rows] < _ROUNDING) & (signal.token_ids[rows] >= 0)
    bad = no_logprob.any(-1) | at_label.isnan() | at_weight.isnan()
    columns = TeacherColumns(entropies, -at_label, -at_weight, entropies.isfinite() & ~bad)
    return checked_stats(signal, rows, columns, signal.vocab_size)


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    return (logits if temperature == 1.0 else logits / temperature).log_softmax(-1)


def weigh(
    signals: Sequence[TeacherSignal],
    positions: Positions,
    weighting: TeacherWeighting,
    *,
    student: Callable[[slice], Float[Tensor, "n V"]],
    temperature: float,
    chunk_size: int,
) -> tuple[TeacherStats, Float[Tensor, "N M"]]:
    """Statistics and weights of the teachers at every position, in a pass of its own.

    `student` makes the student's logits, which are read at `temperature` by `MinNormWeighting` alone.
    """
    if not signals:
        empty = positions.labels.new_zeros((len(positions), 0), dtype=torch.float32)
        return TeacherStats(empty, empty, empty, empty.bool()), empty
    stats = teacher_stats(signals, positions.labels, chunk_size=chunk_size)
    if isinstance(weighting, GivenWeights):
        return replace(stats, valid=weighting.valid), weighting.weights
    if isinstance(weighting, MinNormWeighting):
        gram = _gradient_products(signals, stats, student, temperature, chunk_size)
        return stats, weighting.weights(gram, stats.valid, positions)
    return stats, weighting(stats, positions)


@torch.no_grad()
def _gradient_products(
    signals: Sequence[TeacherSignal],
    stats: TeacherStats,
    student: Callable[[slice], Tensor],
    temperature: float,
    chunk_size: int,
) -> Float[Tensor, "N M M"]:
    def logprobs_of(m: int, rows: slice, student_logprobs: Tensor) -> Tensor:
        return target_logprobs(signals[m], rows, stats.valid[rows, m], temperature, student_logprobs)

    valid = stats.valid.to(stats.entropy.dtype)
    gram = gradient_products(
        lambda rows: at_both_temperatures(student(rows), temperature)[1],
        [partial(logprobs_of, m) for m in range(len(signals))],
        len(valid),
        num_rows=chunk_size,
        dtype=valid.dtype,
        device=valid.device,
    )
    return gram * valid.unsqueeze(-1) * valid.unsqueeze(-2)


def at_both_temperatures(logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities at temperature 1 and at `temperature`; the logits end with this call."""
    logits = full_precision(logits)
    logprobs = logits.log_softmax(-1)
    return logprobs, logprobs if temperature == 1.0 else (logits / temperature).log_softmax(-1)

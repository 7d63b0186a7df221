"""The distillation loss over chunks of positions, by autograd: the reference, and the general case.

With q^T = softmax(z / T) of the student's logits z, w_k the weight of teacher k and p_k = softmax(z_k / (c_k T)),

    p     =  sum_k w_k p_k                                 (or prod_k p_k^w_k, normalised; or a fusion of a user's)
    L     =  sum over positions of  A D(q^T, p) + B CE(q, y),       A = kd_weight s,  B = ce_weight
    dL/dz =  (A / T) (q^T - p) + B (q - e_y)               for the forward KL; here autograd finds it

with s = T^2, or 1 (`KdTarget.scale`), and e_y the distribution that is 1 at the label y.

`fused` writes that gradient out, and must agree with this file. Of the [N V] tensors of a batch only one chunk's
rows exist at a time, and of these one teacher's: the forward KL holds five [n V] buffers (student, fused target,
a teacher and two temporaries), whatever the number of teachers. One pass makes `teacher_stats`, from which
weights over any stretch of text are made; a second makes the loss, each chunk under activation checkpointing. So
a teacher's logits are made three times a step; `fused` makes them once and is what the objective calls.

Time goes from left to right; each chunk's buffers are made in forward and again in backward:

    pass:                  statistics     forward             backward (chunks in reverse)
    student's log q [n V]                 =|=|=|              ==|==|==|  z, log q, their gradients
    target p        [n V]                 =|=|=|              ==|==|==|
    a teacher       [n V]  =|=|=|         =|=|=|              ==|==|==|  a third time
    figures, w      [N M]    =================================================> logged
    dL/dh, dL/dW    [N D], [V D]                              ================> gradients

Autograd needs to know nothing of the head or of the weights: adapters on the head, hooks, sharded weights and
learned teacher weights go this way.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from collegium.fused.teacher_stats import TeacherWeighting, at_both_temperatures, target_logprobs, weigh
from collegium.losses.chunks import chunks
from collegium.losses.divergences import Divergence, PositionalDivergence, entropy
from collegium.losses.fusion import Fusion, add_to_mixture, add_to_product, geometric_logprobs, mixture_logprobs
from collegium.signals.contracts import Positions, TeacherStats
from collegium.signals.signals import Head, TeacherSignal


@dataclass(frozen=True)
class KdTarget:
    """The target that teachers become, and the divergence that holds the student to it.

    Attributes:
        divergence: From the student to the fused target.
        fusion: From teachers to the fused target.
        temperature: Softens student and teachers alike.
        scale_by_squared_temperature: Multiply by temperature^2, which keeps the gradient's size
            about constant (arXiv:1503.02531, section 2.1).
        parameter: What a `PositionalDivergence` is given besides: a number, a scalar or [N].
        conflict_limit: Nats of conflict among teachers above which a position is left to the text: its
            weight goes from the divergence to the cross-entropy. None: never.

    Raises:
        ValueError: a part is no function, or the temperature is not above 0.
    """

    divergence: Divergence | PositionalDivergence
    fusion: Fusion
    temperature: float = 1.0
    scale_by_squared_temperature: bool = True
    parameter: float | Tensor = 0.0
    conflict_limit: float | None = None

    def __post_init__(self) -> None:
        """Refuse what a loss could not use."""
        for name, part in {"divergence": self.divergence, "fusion": self.fusion}.items():
            if not callable(part) and not hasattr(part, "at"):
                raise ValueError(
                    f"{name} is {part!r}: give a function; names go into Objective(target=..., fusion=...)"
                )
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; it must be above 0")

    @property
    def scale(self) -> float:
        """Factor of the divergence."""
        return self.temperature**2 if self.scale_by_squared_temperature else 1.0

    def settled(self, conflict: Float[Tensor, " n"]) -> Bool[Tensor, " n"]:
        """True where teachers agree well enough."""
        assert self.conflict_limit is not None, "asked only with a limit"
        return conflict <= self.conflict_limit


class LossSums(NamedTuple):
    """Sums over some positions; as in `DistillationSums`."""

    loss: Tensor
    kd: Tensor
    cross_entropy: Tensor
    covered: Tensor
    target_entropy: Tensor
    conflict: Tensor
    teacher_kl: Tensor


@dataclass
class DistillationSums:
    """Sums over positions, and what was known of the teachers. Only `loss` carries a gradient.

    Attributes:
        loss: kd_weight * kd + ce_weight * cross-entropy, smoothed if asked.
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

    @classmethod
    def of(cls, sums: LossSums, stats: TeacherStats, weights: Tensor) -> "DistillationSums":
        """Sums of all chunks, without the gradient that what is only logged may carry."""
        return cls(
            loss=sums.loss,
            kd=sums.kd.detach(),
            cross_entropy=sums.cross_entropy.detach(),
            covered=sums.covered.detach(),
            target_entropy=sums.target_entropy.detach(),
            conflict=sums.conflict.detach(),
            teacher_kl=sums.teacher_kl.detach(),
            stats=stats,
            weights=weights.detach(),
        )


def distillation_loss(
    student_hidden: Float[Tensor, "N D"],
    student_head: Head,
    positions: Positions,
    signals: Sequence[TeacherSignal],
    weighting: TeacherWeighting,
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
        kd_weight: Weight of the divergence, of all positions or of each; it carries no gradient.
        ce_weight: Weight of the cross-entropy; 1 - kd_weight if not given.
        label_smoothing: Share of the label's probability that is spread over the vocabulary in the
            cross-entropy of the loss.
        chunk_size: Positions whose [n V] tensors are alive at once. Does not change the result
            beyond rounding.
    """
    stats, weights = weigh(
        signals,
        positions,
        weighting,
        student=lambda rows: student_head(student_hidden[rows]),
        temperature=target.temperature,
        chunk_size=chunk_size,
    )
    ce_weight = 1.0 - kd_weight if ce_weight is None else ce_weight

    def chunk_sums(hidden: Tensor, chunk_weights: Tensor, rows: slice) -> LossSums:
        chunk = _Chunk(
            rows=rows,
            labels=positions.labels[rows],
            signals=signals,
            weights=chunk_weights,
            valid=stats.valid[rows],
            target=target,
            label_smoothing=label_smoothing,
            kd_weight=of_rows(kd_weight, rows, hidden),
            ce_weight=of_rows(ce_weight, rows, hidden),
        )
        # Not bound to a name, which would keep the logits alive until the chunk is done.
        return chunk.sums(*at_both_temperatures(student_head(hidden), target.temperature))

    parts = [
        _checkpointed(chunk_sums, student_hidden[rows], weights[rows], rows)
        for rows in chunks(len(positions), chunk_size)
    ]
    total = LossSums(*(reduce(add, part) for part in zip(*parts, strict=True)))
    return DistillationSums.of(total, stats, weights)


def of_rows(value: float | Tensor, rows: slice, like: Tensor) -> Float[Tensor, " n"]:
    """A weight or parameter at some positions, at least in float32, whether it is one for all or for each."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    count = rows.stop - rows.start
    if not isinstance(value, Tensor):
        return torch.full((count,), value, dtype=dtype, device=like.device)
    value = value.detach().to(like.device, dtype)
    return value.expand(count) if value.ndim == 0 else value[rows]


def _checkpointed(
    function: Callable[[Tensor, Tensor, slice], LossSums], hidden: Tensor, weights: Tensor, rows: slice
) -> LossSums:
    # A measurement has no backward pass, so there is nothing to make again.
    if not torch.is_grad_enabled():
        return function(hidden, weights, rows)
    result: LossSums = checkpoint(function, hidden, weights, rows, use_reentrant=False)
    return result


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
    kd_weight: Tensor
    ce_weight: Tensor
    _entropies: list[Tensor] = field(default_factory=list)
    _teacher_kls: list[Tensor] = field(default_factory=list)
    _mixture: Tensor | None = None
    _product: Tensor | None = None

    def sums(self, logprobs: Tensor, softened: Tensor) -> LossSums:
        """Measure, given the student's log-probabilities at temperature 1 and at T."""
        nll = -logprobs.gather(-1, self.labels[:, None]).squeeze(-1)  # [n]
        smoothed = nll
        if self.label_smoothing > 0.0:
            smoothed = (1.0 - self.label_smoothing) * nll - self.label_smoothing * logprobs.mean(-1)
        if not self.signals:
            zero = nll.detach().sum() * 0.0
            loss = (self.ce_weight * smoothed).sum()
            return LossSums(loss, zero, nll.sum(), zero, zero, zero, zero.expand(0))
        covered = self.weights.detach().sum(-1) > 0  # [n]
        # Positions that no teacher covers get some target too; its divergence is finite, not used.
        weights = torch.where(covered[:, None], self.weights, torch.ones_like(self.weights))
        fused = self.target.fusion(self._teachers(softened.detach()), weights)
        # First, since a recomputation ends with the last tensor that backward needs.
        target_entropy, conflict = self._statistics(fused)
        divergence = torch.where(covered, self._divergence(softened, fused), 0.0) * self.target.scale
        kd_weight = self.kd_weight
        ce_weight = self.ce_weight
        if self.target.conflict_limit is not None:
            given_up = kd_weight * (covered & ~self.target.settled(conflict))
            kd_weight = kd_weight - given_up
            ce_weight = ce_weight + given_up
        loss = (kd_weight * divergence).sum() + (ce_weight * smoothed).sum()
        return LossSums(
            loss=loss,
            kd=divergence.sum(),
            cross_entropy=nll.sum(),
            covered=covered.sum().to(loss.dtype),
            target_entropy=_sum_where(covered, target_entropy),
            conflict=_sum_where(covered, conflict),
            teacher_kl=torch.stack(self._teacher_kls),
        )

    def _divergence(self, student_logprobs: Tensor, fused: Tensor) -> Tensor:
        divergence = self.target.divergence
        if isinstance(divergence, PositionalDivergence):
            parameter = of_rows(self.target.parameter, self.rows, student_logprobs)
            return divergence.at(student_logprobs, fused, self.labels, parameter)
        return divergence(student_logprobs, fused)

    def _teachers(self, student_logprobs: Tensor) -> Iterator[Tensor]:
        for m in range(len(self.signals)):
            yield self._teacher(m, student_logprobs)  # bound to no name, which would keep it alive

    @torch.no_grad()
    def _teacher(self, m: int, student_logprobs: Tensor) -> Tensor:
        logprobs = target_logprobs(
            self.signals[m], self.rows, self.valid[:, m], self.target.temperature, student_logprobs
        )
        # The finished target shows the conflict of a mixture alone: a geometric mean has lost log Z by then, and a
        # fusion of a user's own is measured by the mixture that it takes the place of.
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
    def _statistics(self, fused: Tensor) -> tuple[Tensor, Tensor]:
        """Entropy of the target, and conflict."""
        fused_entropy = entropy(fused)
        if self._product is not None:
            return fused_entropy, -self._product.logsumexp(-1)
        mixture_entropy = fused_entropy if self._mixture is None else entropy(self._mixture)
        mean_entropy = (self.weights * torch.stack(self._entropies, -1)).sum(-1)  # [n]
        return fused_entropy, mixture_entropy - mean_entropy


def _sum_where(condition: Tensor, values: Tensor) -> Tensor:
    return torch.where(condition, values, torch.zeros_like(values)).sum()

"""The distillation loss in one pass: every logit is made once, and its gradient with it.

For each chunk of positions the student's logits are made, then one teacher's after another: log-sum-exp
and entropy, its share of the target, gone. A teacher's share needs only that teacher's score, so shares
are kept relative to the highest score so far and divided by their sum at the end. Then the divergence, the
cross-entropy and their gradient replace the student's logits in place, and two products add it to the
gradients of the hidden states and of the head. Backward only multiplies those by what comes from above.

Three [n V] buffers are alive at once, whatever the number of teachers: the student, the target, one
teacher. The price of having the gradient early is that the head's own gradient lives from forward to
backward. What cannot be fused goes to `chunked`: heads that are more than a linear map, learned weights,
fusions of a user's own.

At N = 1,024, V = 49,152, three teachers, two cores: see benchmarks/RESULTS.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from collegium.fused import chunked
from collegium.fused.chunked import DistillationSums, KdTarget, of_rows
from collegium.fused.compiled import run
from collegium.fused.elementwise import (
    Space,
    cross_entropy_gradient,
    finish,
    finish_by_autograd,
    finish_predictions,
    slope,
    student_pass,
    target_figures,
)
from collegium.fused.listed import BLOCK, ListedMixture
from collegium.fused.products import add_grad_of_weight_, grad_of_hidden, project
from collegium.fused.streamed import StreamedTarget
from collegium.fused.teacher_stats import TeacherWeighting, absences
from collegium.fused.traversal import Listed, order
from collegium.losses.divergences import PositionalDivergence
from collegium.losses.fusion import geometric_logprobs, mixture_logprobs
from collegium.losses.precision import full_precision
from collegium.losses.weighting import GivenWeights, Scorer
from collegium.signals.contracts import Positions, TeacherStats
from collegium.signals.signals import Head, LinearHead, TeacherSignal, TransparentHead


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
    """The loss and what is logged, as sums over all positions. Arguments as in `chunked`.

    Backward can be run once.
    """
    linear = student_head.as_linear() if isinstance(student_head, TransparentHead) else None
    learned = isinstance(weighting, GivenWeights) and weighting.weights.requires_grad
    known = target.fusion in (mixture_logprobs, geometric_logprobs)
    if linear is None or linear.weight.device != student_hidden.device or learned or not known:
        return chunked.distillation_loss(
            student_hidden,
            student_head,
            positions,
            signals,
            weighting,
            target=target,
            kd_weight=kd_weight,
            ce_weight=ce_weight,
            label_smoothing=label_smoothing,
            chunk_size=chunk_size,
        )
    known_weighting, spans, listed = order(
        positions,
        signals,
        weighting,
        target,
        student=lambda rows: student_head(student_hidden[rows]),
        chunk_size=chunk_size,
    )
    job = _Job(
        labels=positions.labels,
        signals=signals,
        weighting=known_weighting,
        spans=spans,
        target=target,
        kd_weight=kd_weight,
        ce_weight=1.0 - kd_weight if ce_weight is None else ce_weight,
        label_smoothing=label_smoothing,
        head=linear,
        listed=listed,
        wants_gradient=torch.is_grad_enabled(),
    )
    loss, *logged = _FusedLoss.apply(student_hidden, linear.weight, linear.bias, job)
    *sums, entropy, cross_entropy, weight_cross_entropy, valid, weights = logged
    stats = TeacherStats(entropy, cross_entropy, weight_cross_entropy, valid)
    return DistillationSums(loss, *sums, stats, weights)


@dataclass(frozen=True)
class _Job:
    """All that the loss needs besides the tensors that get a gradient."""

    labels: Tensor
    signals: Sequence[TeacherSignal]
    weighting: Scorer | GivenWeights
    spans: list[slice]
    target: KdTarget
    kd_weight: float | Tensor
    ce_weight: float | Tensor
    label_smoothing: float
    head: LinearHead
    listed: Listed | None
    wants_gradient: bool

    @property
    def valid(self) -> list[Tensor | None]:
        """Where the logits of each teacher may be read; None: everywhere."""
        of_signals = [signal.valid for signal in self.signals]
        if not isinstance(self.weighting, GivenWeights) or all(valid is None for valid in of_signals):
            return of_signals
        return list(self.weighting.valid.unbind(-1))


class _FusedLoss(torch.autograd.Function):
    """Loss and gradients together; see the module."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, job: _Job) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        needs = [job.wants_gradient and need for need in ctx.needs_input_grad[:3]]
        walk = _Walk(hidden, weight, bias, job, needs)
        results = walk.run()
        ctx.gradients = walk.gradients
        ctx.mark_non_differentiable(*results[1:])
        return results

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the gradients of the fused loss are handed over once; compute the loss anew")
        gradients, ctx.gradients = ctx.gradients, None
        return *(None if grad is None else grad.mul_(grad_loss) for grad in gradients), None


class _Walk:
    """One walk over the chunks, and what it adds up."""

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, job: _Job, needs: Sequence[bool]
    ) -> None:
        self.job = job
        kind = hidden.device.type
        # As the projection would under mixed precision: the products in its type, the sums in the weight's.
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        size = job.head.vocab_size
        self.hidden = hidden.to(dtype)
        rows, shift = job.head.cut
        self.weight = rows.to(dtype)
        self.bias = None if shift is None else shift.to(dtype)
        inputs = (hidden, weight, bias)
        wide = torch.promote_types(dtype, torch.float32)
        self.totals = [
            torch.zeros_like(tensor, dtype=wide) if need and tensor is not None else None
            for tensor, need in zip(inputs, needs, strict=True)
        ]
        self._dtypes = [None if tensor is None else tensor.dtype for tensor in inputs]
        longest = max(span.stop - span.start for span in job.spans)
        self.logits = self.hidden.new_empty(longest, size)
        self.fused = hidden.new_empty((longest if job.signals and job.listed is None else 0, size), dtype=wide)
        self.teacher_logits: dict[torch.dtype, Tensor] = {}

    @property
    def gradients(self) -> list[Tensor | None]:
        """Of hidden states, weight and bias, in their own types."""
        return [
            None if total is None else total.to(dtype)
            for total, dtype in zip(self.totals, self._dtypes, strict=True)
        ]

    def run(self) -> tuple[Tensor, ...]:
        """The loss, the other sums of `DistillationSums`, the four statistics and the weights."""
        spans = self.job.spans
        absent_in = absences(self.job.valid, spans)
        with torch.autocast(self.hidden.device.type, enabled=False):
            chunks = [_Chunk(self, rows, absent).run() for rows, absent in zip(spans, absent_in, strict=True)]
        sums, rows = zip(*chunks, strict=True)
        totals = [torch.stack(part).sum(0) for part in zip(*sums, strict=True)]
        columns = [torch.cat(part) for part in zip(*rows, strict=True)]
        return *totals, *columns

    def add_gradients(self, rows: slice, grad_logits: Tensor) -> None:
        """Take the gradient of a chunk's products."""
        of_hidden, of_weight, of_bias = self.totals
        if of_hidden is not None:
            of_hidden[rows] = grad_of_hidden(grad_logits, self.weight)
        if of_weight is not None:
            add_grad_of_weight_(of_weight[: self.job.head.vocab_size], grad_logits, self.hidden[rows])
        if of_bias is not None:
            of_bias[: self.job.head.vocab_size].add_(grad_logits.sum(0, dtype=of_bias.dtype))


_Distilled = tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]
"""Divergence of each row, sums over the rows, and what is kept of each row."""


class _Chunk:
    """The rows of one chunk, from the student's logits to their gradient."""

    def __init__(self, walk: _Walk, rows: slice, absent: Sequence[bool]) -> None:
        self.walk, self.job, self.rows, self.absent = walk, walk.job, rows, absent
        self.labels = self.job.labels[rows].unsqueeze(-1)  # [n 1]
        out = walk.logits[: len(self.labels)]  # [n V]
        self.logits = project(walk.hidden[rows], walk.weight, walk.bias, out=out)
        head, with_mean = self.job.head, self.job.label_smoothing > 0.0
        options = (head.scale, head.softcap, self.job.target.temperature, with_mean)
        block = 0 if self.job.listed is None else BLOCK
        figures = run(student_pass, (self.logits,), *options, block)
        self.log_total, self.softened, self.mean, *self.survey = figures
        self.label_logits = self.logits.gather(-1, self.labels).squeeze(-1)
        self.kd_weight = of_rows(self.job.kd_weight, rows, self.log_total)
        self.ce_weight = of_rows(self.job.ce_weight, rows, self.log_total)

    def run(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Sums over the rows, and what is kept of each row."""
        nll = self.log_total - self.label_logits
        smoothing = self.job.label_smoothing
        smoothed = nll
        if smoothing > 0.0:
            smoothed = (1.0 - smoothing) * nll + smoothing * (self.log_total - self.mean)
        if self.job.signals:
            divergence, sums, kept = self._distil() if self.job.listed is None else self._distil_lists()
        else:
            divergence, sums, kept = self._without_teachers()
        loss = (self.kd_weight * divergence).sum() + (self.ce_weight * smoothed).sum()
        if any(total is not None for total in self.walk.totals):
            self._add_label_gradient()
            self.walk.add_gradients(self.rows, self.logits)
        return (loss, divergence.sum(), nll.sum(), *sums), kept

    def _without_teachers(self) -> _Distilled:
        head, none_of_it = self.job.head, torch.zeros_like(self.log_total)
        zero = none_of_it.sum()
        rows = (self.logits, self.log_total, self.log_total, none_of_it, self.ce_weight)
        run(finish_predictions, rows, 1.0, self.job.label_smoothing, head.scale, head.softcap)
        none = self.log_total.new_empty((len(self.labels), 0))
        return none_of_it, (zero, zero, zero, zero.expand(0)), (none, none, none, none.bool(), none)

    def _distil(self) -> _Distilled:
        job, target = self.job, self.job.target
        buffer = self.walk.fused[: len(self.labels)]
        mixed = StreamedTarget(buffer, target, job.weighting, self.rows, self.labels)
        for signal, absent in zip(job.signals, self.absent, strict=True):
            mixed.add(signal, self.logits, self.softened, self.walk.teacher_logits, absent=absent)
        weights = mixed.weights()
        covered, norm = mixed.covered_and_norm(weights)
        if target.conflict_limit is not None:
            target_entropy, log_pool = run(target_figures, (mixed.fused, norm), mixed.space)
            conflict = _conflict(mixed.space, target_entropy, log_pool, weights, mixed.entropies)
            self._leave_to_the_text(covered & ~target.settled(conflict))
        kd_factor = covered * self.kd_weight * target.scale
        value, target_entropy, log_pool = self._finish(mixed, norm, kd_factor)
        conflict = _conflict(mixed.space, target_entropy, log_pool, weights, mixed.entropies)
        divergence, target_entropy, conflict = _where(covered, value * target.scale, target_entropy, conflict)
        stats = (torch.stack(column, -1) for column in zip(*mixed.stats, strict=True))
        num_covered = covered.sum().to(divergence.dtype)
        sums = (num_covered, target_entropy.sum(), conflict.sum(), torch.stack(mixed.teacher_kls))
        return divergence, sums, (*stats, weights)

    def _leave_to_the_text(self, rows: Tensor) -> None:
        """Move the weight of the divergence to the cross-entropy in these rows."""
        given_up = self.kd_weight * rows
        self.kd_weight, self.ce_weight = self.kd_weight - given_up, self.ce_weight + given_up

    def _distil_lists(self) -> _Distilled:
        """As `_distil`, for teachers that are lists."""
        job, target, rows = self.job, self.job.target, self.rows
        assert job.listed is not None and isinstance(job.weighting, GivenWeights), "known beforehand"
        signals, stats = job.listed
        weights, valid = job.weighting.weights[rows], stats.valid[rows]
        entropy, maxima = self.survey
        survey = (entropy, maxima)
        mixed = ListedMixture(signals, rows, weights, self.logits, self.softened, survey, target.temperature)
        covered = weights.sum(-1) > 0
        kd_factor = covered * self.kd_weight * target.scale
        at_union = self._gradient_at(mixed, kd_factor)
        options = (target.temperature, job.label_smoothing, job.head.scale, job.head.softcap)
        factors = (kd_factor, self.ce_weight)
        figures = mixed.finish(self.logits, self.log_total, self.softened, factors, *options)
        self.logits.scatter_(-1, mixed.ids, at_union.to(self.logits.dtype))
        conflict = figures.entropy - _weighted_mean(weights, figures.entropies)
        value, target_entropy = figures.value * target.scale, figures.entropy
        divergence, target_entropy, conflict = _where(covered, value, target_entropy, conflict)
        kls = [torch.where(valid[:, m], kl, 0.0).sum() for m, kl in enumerate(figures.teacher_kls)]
        columns = (stats.entropy, stats.cross_entropy, stats.weight_cross_entropy, stats.valid)
        kept = (*(column[rows] for column in columns), weights)
        num_covered = covered.sum().to(divergence.dtype)
        return divergence, (num_covered, target_entropy.sum(), conflict.sum(), torch.stack(kls)), kept

    def _gradient_at(self, mixed: ListedMixture, kd_factor: Tensor) -> Float[Tensor, "n U"]:
        """Of the loss, but for what the label gets, with respect to the product at the union of the lists."""
        job = self.job
        z = full_precision(self.logits.gather(-1, mixed.ids))
        gradient = (mixed.student.exp() - mixed.probs) * (kd_factor / job.target.temperature).unsqueeze(-1)
        prediction = (z - self.log_total.unsqueeze(-1)).exp()
        gradient = gradient + cross_entropy_gradient(
            prediction, self.ce_weight, job.label_smoothing, self.logits.shape[-1]
        )
        return gradient * slope(z, job.head.scale, job.head.softcap)

    def _finish(self, mixed: StreamedTarget, norm: Tensor, kd_factor: Tensor) -> tuple[Tensor, ...]:
        job, target = self.job, self.job.target
        rows = (self.logits, mixed.fused, self.log_total, self.softened, norm, kd_factor, self.ce_weight)
        options = (target.temperature, job.label_smoothing, job.head.scale, job.head.softcap)
        if mixed.form is not None:
            return run(finish, rows, mixed.space, mixed.form, *options)
        if isinstance(target.divergence, PositionalDivergence):
            besides = (self.labels.squeeze(-1), of_rows(target.parameter, self.rows, self.log_total))
            return run(finish_by_autograd, (*rows, *besides), mixed.space, target.divergence.at, *options)
        return run(finish_by_autograd, rows, mixed.space, target.divergence, *options)

    def _add_label_gradient(self) -> None:
        head, factor = self.job.head, self.ce_weight * (1.0 - self.job.label_smoothing)
        values = slope(self.label_logits, head.scale, head.softcap) * -factor
        self.logits.scatter_add_(-1, self.labels, values.to(self.logits.dtype).unsqueeze(-1))


def _where(condition: Tensor, *figures: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.where(condition, figure, 0.0) for figure in figures)


def _conflict(
    space: Space, target_entropy: Tensor, log_pool: Tensor, weights: Tensor, entropies: Sequence[Tensor]
) -> Float[Tensor, " n"]:
    return -log_pool if space == "product" else target_entropy - _weighted_mean(weights, entropies)


def _weighted_mean(weights: Tensor, figures: Sequence[Tensor]) -> Float[Tensor, " n"]:
    total = torch.zeros_like(figures[0])
    for weight, figure in zip(weights.unbind(-1), figures, strict=True):
        total = total + torch.where(weight > 0, weight * figure, 0.0)
    return total

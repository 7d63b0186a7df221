"""One chunk of the fused loss: from the product of hidden states and head to the gradient at it, in one buffer.

Derivation. `fused` says why the gradient is known here, `finishing` what it is, `streamed` and `listed` what the
target is. This is the order of things, and what connects them. With x the product, z = head(x) the logits, L and
L_T their log-sum-exps and y the labels:

    nll       = L - z_y                          CE without smoothing
    smoothed  = (1 - s) nll + s (L - mean z)     as -sum over v of (s / V) log q_v = s (L - mean z)
    A         = kd_weight s where some teacher counts, else 0; s = T^2, or 1 (`KdTarget.scale`)
    B         = ce_weight
    loss      = sum of A D + B smoothed
    G         = A dD/dz + B (q - s / V), minus B (1 - s) at the label, all times dz/dx

The conflict among teachers is what fusing them costs: for a mixture H(p) - sum w_k H_k (the Jensen-Shannon
divergence), for a geometric mean -log Z = sum w_k KL(p || p_k). Where it is above a limit, a position is left to
the text: A goes to 0 and its weight is added to B, before G is made.

Time goes from left to right (`*` overwritten in place):

    student's [n V]   x ==*student_pass: z==============================*finish: G==*label==> products in `fused`
    z_y       [n]                   =====================================================|
    target    [n V]                    0==*mix 1==*mix 2==*mix 3====[limit]===|
    teacher's [n V]                    ===|=======|=======|
    A, B      [n]                      ==========================*limit======|
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from collegium.fused import listed
from collegium.fused.chunked import KdTarget, LossSums, of_rows
from collegium.fused.compiled import run
from collegium.fused.elementwise import KernelOptions, LogitRows, Space, student_pass
from collegium.fused.finishing import (
    Finished,
    FinishRows,
    PredictionRows,
    TargetRows,
    cross_entropy_gradient,
    finish,
    finish_by_autograd,
    finish_predictions,
    slope,
    target_figures,
)
from collegium.fused.streamed import StreamedTarget
from collegium.fused.traversal import Lists, Traversal
from collegium.losses.divergences import PositionalDivergence
from collegium.losses.precision import full_precision
from collegium.losses.weighting import GivenWeights
from collegium.signals.contracts import TeacherStats
from collegium.signals.signals import LinearHead, TeacherSignal


@dataclass(frozen=True)
class Job:
    """All that the fused loss needs besides the tensors that get a gradient.

    Attributes:
        labels: Tokens to be predicted, [N].
        signals: One per teacher.
        traversal: Chunks and weighting.
        target: Divergence, fusion and temperature.
        kd_weight: Weight of the divergence, one for all or [N].
        ce_weight: Likewise of the cross-entropy.
        label_smoothing: s.
        head: The student's, as a linear map.
        wants_gradient: True where autograd would have recorded the loss.
    """

    labels: Tensor
    signals: Sequence[TeacherSignal]
    traversal: Traversal
    target: KdTarget
    kd_weight: float | Tensor
    ce_weight: float | Tensor
    label_smoothing: float
    head: LinearHead
    wants_gradient: bool

    @property
    def options(self) -> KernelOptions:
        """The numbers that all kernels get."""
        return KernelOptions(self.target.temperature, self.label_smoothing, self.head.scale, self.head.softcap)

    @property
    def valid(self) -> list[Tensor | None]:
        """Positions where the logits of each teacher may be read; None: everywhere."""
        of_signals = [signal.valid for signal in self.signals]
        weighting = self.traversal.weighting
        # Teachers that are always there are not checked: reading their weights would make the host wait.
        if not isinstance(weighting, GivenWeights) or all(valid is None for valid in of_signals):
            return of_signals
        return list(weighting.valid.unbind(-1))


class Buffers(NamedTuple):
    """Memory that one chunk after another writes to.

    Attributes:
        product: x of this chunk, [n V]; becomes G.
        target: For the fused target, [n V]; of no rows where none is made.
        teachers: For teachers' logits, by type.
    """

    product: Tensor
    target: Tensor
    teachers: dict[torch.dtype, Tensor]


class ChunkColumns(NamedTuple):
    """Figures that are kept of each row: `TeacherStats`, [n M] each, and the weights."""

    teacher_entropy: Tensor
    teacher_cross_entropy: Tensor
    teacher_weight_cross_entropy: Tensor
    teacher_valid: Tensor
    weights: Tensor

    @classmethod
    def of(cls, stats: TeacherStats, weights: Tensor) -> "ChunkColumns":
        """The columns of some rows, side by side."""
        return cls(stats.entropy, stats.cross_entropy, stats.weight_cross_entropy, stats.valid, weights)


class _Distilled(NamedTuple):
    """The divergence of each row, sums over rows as in `LossSums`, and what is kept of each row."""

    divergence: Tensor
    covered: Tensor
    target_entropy: Tensor
    conflict: Tensor
    teacher_kl: Tensor
    columns: ChunkColumns


class ChunkGradient:
    """The rows of one chunk.

    Args:
        job: The loss.
        rows: Positions of the chunk.
        buffers: Its product, and where to make the rest.
        absent: Teachers that say nothing in any of the rows.
    """

    def __init__(self, job: Job, rows: slice, buffers: Buffers, absent: Sequence[bool]) -> None:
        self.job = job
        self.rows = rows
        self.buffers = buffers
        self.absent = absent
        self.labels = job.labels[rows].unsqueeze(-1)  # [n 1]
        self.logits = buffers.product
        # The survey of blocks is for lists alone, and would cost the others two sums more.
        block = 0 if job.traversal.lists is None else listed.BLOCK
        self.found = run(student_pass, LogitRows(self.logits), job.options, block)
        # Read before the gradient takes the place of the logits; its own part of the gradient needs it at the end.
        self.label_logits = self.logits.gather(-1, self.labels).squeeze(-1)
        self.kd_weight = of_rows(job.kd_weight, rows, self.found.log_total)
        self.ce_weight = of_rows(job.ce_weight, rows, self.found.log_total)

    def run(self) -> tuple[LossSums, ChunkColumns]:
        """Overwrite the logits by the gradient but for the label's part, and measure."""
        nll = self.found.log_total - self.label_logits
        smoothing = self.job.label_smoothing
        smoothed = nll
        if self.found.mean is not None:
            smoothed = (1.0 - smoothing) * nll + smoothing * (self.found.log_total - self.found.mean)
        if not self.job.signals:
            distilled = self._without_teachers()
        elif self.job.traversal.lists is None:
            distilled = self._distil()
        else:
            distilled = self._distil_lists(self.job.traversal.lists)
        # A limit on the conflict has moved weights by now.
        loss = (self.kd_weight * distilled.divergence).sum() + (self.ce_weight * smoothed).sum()
        sums = LossSums(
            loss=loss,
            kd=distilled.divergence.sum(),
            cross_entropy=nll.sum(),
            covered=distilled.covered,
            target_entropy=distilled.target_entropy,
            conflict=distilled.conflict,
            teacher_kl=distilled.teacher_kl,
        )
        return sums, distilled.columns

    def gradient(self) -> Float[Tensor, "n V"]:
        """G, complete: the label's part is added to what `run` left. Call it once, after `run`."""
        options = self.job.options
        factor = self.ce_weight * (1.0 - options.smoothing)
        values = slope(self.label_logits, options.scale, options.softcap) * -factor
        self.logits.scatter_add_(-1, self.labels, values.to(self.logits.dtype).unsqueeze(-1))
        return self.logits

    def _without_teachers(self) -> _Distilled:
        zeros = torch.zeros_like(self.found.log_total)
        rows = PredictionRows(self.logits, self.found.log_total, self.found.log_total, zeros, self.ce_weight)
        # With A = 0 nothing is softened: at T = 1 the kernel takes one exponential.
        run(finish_predictions, rows, self.job.options._replace(temperature=1.0))
        zero = zeros.sum()
        none = zeros.new_empty((len(self.labels), 0))
        columns = ChunkColumns(none, none, none, none.bool(), none)
        return _Distilled(zeros, zero, zero, zero, zero.expand(0), columns)

    def _distil(self) -> _Distilled:
        """Stream teachers into the target, then make the gradient of the whole."""
        job = self.job
        target = job.target
        mixed = StreamedTarget(self.buffers.target, target, job.traversal.weighting, self.rows, self.labels)
        for signal, absent in zip(job.signals, self.absent, strict=True):
            mixed.add(signal, self.logits, self.found.softened, self.buffers.teachers, absent=absent)
        weights = mixed.weights()
        covered = mixed.covered(weights)
        if target.conflict_limit is not None:
            # One pass more over the target, as its conflict decides the factors that `finish` needs.
            figures = run(target_figures, TargetRows(mixed.fused, covered.norm), mixed.space)
            conflict = _conflict(mixed.space, figures.entropy, figures.log_pool, weights, mixed.entropies)
            self._leave_to_the_text(covered.where & ~target.settled(conflict))
        kd_factor = covered.where * self.kd_weight * target.scale
        finished = self._finish(mixed, covered.norm, kd_factor)
        conflict = _conflict(mixed.space, finished.target_entropy, finished.log_pool, weights, mixed.entropies)
        # Where no teacher counts there was some target too, whose figures mean nothing.
        divergence = torch.where(covered.where, finished.value * target.scale, 0.0)
        stats = TeacherStats(*(torch.stack(column, -1) for column in zip(*mixed.stats, strict=True)))
        return _Distilled(
            divergence,
            covered.where.sum().to(divergence.dtype),
            torch.where(covered.where, finished.target_entropy, 0.0).sum(),
            torch.where(covered.where, conflict, 0.0).sum(),
            torch.stack(mixed.teacher_kls),
            ChunkColumns.of(stats, weights),
        )

    def _leave_to_the_text(self, rows: Bool[Tensor, " n"]) -> None:
        """Move the weight of the divergence to the cross-entropy in these rows."""
        given_up = self.kd_weight * rows
        self.kd_weight = self.kd_weight - given_up
        self.ce_weight = self.ce_weight + given_up

    def _finish(self, mixed: StreamedTarget, norm: Tensor, kd_factor: Tensor) -> Finished:
        """Choose the kernel for the divergence, and run it."""
        target = self.job.target
        rows = FinishRows(
            self.logits,
            mixed.fused,
            self.found.log_total,
            self.found.softened,
            norm,
            kd_factor,
            self.ce_weight,
        )
        if mixed.form is not None:
            return run(finish, rows, mixed.space, mixed.form, self.job.options)
        if isinstance(target.divergence, PositionalDivergence):
            parameter = of_rows(target.parameter, self.rows, self.found.log_total)
            rows = rows._replace(labels=self.labels.squeeze(-1), parameter=parameter)
            return run(finish_by_autograd, rows, mixed.space, target.divergence.at, self.job.options)
        return run(finish_by_autograd, rows, mixed.space, target.divergence, self.job.options)

    def _distil_lists(self, lists: Lists) -> _Distilled:
        """As `_distil`, for teachers that are lists: the gradient is written in the three kinds of `listed`."""
        job = self.job
        assert isinstance(job.traversal.weighting, GivenWeights), "lists are weighed in a walk of their own"
        stats = TeacherStats(
            entropy=lists.stats.entropy[self.rows],
            cross_entropy=lists.stats.cross_entropy[self.rows],
            weight_cross_entropy=lists.stats.weight_cross_entropy[self.rows],
            valid=lists.stats.valid[self.rows],
        )
        weights = job.traversal.weighting.weights[self.rows]
        student = listed.StudentRows(self.logits, self.found, job.target.temperature)
        mixed = listed.ListedMixture(lists.signals, self.rows, weights, student)
        covered = weights.sum(-1) > 0
        kd_factor = covered * self.kd_weight * job.target.scale
        # Of the logits, hence before `finish` takes their place; written last, over its other two kinds.
        at_union = self._gradient_at(mixed, kd_factor)
        figures = mixed.finish(self.logits, kd_factor, self.ce_weight, job.options)
        self.logits.scatter_(-1, mixed.ids, at_union.to(self.logits.dtype))
        conflict = figures.entropy - _weighted_mean(weights, figures.entropies)
        divergence = torch.where(covered, figures.value * job.target.scale, 0.0)
        kls = [torch.where(stats.valid[:, m], kl, 0.0).sum() for m, kl in enumerate(figures.teacher_kls)]
        return _Distilled(
            divergence,
            covered.sum().to(divergence.dtype),
            torch.where(covered, figures.entropy, 0.0).sum(),
            torch.where(covered, conflict, 0.0).sum(),
            torch.stack(kls),
            ChunkColumns.of(stats, weights),
        )

    def _gradient_at(self, mixed: listed.ListedMixture, kd_factor: Tensor) -> Float[Tensor, "n U"]:
        """G at the union of the lists, but for what the label gets."""
        options = self.job.options
        z = full_precision(self.logits.gather(-1, mixed.ids))
        gradient = (mixed.student.exp() - mixed.probs) * (kd_factor / options.temperature).unsqueeze(-1)
        prediction = (z - self.found.log_total.unsqueeze(-1)).exp()
        gradient = gradient + cross_entropy_gradient(
            prediction, self.ce_weight, options.smoothing, self.logits.shape[-1]
        )
        return gradient * slope(z, options.scale, options.softcap)


def _conflict(
    space: Space, target_entropy: Tensor, log_pool: Tensor, weights: Tensor, entropies: Sequence[Tensor]
) -> Float[Tensor, " n"]:
    return -log_pool if space == "product" else target_entropy - _weighted_mean(weights, entropies)


def _weighted_mean(weights: Tensor, figures: Sequence[Tensor]) -> Float[Tensor, " n"]:
    total = torch.zeros_like(figures[0])
    # One after another and selected: an absent teacher's NaN adds nothing, and its 0 no rounding.
    for weight, figure in zip(weights.unbind(-1), figures, strict=True):
        total = total + torch.where(weight > 0, weight * figure, 0.0)
    return total

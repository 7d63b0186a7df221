"""The distillation loss in one pass: every logit is made once, and its gradient with it.

Derivation. Over N positions, with q^T = softmax(z / T) of the student's logits z, the target p that teachers are
fused to, and weights A_n of the divergence (times T^2, unless `KdTarget.scale` is 1) and B_n of the
cross-entropy, the loss is a sum over positions,

    L = sum over n of  A_n D(q^T_n, p_n)  +  B_n CE(q_n, y_n)            (divided once by a global count, outside)

Teachers carry no gradient, so neither do p and the weights that make it. Position n's logits appear in its own
summand only: the gradient of the whole loss at them is known as soon as its chunk's target is, before any
backward pass. With G = dL / dx [n V] at the product x = h W^T + b of a chunk (`finishing` derives it; forward
KL: row n is A_n (q^T - p) / T + B_n (q - e_y), e_y being 1 at the label and 0 elsewhere),

    dL / dh = G W  [n D]        dL / dW = sum over chunks of G^T h  [V D]        dL / db = sum of the rows of G

so forward makes both, and G takes the place of z in its buffer. Backward multiplies them by dL' / dL, one
number. Autograd would keep or make again the logits of student and teachers for it, as `chunked` does.

Three [n V] buffers are alive at once, whatever the number of teachers. From left to right, with three chunks
(`=` alive; c: chunk):

    forward:                  c1              c2              c3            backward:
    student's z, then G [n V] ==============|===============|==============|
    target p            [n V] ==============|===============|==============|
    a teacher's logits  [n V]  ==|==|==      ==|==|==        ==|==|==       |
    dL/dh               [N D] ======================================================> x g, handed over
    dL/dW               [V D] ======================================================> x g, handed over
    figures, weights    [N M] ======================================================> logged

The price of having the gradient early is that the head's own gradient lives from forward to backward. What
cannot be fused goes to `chunked`: heads that are more than a linear map, learned weights, fusions of a user's
own.

At N = 1,024, V = 49,152, three teachers, two cores: see benchmarks/RESULTS.md.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from collegium.fused import chunked
from collegium.fused.chunk_gradient import Buffers, ChunkColumns, ChunkGradient, Job
from collegium.fused.chunked import DistillationSums, KdTarget, LossSums
from collegium.fused.products import add_grad_of_weight_, grad_of_hidden, project
from collegium.fused.teacher_stats import TeacherWeighting, absences
from collegium.fused.traversal import plan_traversal
from collegium.losses.fusion import geometric_logprobs, mixture_logprobs
from collegium.losses.weighting import GivenWeights
from collegium.signals.contracts import Positions, TeacherStats
from collegium.signals.signals import Head, TeacherSignal, TransparentHead


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
    # Learned weights would need dL / dw_k, which the derivation leaves out; an unknown fusion has no `mix_...`.
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
    traversal = plan_traversal(
        positions,
        signals,
        weighting,
        target,
        student=lambda rows: student_head(student_hidden[rows]),
        chunk_size=chunk_size,
    )
    job = Job(
        labels=positions.labels,
        signals=signals,
        traversal=traversal,
        target=target,
        kd_weight=kd_weight,
        ce_weight=1.0 - kd_weight if ce_weight is None else ce_weight,
        label_smoothing=label_smoothing,
        head=linear,
        wants_gradient=torch.is_grad_enabled(),
    )
    # Autograd hands back a plain tuple, whatever forward returned.
    results = _Results._make(_FusedLoss.apply(student_hidden, linear.weight, linear.bias, job))
    return results.as_sums()


class _Results(NamedTuple):
    """`LossSums` and `ChunkColumns` of a whole batch, flat, as an autograd function must return them."""

    loss: Tensor
    kd: Tensor
    cross_entropy: Tensor
    covered: Tensor
    target_entropy: Tensor
    conflict: Tensor
    teacher_kl: Tensor
    teacher_entropy: Tensor
    teacher_cross_entropy: Tensor
    teacher_weight_cross_entropy: Tensor
    teacher_valid: Tensor
    weights: Tensor

    def as_sums(self) -> DistillationSums:
        """The result of the module."""
        stats = TeacherStats(
            entropy=self.teacher_entropy,
            cross_entropy=self.teacher_cross_entropy,
            weight_cross_entropy=self.teacher_weight_cross_entropy,
            valid=self.teacher_valid,
        )
        return DistillationSums(
            loss=self.loss,
            kd=self.kd,
            cross_entropy=self.cross_entropy,
            covered=self.covered,
            target_entropy=self.target_entropy,
            conflict=self.conflict,
            teacher_kl=self.teacher_kl,
            stats=stats,
            weights=self.weights,
        )


class _FusedLoss(torch.autograd.Function):
    """Loss and gradients together; see the module."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, job: Job) -> _Results:
        # The gradients of what is only logged would otherwise arrive as zeros of its shape.
        ctx.set_materialize_grads(False)
        # Inside of forward no gradient is enabled, so whether one was wanted is asked before.
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
            raise RuntimeError("the gradients of the fused loss are handed over once; compute the loss again")
        # Scaled in place and given away: a copy of the head's gradient would be the largest tensor of the step.
        gradients = ctx.gradients
        ctx.gradients = None
        return *(None if grad is None else grad.mul_(grad_loss) for grad in gradients), None


class _Walk:
    """One walk over the chunks, with the buffers that they share and the gradients that they add to."""

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, job: Job, needs: Sequence[bool]
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
        # Chunk after chunk is added to the head's gradient: in 16 bits late chunks would be rounded away.
        wide = torch.promote_types(dtype, torch.float32)
        self.totals = [
            torch.zeros_like(tensor, dtype=wide) if need and tensor is not None else None
            for tensor, need in zip(inputs, needs, strict=True)
        ]
        self._dtypes = [None if tensor is None else tensor.dtype for tensor in inputs]
        longest = max(span.stop - span.start for span in job.traversal.spans)
        self.logits = self.hidden.new_empty(longest, size)
        # Lists are never made dense, and without teachers there is no target.
        streams = bool(job.signals) and job.traversal.lists is None
        self.fused = hidden.new_empty((longest if streams else 0, size), dtype=wide)
        self.teacher_logits: dict[torch.dtype, Tensor] = {}

    @property
    def gradients(self) -> list[Tensor | None]:
        """Those of hidden states, weight and bias, in their own types."""
        return [
            None if total is None else total.to(dtype)
            for total, dtype in zip(self.totals, self._dtypes, strict=True)
        ]

    def run(self) -> _Results:
        """Walk, and join what the chunks say."""
        spans = self.job.traversal.spans
        absent_in = absences(self.job.valid, spans)
        # The types are settled above; autocast would cast the kernels' float32 sums down again.
        with torch.autocast(self.hidden.device.type, enabled=False):
            chunks = [self._chunk(rows, absent) for rows, absent in zip(spans, absent_in, strict=True)]
        sums, columns = zip(*chunks, strict=True)
        totals = (torch.stack(part).sum(0) for part in zip(*sums, strict=True))
        whole = (torch.cat(part) for part in zip(*columns, strict=True))
        return _Results(*totals, *whole)

    def _chunk(self, rows: slice, absent: Sequence[bool]) -> tuple[LossSums, ChunkColumns]:
        size = rows.stop - rows.start
        product = project(self.hidden[rows], self.weight, self.bias, out=self.logits[:size])
        chunk = ChunkGradient(self.job, rows, Buffers(product, self.fused[:size], self.teacher_logits), absent)
        sums, columns = chunk.run()
        if any(total is not None for total in self.totals):
            self._add_gradients(rows, chunk.gradient())
        return sums, columns

    def _add_gradients(self, rows: slice, grad_logits: Tensor) -> None:
        """Make the gradients of a chunk's product."""
        of_hidden, of_weight, of_bias = self.totals
        if of_hidden is not None:
            of_hidden[rows] = grad_of_hidden(grad_logits, self.weight)
        # Padding of the head makes no logits, and its gradient stays 0.
        if of_weight is not None:
            add_grad_of_weight_(of_weight[: self.job.head.vocab_size], grad_logits, self.hidden[rows])
        if of_bias is not None:
            of_bias[: self.job.head.vocab_size].add_(grad_logits.sum(0, dtype=of_bias.dtype))

"""Kernels that turn the student's logits into the gradient of the loss with respect to them, in place.

Derivation. A row of the loss is A D(q^T, p) + B CE, with p the target, A = `kd_factor` (`kd_weight` times
`KdTarget.scale`, which is T^2 or 1; 0 where no teacher counts), B = `ce_factor`, q = softmax(z), q^T =
softmax(z / T), and CE the cross-entropy to a label y that is smoothed by s:
-(1 - s) log q_y - (s / V) sum_v log q_v.

1. Softmax. dq_u / dz_v = q_u (1[u = v] - q_v) / T at temperature T. So for any D with slopes g_u = dD / dq_u,

       dD / dz_v = (1 / T) q_v (g_v - sum_u q_u g_u)            (q and g at T)

   A constant in g cancels: it moves no mass. By divergence, with r_v = log q_v - log p_v:

       forward KL       D = sum p (log p - log q)   g = -p / q       dD/dz = (q - p) / T       (sum p = 1)
       reverse KL       D = sum q r                 g = r + 1        dD/dz = q (r - D) / T
       total variation  D = 1/2 sum |q - p|         g = sign(q - p) / 2
       Jensen-Shannon   m = b p + (1 - b) q         g = (1 - b) (log q - log m)
                        D = b KL(p || m) + (1 - b) KL(q || m); what comes through m is
                        -(1 - b) (b p + (1 - b) q) / m = -(1 - b), a constant

   Others are differentiated by autograd within the kernel, as a function of one row.
2. Cross-entropy. dCE / dz_v = q_v - (1 - s) 1[v = y] - s / V, with q at temperature 1. The label's part is one
   number a row: the caller adds it afterwards (`chunk_gradient`), so that no kernel compares V ids with a label.
3. The head. z = scale x, or z = c tanh(scale x / c), with x the product. As tanh' = 1 - tanh^2 is known from z
   itself, x need not be kept: dz / dx = scale (1 - (z / c)^2). What is written is dL / dx; two matrix products
   make the gradients of hidden states and head of it.

The target comes out of `streamed` as a sum of shares: with N = `norm` the sum of these,

    probs:    p = target / N                  logs:  log p = target - log N
    product:  log p = target / N - log Z,     Z = sum_v exp(target_v / N), the pool that a geometric mean leaves

Time goes from left to right, within one kernel; columns are what one row needs, not buffers, once compiled:

    student's [n V]   z ====read====================*dL/dx======> products
    target    [n V]   p ====read====|
    temporaries             q^T, log q^T, g, q       (blocks of rows without a compiler)
    numbers   [n]     L, L_T, N, A, B               D, H(p), log Z ======> sums
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.func import grad

from collegium.fused.elementwise import KernelOptions, Space, logprobs_at
from collegium.losses.divergences import LOG_ZERO
from collegium.losses.precision import full_precision


class ClosedForm(NamedTuple):
    """A divergence whose gradient is written out in `_divergence`; `beta` is that of Jensen-Shannon."""

    name: Literal["forward_kl", "reverse_kl", "jsd", "total_variation"]
    beta: float = 0.0


class FinishRows(NamedTuple):
    """All that the gradient of a row depends on.

    Attributes:
        logits: z, finished by `student_pass`, [n V]; becomes the gradient.
        target: Sum of shares, as a `mix_...` kernel made it, [n V].
        log_total: L, [n].
        softened: L_T, [n].
        norm: N, 1 where no teacher counts, [n].
        kd_factor: A, [n].
        ce_factor: B, [n].
        labels: Token ids, for divergences that read them, [n].
        parameter: What such a divergence is given besides, [n].
    """

    logits: Tensor
    target: Tensor
    log_total: Tensor
    softened: Tensor
    norm: Tensor
    kd_factor: Tensor
    ce_factor: Tensor
    labels: Tensor | None = None
    parameter: Tensor | None = None


class PredictionRows(NamedTuple):
    """As `FinishRows`, for a target that is a multiple of the student's own prediction."""

    logits: Tensor
    log_total: Tensor
    softened: Tensor
    kd_factor: Tensor
    ce_factor: Tensor


class TargetRows(NamedTuple):
    """A sum of shares [n V], and the sum of these shares [n]."""

    target: Tensor
    norm: Tensor


class Finished(NamedTuple):
    """Divergence, entropy of the target, and log Z of a product (0 for a mixture), [n] each."""

    value: Tensor
    target_entropy: Tensor
    log_pool: Tensor


class TargetFigures(NamedTuple):
    """Entropy of the target, and log Z of a product (0 for a mixture), [n] each."""

    entropy: Tensor
    log_pool: Tensor


class _Target(NamedTuple):
    probs: Tensor
    logprobs: Tensor
    log_pool: Tensor


def finish(rows: FinishRows, space: Space, divergence: ClosedForm, options: KernelOptions) -> Finished:
    """Overwrite the logits by their gradient, all but the label's own part of it.

    Args:
        rows: Logits, target, and what is known of both.
        space: Which kernel mixed the target.
        divergence: One whose gradient is written out.
        options: Temperature, smoothing, and what the head does.
    """
    target = _target(rows.target, rows.norm, space)
    z = full_precision(rows.logits)
    student_logprobs = logprobs_at(z, rows.softened, options.temperature)
    value, gradient = _divergence(student_logprobs, target.probs, target.logprobs, divergence)
    # A may hold T^2 (`KdTarget.scale`): one T of it goes here, by the other q^T - p shrinks as T grows.
    gradient = gradient * (rows.kd_factor / options.temperature).unsqueeze(-1)
    # At temperature 1 the same exponential serves both; the compiler cannot know that.
    at_one = options.temperature == 1.0
    prediction = student_logprobs.exp() if at_one else (z - rows.log_total.unsqueeze(-1)).exp()
    gradient = gradient + cross_entropy_gradient(prediction, rows.ce_factor, options.smoothing, z.shape[-1])
    rows.logits.copy_(gradient * slope(z, options.scale, options.softcap))
    return Finished(value, -(target.probs * target.logprobs).sum(-1), target.log_pool)


def finish_by_autograd(
    rows: FinishRows, space: Space, divergence: Callable[..., Tensor], options: KernelOptions
) -> Finished:
    """`finish` for a divergence whose gradient is not written out.

    `divergence` takes log-probabilities of student and target, and then labels and parameter where rows have them.
    """
    target = _target(rows.target, rows.norm, space)
    z = full_precision(rows.logits)
    besides = () if rows.labels is None else (rows.labels, rows.parameter)

    # torch.func.grad and not backward: it is traced into the same compiled loop, and keeps no graph.
    def weighted(leaf: Tensor) -> tuple[Tensor, Tensor]:
        value = divergence((leaf / options.temperature).log_softmax(-1), target.logprobs, *besides)
        return (value * rows.kd_factor).sum(), value

    gradient, value = grad(weighted, has_aux=True)(z)
    prediction = (z - rows.log_total.unsqueeze(-1)).exp()
    gradient = gradient + cross_entropy_gradient(prediction, rows.ce_factor, options.smoothing, z.shape[-1])
    rows.logits.copy_(gradient * slope(z, options.scale, options.softcap))
    return Finished(value, -(target.probs * target.logprobs).sum(-1), target.log_pool)


def finish_predictions(rows: PredictionRows, options: KernelOptions) -> tuple[()]:
    """`finish` for a forward KL to C q^T, a multiple of the student's own prediction, or without a teacher.

    A (q^T - C q^T) is A (1 - C) q^T: `kd_factor` holds A (1 - C), and 0 without a teacher, so no target is read.
    """
    z = full_precision(rows.logits)
    prediction = (z - rows.log_total.unsqueeze(-1)).exp()
    # One exponential for both at T = 1.
    softened_prediction = prediction
    if options.temperature != 1.0:
        softened_prediction = logprobs_at(z, rows.softened, options.temperature).exp()
    gradient = softened_prediction * (rows.kd_factor / options.temperature).unsqueeze(-1)
    gradient = gradient + cross_entropy_gradient(prediction, rows.ce_factor, options.smoothing, z.shape[-1])
    rows.logits.copy_(gradient * slope(z, options.scale, options.softcap))
    return ()


def target_figures(rows: TargetRows, space: Space) -> TargetFigures:
    """Figures of the target before the gradient is made, where these decide its factors."""
    target = _target(rows.target, rows.norm, space)
    return TargetFigures(-(target.probs * target.logprobs).sum(-1), target.log_pool)


def cross_entropy_gradient(prediction: Tensor, factor: Tensor, smoothing: float, vocab_size: int) -> Tensor:
    """Step 2 of the derivation, without the label's own part, for some tokens of a vocabulary."""
    return (prediction - smoothing / vocab_size) * factor.unsqueeze(-1)


def slope(logits: Tensor, scale: float, softcap: float | None) -> Tensor | float:
    """dz / dx, step 3 of the derivation."""
    return scale if softcap is None else scale * (1.0 - (logits / softcap).square())


def _target(target: Tensor, norm: Tensor, space: Space) -> _Target:
    if space == "probs":
        probs = target / norm.unsqueeze(-1)
        # 0 log 0 would be NaN; with the smallest normal number under the log it is the 0 that it should be.
        return _Target(probs, probs.clamp_min(torch.finfo(probs.dtype).tiny).log(), torch.zeros_like(norm))
    if space == "logs":
        logprobs = (target - norm.log().unsqueeze(-1)).clamp_min(LOG_ZERO)
        return _Target(logprobs.exp(), logprobs, torch.zeros_like(norm))
    mean = target / norm.unsqueeze(-1)
    log_pool = mean.logsumexp(-1)
    logprobs = (mean - log_pool.unsqueeze(-1)).clamp_min(LOG_ZERO)
    return _Target(logprobs.exp(), logprobs, log_pool)


def _divergence(
    student_logprobs: Tensor, probs: Tensor, logprobs: Tensor, form: ClosedForm
) -> tuple[Tensor, Tensor]:
    """D, and T dD / dz, by the table of the derivation."""
    student = student_logprobs.exp()
    if form.name == "forward_kl":
        # The log of a token that the student rules out is clamped: it costs, but its slope is 0, so its p is no
        # part of the gradient. In rows without such a token live sums to 1.
        live = torch.where(student_logprobs > LOG_ZERO, probs, 0.0)
        value = (probs * (logprobs - student_logprobs)).sum(-1)
        return value, student * live.sum(-1, keepdim=True) - live
    if form.name == "reverse_kl":
        slopes = student_logprobs - logprobs
        value = (student * slopes).sum(-1)
        return value, student * (slopes - value.unsqueeze(-1))
    if form.name == "total_variation":
        difference = student - probs
        slopes = 0.5 * difference.sign()
        return 0.5 * difference.abs().sum(-1), student * (slopes - (student * slopes).sum(-1, keepdim=True))
    middle = form.beta * probs + (1.0 - form.beta) * student
    log_middle = middle.clamp_min(torch.finfo(middle.dtype).tiny).log()
    slopes = (1.0 - form.beta) * (student_logprobs - log_middle)
    # (1 - b) KL(q || m), which is a summand of D and at the same time the mean slope that is taken off.
    to_student = (student * slopes).sum(-1)
    value = form.beta * (probs * (logprobs - log_middle)).sum(-1) + to_student
    return value, student * (slopes - to_student.unsqueeze(-1))

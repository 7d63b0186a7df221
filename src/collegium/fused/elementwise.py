"""The element-wise work of the fused loss on [n V] buffers, a kernel for each pass.

Each kernel reads its buffers once from memory and overwrites one in place. Compiled, a kernel is one
loop over the rows (C++ on a CPU, Triton on a GPU); without a compiler the same code runs on blocks
of rows so small that its temporaries stay in cache. At 128 positions and V = 49,152 on two cores a
step with three teachers takes 11 ms compiled, 42 ms in blocks and 120 ms on the whole chunk; the
matrix products take 93 ms.

Logits may be of half precision; everything is computed in at least float32. `LOG_ZERO` is treated as
in `divergences`: what is ruled out costs a large finite number.
"""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.func import grad

from collegium.losses.divergences import LOG_ZERO
from collegium.losses.precision import full_precision


Space = Literal["probs", "logs", "product"]
"""In what a target is accumulated: probabilities, their logs, or a weighted sum of log-probabilities."""

ClosedForm = tuple[Literal["forward_kl", "reverse_kl", "jsd", "total_variation"], float]
"""A divergence whose gradient is written out below, and the beta of the Jensen-Shannon divergence."""


# ---- kernels: ([n V] and [n] tensors, then plain options) -> [n] tensors


def cap(logits: Tensor, scale: float, softcap: float | None) -> tuple[()]:
    """What a head does to its product, in place."""
    if scale != 1.0 or softcap is not None:
        scaled = full_precision(logits) * scale
        logits.copy_(scaled if softcap is None else torch.tanh(scaled / softcap) * softcap)
    return ()


def student_pass(
    logits: Tensor, scale: float, softcap: float | None, temperature: float, with_mean: bool, block: int
) -> tuple[Tensor, ...]:
    """Scale and cap the logits in place.

    Returns:
        Log-sum-exp at temperature 1 and at `temperature`, and the mean if asked. If `block` is not 0: the
        entropy at `temperature`, and the highest logit of each whole block of so many tokens.
    """
    cap(logits, scale, softcap)
    z = full_precision(logits)
    log_total = z.logsumexp(-1)
    softened = log_total if temperature == 1.0 else (z / temperature).logsumexp(-1)
    figures = (log_total, softened, z.mean(-1) if with_mean else log_total)
    if block == 0:
        return figures
    entropy = _softmax_figures(z, z.amax(-1, keepdim=True), temperature)[0]
    whole = z.shape[-1] // block * block
    return *figures, entropy, z[:, :whole].unflatten(-1, (-1, block)).amax(-1)


def teacher_pass(
    logits: Tensor,
    student: Tensor,
    student_softened: Tensor,
    temperatures: tuple[float, float, float],
    temperature: float,
) -> tuple[Tensor, ...]:
    """What is known of a teacher before it is mixed.

    `temperatures` are those of its weight, of its own distribution and of what is mixed.

    Returns:
        Entropy at the weight temperature; log-sum-exp at each of the three; entropy of what is
        mixed and its KL to the student, softened by `temperature`. NaN where logits are bad.
    """
    t = full_precision(logits)
    top = t.amax(-1, keepdim=True)
    weight, own, mixed = temperatures
    mixed_entropy, mixed_log_total, exps, total = _softmax_figures(t, top, mixed)
    entropy, log_total = mixed_entropy, mixed_log_total
    if weight != mixed:
        entropy, log_total, _, _ = _softmax_figures(t, top, weight)
    own_log_total = log_total
    if own != weight:
        own_log_total = mixed_log_total if own == mixed else _softmax_figures(t, top, own)[1]
    student_logprobs = _logprobs(student, student_softened, temperature)
    kl = -(exps * student_logprobs).sum(-1) / total - mixed_entropy
    return entropy, log_total, own_log_total, mixed_log_total, mixed_entropy, kl


def teacher_figures(logits: Tensor, at_label: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Entropy and log-sum-exp at `temperature`, and how many logits are above `at_label` [n 1]."""
    t = full_precision(logits)
    entropy, log_total, _, _ = _softmax_figures(t, t.amax(-1, keepdim=True), temperature)
    return entropy, log_total, (t > full_precision(at_label)).sum(-1)


def mix_probs(
    mixture: Tensor, logits: Tensor, log_total: Tensor, keep: Tensor, share: Tensor, temperature: float
) -> tuple[()]:
    """mixture = keep * mixture + share * p. A share of 0 leaves NaN and infinite logits unread."""
    probs = (full_precision(logits) / temperature - log_total.unsqueeze(-1)).exp()
    return _add_share(mixture, probs, keep, share)


def mix_logs(
    mixture: Tensor, logits: Tensor, log_total: Tensor, keep: Tensor, share: Tensor, temperature: float
) -> tuple[()]:
    """`mix_probs` in log space, for divergences that read log p where p itself underflows."""
    logprobs = _logprobs(logits, log_total, temperature)
    shares = share.unsqueeze(-1)
    term = torch.where(shares > 0, logprobs + shares.log(), -torch.inf)
    mixture.copy_(torch.logaddexp(mixture + keep.unsqueeze(-1).log(), term))
    return ()


def mix_product(
    product: Tensor, logits: Tensor, log_total: Tensor, keep: Tensor, share: Tensor, temperature: float
) -> tuple[()]:
    """product = keep * product + share * log p."""
    return _add_share(product, _logprobs(logits, log_total, temperature), keep, share)


def _add_share(total: Tensor, term: Tensor, keep: Tensor, share: Tensor) -> tuple[()]:
    shares = share.unsqueeze(-1)
    total.copy_(total * keep.unsqueeze(-1) + torch.where(shares > 0, term * shares, 0.0))
    return ()


def finish(
    logits: Tensor,
    fused: Tensor,
    log_total: Tensor,
    softened: Tensor,
    norm: Tensor,
    kd_factor: Tensor,
    ce_factor: Tensor,
    space: Space,
    divergence: ClosedForm,
    temperature: float,
    smoothing: float,
    scale: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Turn the student's logits into the gradient with respect to them, in place.

    All but what the label itself gets, which is one element in a row and left to the caller.

    Args:
        logits: Student's, finished by `student_pass`.
        fused: What a `mix_...` kernel made, in `space`.
        log_total: Of the student at temperature 1.
        softened: Of the student at `temperature`.
        norm: Sum of the shares that were mixed; 1 where no teacher counts.
        kd_factor: Factor of the divergence.
        ce_factor: Factor of the cross-entropy.
        space: Which kernel mixed.
        divergence: Which one, and its beta.
        temperature: Softens the student.
        smoothing: Label smoothing.
        scale: Of the logits.
        softcap: Of the logits.

    Returns:
        Divergence, entropy of the target, and log of the normaliser of the product (else 0).
    """
    probs, logprobs, log_pool = _target(fused, norm, space)
    z = full_precision(logits)
    student_logprobs = _logprobs(z, softened, temperature)
    value, gradient = _divergence(student_logprobs, probs, logprobs, divergence)
    gradient = gradient * (kd_factor / temperature).unsqueeze(-1)
    # At temperature 1 the same exponential serves both; the compiler cannot know that.
    prediction = student_logprobs.exp() if temperature == 1.0 else (z - log_total.unsqueeze(-1)).exp()
    gradient = gradient + cross_entropy_gradient(prediction, ce_factor, smoothing, z.shape[-1])
    logits.copy_(gradient * slope(z, scale, softcap))
    return value, -(probs * logprobs).sum(-1), log_pool


def finish_predictions(
    logits: Tensor,
    log_total: Tensor,
    softened: Tensor,
    kd_factor: Tensor,
    ce_factor: Tensor,
    temperature: float,
    smoothing: float,
    scale: float,
    softcap: float | None,
) -> tuple[()]:
    """`finish` where the target is a multiple of the student's softened prediction, or there is no teacher.

    `kd_factor` holds 1 minus that multiple, 0 without a teacher.
    """
    z = full_precision(logits)
    prediction = (z - log_total.unsqueeze(-1)).exp()
    softened_prediction = prediction if temperature == 1.0 else _logprobs(z, softened, temperature).exp()
    gradient = softened_prediction * (kd_factor / temperature).unsqueeze(-1)
    gradient = gradient + cross_entropy_gradient(prediction, ce_factor, smoothing, z.shape[-1])
    logits.copy_(gradient * slope(z, scale, softcap))
    return ()


def mass_above(logits: Tensor, softened: Tensor, limits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Number and mass of the tokens whose log-probability is above each of the limits [n M]; [n M] both."""
    logprobs = _logprobs(logits, softened, temperature)
    probs = logprobs.exp()
    counts, masses = [], []
    for limit in limits.unbind(-1):
        over = logprobs > limit.unsqueeze(-1)
        counts.append(over.to(probs.dtype).sum(-1))
        masses.append(torch.where(over, probs, 0.0).sum(-1))
    return torch.stack(counts, -1), torch.stack(masses, -1)


def finish_lists(
    logits: Tensor,
    log_total: Tensor,
    softened: Tensor,
    kd_factor: Tensor,
    ce_factor: Tensor,
    weights: Tensor,
    factors: Tensor,
    caps: Tensor,
    temperature: float,
    smoothing: float,
    vocab_size: int,
    scale: float,
    softcap: float | None,
) -> tuple[Tensor, ...]:
    """`finish` on some tokens, for the mixture of min(factor q, cap) under the weights, [n M] all three.

    Returns:
        Sums over the tokens: of q and q log q; of p log p and p log q of the mixture; of both of each
        teacher, [n M].
    """
    z = full_precision(logits)
    logprobs = _logprobs(z, softened, temperature)
    probs = logprobs.exp()
    mixture = torch.zeros_like(probs)
    plogps, crosses = [], []
    tiny = torch.finfo(probs.dtype).tiny
    for weight, factor, cap in zip(weights.unbind(-1), factors.unbind(-1), caps.unbind(-1), strict=True):
        p = torch.minimum(factor.unsqueeze(-1) * probs, cap.unsqueeze(-1))
        log_p = torch.minimum(
            factor.clamp_min(tiny).log().unsqueeze(-1) + logprobs, cap.clamp_min(tiny).log().unsqueeze(-1)
        )
        plogps.append((p * log_p).sum(-1))
        crosses.append((p * logprobs).sum(-1))
        mixture = mixture + weight.unsqueeze(-1) * p
    gradient = (probs - mixture) * (kd_factor / temperature).unsqueeze(-1)
    prediction = probs if temperature == 1.0 else (z - log_total.unsqueeze(-1)).exp()
    gradient = gradient + cross_entropy_gradient(prediction, ce_factor, smoothing, vocab_size)
    logits.copy_(gradient * slope(z, scale, softcap))
    of_student = (probs.sum(-1), (probs * logprobs).sum(-1))
    of_mixture = ((mixture * mixture.clamp_min(tiny).log()).sum(-1), (mixture * logprobs).sum(-1))
    return *of_student, *of_mixture, torch.stack(plogps, -1), torch.stack(crosses, -1)


def finish_by_autograd(
    logits: Tensor,
    fused: Tensor,
    log_total: Tensor,
    softened: Tensor,
    norm: Tensor,
    kd_factor: Tensor,
    ce_factor: Tensor,
    *besides_and_options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """`finish` for a divergence whose gradient is not written out.

    After the rows come those that the divergence reads besides the two distributions, then the options of
    `finish` with the function itself as the divergence.
    """
    *besides, space, divergence, temperature, smoothing, scale, softcap = besides_and_options
    probs, logprobs, log_pool = _target(fused, norm, space)
    z = full_precision(logits)

    def weighted(leaf: Tensor) -> tuple[Tensor, Tensor]:
        value = divergence((leaf / temperature).log_softmax(-1), logprobs, *besides)
        return (value * kd_factor).sum(), value

    gradient, value = grad(weighted, has_aux=True)(z)
    prediction = (z - log_total.unsqueeze(-1)).exp()
    gradient = gradient + cross_entropy_gradient(prediction, ce_factor, smoothing, z.shape[-1])
    logits.copy_(gradient * slope(z, scale, softcap))
    return value, -(probs * logprobs).sum(-1), log_pool


def target_figures(fused: Tensor, norm: Tensor, space: Space) -> tuple[Tensor, Tensor]:
    """Entropy of the target, and log of the normaliser of the product (else 0)."""
    probs, logprobs, log_pool = _target(fused, norm, space)
    return -(probs * logprobs).sum(-1), log_pool


def cross_entropy_gradient(prediction: Tensor, factor: Tensor, smoothing: float, vocab_size: int) -> Tensor:
    """All but what the label itself gets, for some tokens of a vocabulary."""
    return (prediction - smoothing / vocab_size) * factor.unsqueeze(-1)


def slope(logits: Tensor, scale: float, softcap: float | None) -> Tensor | float:
    """Derivative of the finished logits with respect to what the product gave."""
    return scale if softcap is None else scale * (1.0 - (logits / softcap).square())


def _logprobs(logits: Tensor, log_total: Tensor, temperature: float) -> Tensor:
    z = full_precision(logits)
    scaled = z if temperature == 1.0 else z / temperature
    return (scaled - log_total.unsqueeze(-1)).clamp_min(LOG_ZERO)


def _softmax_figures(logits: Tensor, top: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Entropy, log-sum-exp, exponentials above `top` and their sum."""
    below = (logits - top) if temperature == 1.0 else (logits - top) / temperature
    below = below.clamp_min(LOG_ZERO)
    exps = below.exp()
    total = exps.sum(-1)
    log_total = total.log()
    entropy = log_total - (exps * below).sum(-1) / total
    return entropy, log_total + top.squeeze(-1) / temperature, exps, total


def _target(fused: Tensor, norm: Tensor, space: Space) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities, log-probabilities and log-normaliser of the target."""
    if space == "probs":
        probs = fused / norm.unsqueeze(-1)
        return probs, probs.clamp_min(torch.finfo(probs.dtype).tiny).log(), torch.zeros_like(norm)
    if space == "logs":
        logprobs = (fused - norm.log().unsqueeze(-1)).clamp_min(LOG_ZERO)
        return logprobs.exp(), logprobs, torch.zeros_like(norm)
    mean = fused / norm.unsqueeze(-1)
    log_pool = mean.logsumexp(-1)
    logprobs = (mean - log_pool.unsqueeze(-1)).clamp_min(LOG_ZERO)
    return logprobs.exp(), logprobs, log_pool


def _divergence(
    student_logprobs: Tensor, probs: Tensor, logprobs: Tensor, form: ClosedForm
) -> tuple[Tensor, Tensor]:
    """Value, and gradient with respect to the logits of the student at its temperature.

    With g = dL/dq the gradient is q (g - <q, g>).
    """
    name, beta = form
    student = student_logprobs.exp()
    if name == "forward_kl":
        # A token that the student rules out is clamped: it costs, but gets no gradient.
        live = torch.where(student_logprobs > LOG_ZERO, probs, 0.0)
        value = (probs * (logprobs - student_logprobs)).sum(-1)
        return value, student * live.sum(-1, keepdim=True) - live
    if name == "reverse_kl":
        slopes = student_logprobs - logprobs
        value = (student * slopes).sum(-1)
        return value, student * (slopes - value.unsqueeze(-1))
    if name == "total_variation":
        difference = student - probs
        slopes = 0.5 * difference.sign()
        return 0.5 * difference.abs().sum(-1), student * (slopes - (student * slopes).sum(-1, keepdim=True))
    middle = beta * probs + (1.0 - beta) * student
    log_middle = middle.clamp_min(torch.finfo(middle.dtype).tiny).log()
    slopes = (1.0 - beta) * (student_logprobs - log_middle)
    to_student = (student * slopes).sum(-1)
    return beta * (probs * (logprobs - log_middle)).sum(-1) + to_student, student * (
        slopes - to_student.unsqueeze(-1)
    )

"""Divergences with their gradient written out: value [n] and gradient [n V] with respect to the student's logits.

The student's log-probabilities are those of its logits at the temperature of the loss; the factor 1 / temperature
is left to the caller. A function reads the student once and the target once and is made of sums over a row and
element-wise work, so that a compiler fuses it into two or three passes, where autograd keeps a buffer [n V]
for every step of the formula. The functions of the same names in `divergences` and `blended_divergences` say
what is computed, and are the reference.

The target comes as probabilities and their logs, since whoever mixes teachers has both. All
log-probabilities must be at least `LOG_ZERO`; a token that the student rules out costs, but gets no gradient.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from collegium.functional.blended_divergences import head_mask
from collegium.functional.divergences import LOG_ZERO, set_apart


Slope = tuple[Float[Tensor, " n"], Float[Tensor, "n V"]]
"""Value and gradient with respect to the logits."""


def forward_kl(student_logprobs: Tensor, probs: Tensor, logprobs: Tensor) -> Slope:
    """Of sum_v p log(p / q)."""
    value = (probs * (logprobs - student_logprobs)).sum(-1)
    return value, _to_logits(student_logprobs, -probs)


def reverse_kl(student_logprobs: Tensor, probs: Tensor, logprobs: Tensor) -> Slope:
    """Of sum_v q log(q / p)."""
    student = student_logprobs.exp()
    terms = student * (student_logprobs - logprobs)
    return terms.sum(-1), _to_logits(student_logprobs, terms + student)


def skew_forward_kl(student_logprobs: Tensor, probs: Tensor, logprobs: Tensor, alpha: float | Tensor) -> Slope:
    """Of sum_v p log(p / m), m = alpha p + (1 - alpha) q."""
    if not isinstance(alpha, Tensor) and alpha == 0.0:
        return forward_kl(student_logprobs, probs, logprobs)
    share = _column(alpha)
    rest = (1.0 - share) * student_logprobs.exp()
    middle = _positive(share * probs + rest)
    value = (probs * (logprobs - middle.log())).sum(-1)
    return value, _to_logits(student_logprobs, -probs * rest / middle)


def skew_reverse_kl(student_logprobs: Tensor, probs: Tensor, logprobs: Tensor, alpha: float | Tensor) -> Slope:
    """Of sum_v q log(q / m), m = alpha q + (1 - alpha) p."""
    if not isinstance(alpha, Tensor) and alpha == 0.0:
        return reverse_kl(student_logprobs, probs, logprobs)
    share, student = _column(alpha), student_logprobs.exp()
    rest = (1.0 - share) * probs
    middle = _positive(share * student + rest)
    terms = student * (student_logprobs - middle.log())
    return terms.sum(-1), _to_logits(student_logprobs, terms + student * rest / middle)


def detached_skew_reverse_kl(
    student_logprobs: Tensor, probs: Tensor, logprobs: Tensor, alpha: float | Tensor
) -> Slope:
    """Of sum_v q log(q / m), m = alpha q + (1 - alpha) p a constant."""
    if not isinstance(alpha, Tensor) and alpha == 0.0:
        return reverse_kl(student_logprobs, probs, logprobs)
    share, student = _column(alpha), student_logprobs.exp()
    middle = _positive(share * student + (1.0 - share) * probs)
    terms = student * (student_logprobs - middle.log())
    return terms.sum(-1), _to_logits(student_logprobs, terms + student)


def distillm2(
    student_logprobs: Tensor,
    probs: Tensor,
    logprobs: Tensor,
    on_policy: Tensor,
    alpha: float | Tensor,
    beta: float | Tensor = 1.0,
) -> Slope:
    """Of (2 - beta) skew_forward_kl, or of beta detached_skew_reverse_kl where `on_policy` [n]."""
    given = skew_forward_kl(student_logprobs, probs, logprobs, alpha)
    own = detached_skew_reverse_kl(student_logprobs, probs, logprobs, alpha)
    value = torch.where(on_policy, beta * own[0], (2.0 - beta) * given[0])
    return value, torch.where(on_policy.unsqueeze(-1), beta * own[1], (2.0 - beta) * given[1])


def taid(student_logprobs: Tensor, probs: Tensor, logprobs: Tensor, t: float | Tensor) -> Slope:
    """Of the forward KL to softmax((1 - t) log q + t log p), a constant."""
    share = _column(t)
    blend = (1.0 - share) * student_logprobs + share * logprobs
    target = blend - blend.logsumexp(-1, keepdim=True)
    return forward_kl(student_logprobs, target.exp(), target)


def todi(student_logprobs: Tensor, probs: Tensor, logprobs: Tensor) -> Slope:
    """Of sum_v w p log(p / q) + (1 - w) q log(q / p), w = sigmoid(log p / q) a constant."""
    log_ratio = logprobs - student_logprobs
    weight = log_ratio.sigmoid()
    own = (1.0 - weight) * student_logprobs.exp()
    given = weight * probs
    return ((given - own) * log_ratio).sum(-1), _to_logits(student_logprobs, own * (1.0 - log_ratio) - given)


def adaptive_kl(student_logprobs: Tensor, probs: Tensor, logprobs: Tensor, mu: float) -> Slope:
    """Of share KL(p || q) + (1 - share) KL(q || p), the share a constant.

    Finding the head takes as many sums over a row as a number has bits, and one running sum.
    """
    student = student_logprobs.exp()
    gaps = (probs - student).abs()
    in_head, total = torch.where(head_mask(probs, mu), gaps, 0.0).sum(-1), gaps.sum(-1)
    share = torch.where(total > 0, in_head / _positive(total), 0.5)
    log_ratio = logprobs - student_logprobs
    value = share * (probs * log_ratio).sum(-1) - (1.0 - share) * (student * log_ratio).sum(-1)
    forward, reverse = share.unsqueeze(-1), 1.0 - share.unsqueeze(-1)
    return value, _to_logits(student_logprobs, reverse * student * (1.0 - log_ratio) - forward * probs)


def alpha_beta(student_logprobs: Tensor, probs: Tensor, logprobs: Tensor, alpha: float, beta: float) -> Slope:
    """Of `divergences.alpha_beta`; with respect to log q it is (q^(alpha + beta) - p^alpha q^beta) / alpha."""
    if alpha == 0.0:
        return _alpha_0(student_logprobs, logprobs, beta)
    power = alpha + beta
    own = (power * student_logprobs).exp()
    mixed = (alpha * logprobs + beta * student_logprobs).exp()
    slopes = (own - mixed) / alpha
    if beta == 0.0:
        if alpha == 1.0:
            return forward_kl(student_logprobs, probs, logprobs)
        value = (alpha * mixed * (logprobs - student_logprobs) - mixed + own).sum(-1) / alpha**2
    else:
        given = (power * logprobs).exp()
        value = ((alpha * given + beta * own) / power - mixed).sum(-1) / (alpha * beta)
    return value, _to_logits(student_logprobs, slopes)


def _alpha_0(student_logprobs: Tensor, logprobs: Tensor, beta: float) -> Slope:
    log_ratio = student_logprobs - logprobs
    if beta == 0.0:
        return 0.5 * log_ratio.square().sum(-1), _to_logits(student_logprobs, log_ratio)
    own, given = (beta * student_logprobs).exp(), (beta * logprobs).exp()
    value = (beta * own * log_ratio - own + given).sum(-1) / beta**2
    return value, _to_logits(student_logprobs, own * log_ratio)


def decoupled(
    student_logprobs: Tensor,
    probs: Tensor,
    logprobs: Tensor,
    labels: Int[Tensor, " n"],
    alpha: float | Tensor,
    beta: float | Tensor,
) -> Slope:
    """Of alpha TCKD + beta NCKD.

    The label's logit moves TCKD by q_label - p_label, the others share the opposite as they share their mass;
    NCKD is a forward KL among the others.
    """
    student_label, student_rest, student_others = set_apart(student_logprobs, labels)
    teacher_label, teacher_rest, teacher_others = set_apart(logprobs, labels)
    own, given = student_others.exp(), teacher_others.exp()
    target = teacher_label.exp() * (teacher_label - student_label)
    target = target + teacher_rest.exp() * (teacher_rest - student_rest)
    others = (given * (teacher_others - student_others)).sum(-1)
    # Of two forms of one number the one that does not subtract numbers near 1.
    surplus = torch.where(
        teacher_label < -math.log(2.0),
        student_label.exp() - teacher_label.exp(),
        teacher_rest.exp() - student_rest.exp(),
    )
    surplus = torch.where(student_label > LOG_ZERO, surplus, 0.0).unsqueeze(-1)
    live = torch.where(student_logprobs > LOG_ZERO, given, 0.0)
    dead = (given - live).sum(-1, keepdim=True)
    among_others = own - live - dead * student_logprobs.exp()
    is_label = torch.arange(own.shape[-1], device=labels.device) == labels.unsqueeze(-1)
    return alpha * target + beta * others, beta * among_others + alpha * surplus * torch.where(is_label, 1.0, -own)


def _to_logits(student_logprobs: Tensor, slopes: Tensor) -> Tensor:
    """From the gradient with respect to log-probabilities: that of a log-softmax, none where ruled out."""
    live = torch.where(student_logprobs > LOG_ZERO, slopes, 0.0)
    return live - student_logprobs.exp() * live.sum(-1, keepdim=True)


def _column(value: float | Tensor) -> float | Tensor:
    return value.unsqueeze(-1) if isinstance(value, Tensor) else value


def _positive(values: Tensor) -> Tensor:
    return values.clamp_min(torch.finfo(values.dtype).tiny)

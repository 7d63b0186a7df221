"""Divergences that blend the two distributions, or the two directions of the KL, per position.

A skewed KL and TAID pull the target towards the student, so that no token costs an infinite number and
the gradient of a weak student stays small; ToDi and AKL choose between the directions, by token and by
position. Conventions are those of `divergences`: log-probabilities [n V], student first, nats [n], log(0)
is `LOG_ZERO`. Weights of a blend carry no gradient.

AKL asks for the teacher's most probable tokens up to a given mass. They are found by bisection on the
bits of a threshold, 30 masses of a row in float32, instead of by sorting V tokens.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from collegium.losses.divergences import LOG_ZERO, forward_kl, reverse_kl


def skew_forward_kl(
    student_logprobs: Float[Tensor, "n V"],
    teacher_logprobs: Float[Tensor, "n V"],
    alpha: float | Float[Tensor, " n"] = 0.1,
) -> Float[Tensor, " n"]:
    """KL(teacher || alpha teacher + (1 - alpha) student) (DistiLLM, arXiv:2402.03898).

    Args:
        student_logprobs: Student, [n V].
        teacher_logprobs: Teacher, [n V].
        alpha: Share of the teacher in the mixture, in [0, 1); 0 is the forward KL. A tensor is a share for
            each position, in (0, 1), and not checked.

    Raises:
        ValueError: alpha is a number outside [0, 1).
    """
    if not isinstance(alpha, Tensor):
        _check_skew(alpha)
        if alpha == 0.0:
            return forward_kl(student_logprobs, teacher_logprobs)
    return forward_kl(_log_mixture(teacher_logprobs, student_logprobs, alpha), teacher_logprobs)


def skew_reverse_kl(
    student_logprobs: Float[Tensor, "n V"],
    teacher_logprobs: Float[Tensor, "n V"],
    alpha: float | Float[Tensor, " n"] = 0.1,
) -> Float[Tensor, " n"]:
    """KL(student || alpha student + (1 - alpha) teacher) (DistiLLM, arXiv:2402.03898).

    Arguments as in `skew_forward_kl`; alpha is the student's share, 0 is the reverse KL.
    """
    return skew_forward_kl(teacher_logprobs, student_logprobs, alpha)


def detached_skew_reverse_kl(
    student_logprobs: Float[Tensor, "n V"],
    teacher_logprobs: Float[Tensor, "n V"],
    alpha: float | Float[Tensor, " n"] = 0.1,
) -> Float[Tensor, " n"]:
    """`skew_reverse_kl` whose mixture passes no gradient to the student.

    That is how DistiLLM-2 (arXiv:2503.07067) trains on what the student wrote. On the teacher's text it
    takes `skew_forward_kl`.
    """
    if not isinstance(alpha, Tensor):
        _check_skew(alpha)
        if alpha == 0.0:
            return reverse_kl(student_logprobs, teacher_logprobs)
    return forward_kl(_log_mixture(student_logprobs.detach(), teacher_logprobs, alpha), student_logprobs)


def taid(
    student_logprobs: Float[Tensor, "n V"],
    teacher_logprobs: Float[Tensor, "n V"],
    t: float | Float[Tensor, ""] | Float[Tensor, " n"],
) -> Float[Tensor, " n"]:
    """KL(softmax((1 - t) student + t teacher) || student), the blend without gradient.

    TAID (arXiv:2501.16937) blends logits; log-probabilities give the same distribution. At t = 1 it
    is the forward KL, at t = 0 it is 0. The paper's code minimises the cross-entropy, which has the same
    gradient: the blend's entropy is a constant.
    """
    return forward_kl(student_logprobs, taid_target(student_logprobs, teacher_logprobs, t))


def taid_target(
    student_logprobs: Float[Tensor, "n V"],
    teacher_logprobs: Float[Tensor, "n V"],
    t: float | Float[Tensor, ""] | Float[Tensor, " n"],
) -> Float[Tensor, "n V"]:
    """Log-probabilities of the blend that `taid` takes as its target."""
    share = t.unsqueeze(-1) if isinstance(t, Tensor) else t
    student = student_logprobs.detach().clamp_min(LOG_ZERO)
    teacher = teacher_logprobs.clamp_min(LOG_ZERO)
    return ((1.0 - share) * student + share * teacher).log_softmax(-1)


def todi(student_logprobs: Float[Tensor, "n V"], teacher_logprobs: Float[Tensor, "n V"]) -> Float[Tensor, " n"]:
    """sum_v w p log(p / q) + (1 - w) q log(q / p) with w = sigmoid(log p / q) per token, without gradient.

    ToDi (arXiv:2505.16297). As w = p / (p + q), its value is that of sum_v (p - q) log(p / q), the sum
    of both KLs; the gradient is another, mostly that of the forward KL where the student is below
    the teacher and of the reverse KL where it is above.
    """
    student = student_logprobs.clamp_min(LOG_ZERO)
    teacher = teacher_logprobs.clamp_min(LOG_ZERO)
    log_ratio = teacher - student
    weight = log_ratio.detach().sigmoid()
    return ((weight * teacher.exp() - (1.0 - weight) * student.exp()) * log_ratio).sum(-1)


def adaptive_kl(
    student_logprobs: Float[Tensor, "n V"], teacher_logprobs: Float[Tensor, "n V"], mu: float = 0.5
) -> Float[Tensor, " n"]:
    """share KL(teacher || student) + (1 - share) KL(student || teacher), share that of the gap in the head.

    AKL (arXiv:2404.02657). Arguments as in `adaptive_share`.
    """
    share = adaptive_share(student_logprobs, teacher_logprobs, mu)
    forward = forward_kl(student_logprobs, teacher_logprobs)
    return share * forward + (1.0 - share) * reverse_kl(student_logprobs, teacher_logprobs)


def adaptive_share(
    student_logprobs: Float[Tensor, "n V"], teacher_logprobs: Float[Tensor, "n V"], mu: float = 0.5
) -> Float[Tensor, " n"]:
    """Share of the teacher's head in sum_v |p - q|, without gradient; 1/2 where both are equal.

    Args:
        student_logprobs: Student, [n V].
        teacher_logprobs: Teacher, [n V].
        mu: Mass of the head, in (0, 1); see `head_mask`.

    Raises:
        ValueError: mu is outside (0, 1).
    """
    probs = teacher_logprobs.detach().exp()
    gaps = (probs - student_logprobs.detach().exp()).abs()
    in_head = torch.where(head_mask(probs, mu), gaps, 0.0).sum(-1)
    total = gaps.sum(-1)
    return torch.where(total > 0, in_head / total.clamp_min(torch.finfo(total.dtype).tiny), 0.5)


def head_mask(probs: Float[Tensor, "n V"], mu: float = 0.5) -> Bool[Tensor, "n V"]:
    """The most probable tokens whose mass together is at most mu; always the first of them.

    What sorting in descending order (equal ones by index) and comparing the running sum with mu would
    give. The bits of floats of one sign are ordered like the floats: the lowest threshold above
    which the mass is at most mu is found bit by bit, and exactly.

    Raises:
        ValueError: mu is outside (0, 1), or the probabilities are of half precision.
    """
    if not 0.0 < mu < 1.0:
        raise ValueError(f"mu is {mu}; the mass of the head must lie in (0, 1)")
    if probs.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"probabilities are {probs.dtype}; a head's mass needs float32 or float64")
    bits = probs.detach().view(torch.int32 if probs.dtype == torch.float32 else torch.int64)
    below = torch.zeros_like(bits[:, :1])  # the mass from here up is above mu
    for bit in range(30 if probs.dtype == torch.float32 else 62)[::-1]:  # 1.0 has no higher bit
        middle = below + (1 << bit)
        mass = torch.where(bits >= middle, probs, 0.0).sum(-1, keepdim=True)
        below = torch.where(mass > mu, middle, below)
    # Tokens above the threshold are in the head whole. Those at it are equal, so as many as still fit come in by
    # index; if nothing is above, at least one does.
    whole = bits > below
    tied = bits == below
    mass = torch.where(whole, probs, 0.0).sum(-1, keepdim=True)
    each = torch.where(tied, probs, 0.0).amax(-1, keepdim=True)
    room = torch.floor((mu - mass) / each.clamp_min(torch.finfo(probs.dtype).tiny))
    room = torch.where(whole.any(-1, keepdim=True), room, room.clamp_min(1.0))
    return whole | (tied & (tied.to(torch.int32).cumsum(-1) <= room))


def _check_skew(alpha: float) -> None:
    if not 0.0 <= alpha < 1.0:
        raise ValueError(f"skew alpha is {alpha}; it must lie in [0, 1)")


def _log_mixture(
    own: Float[Tensor, "n V"], other: Float[Tensor, "n V"], alpha: float | Float[Tensor, " n"]
) -> Float[Tensor, "n V"]:
    """log(alpha own + (1 - alpha) other)."""
    own = own.clamp_min(LOG_ZERO)
    other = other.clamp_min(LOG_ZERO)
    if isinstance(alpha, Tensor):
        shares = alpha.unsqueeze(-1)
        return torch.logaddexp(own + shares.log(), other + torch.log1p(-shares))
    return torch.logaddexp(own + math.log(alpha), other + math.log1p(-alpha))

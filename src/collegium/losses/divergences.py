"""Divergences between a student and a target, per position, in log space.

Direction is in the name and the student comes first: `forward_kl(student, teacher)` is
KL(teacher || student). All take log-probabilities [n V], return nats [n] and keep the input's
dtype, so that float64 inputs are checked in float64. The log of a probability of 0 is taken as
`LOG_ZERO`: a token that one side rules out costs the other a large finite number, a token that both
rule out costs nothing, and no loss or gradient is ever infinite or NaN.
"""

import math
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor


LOG_ZERO = -1e6
"""Stands for log(0): finite, since 0 * -inf is NaN, and far below any real log-probability."""


class Divergence(Protocol):
    """A divergence per position: ([n V], [n V]) -> [n]."""

    def __call__(
        self, student_logprobs: Float[Tensor, "n V"], teacher_logprobs: Float[Tensor, "n V"]
    ) -> Float[Tensor, " n"]:
        """Nats at each position."""


@runtime_checkable
class PositionalDivergence(Protocol):
    """A divergence that depends on more than the two distributions."""

    def at(
        self,
        student_logprobs: Float[Tensor, "n V"],
        teacher_logprobs: Float[Tensor, "n V"],
        labels: Int[Tensor, " n"],
        parameter: Float[Tensor, " n"],
    ) -> Float[Tensor, " n"]:
        """Nats at each position, given its label and a number such as the progress of training."""
        ...


def forward_kl(
    student_logprobs: Float[Tensor, "n V"], teacher_logprobs: Float[Tensor, "n V"]
) -> Float[Tensor, " n"]:
    """KL(teacher || student) = sum_v p (log p - log q) (arXiv:1503.02531, up to H(p))."""
    log_ratio = teacher_logprobs.clamp_min(LOG_ZERO) - student_logprobs.clamp_min(LOG_ZERO)
    return (teacher_logprobs.exp() * log_ratio).sum(-1)


def reverse_kl(
    student_logprobs: Float[Tensor, "n V"], teacher_logprobs: Float[Tensor, "n V"]
) -> Float[Tensor, " n"]:
    """KL(student || teacher) = sum_v q (log q - log p) (MiniLLM, arXiv:2306.08543, eq. 1)."""
    return forward_kl(teacher_logprobs, student_logprobs)


def generalized_jsd(
    student_logprobs: Float[Tensor, "n V"], teacher_logprobs: Float[Tensor, "n V"], beta: float
) -> Float[Tensor, " n"]:
    """Jensen-Shannon divergence of GKD: beta KL(teacher || m) + (1 - beta) KL(student || m).

    Here m = beta teacher + (1 - beta) student. The formula is 0 at both ends; there its limit after
    division by beta, or by 1 - beta, is meant: beta = 0 gives the forward KL and beta = 1 the
    reverse KL (arXiv:2306.13649, eq. 3 and after).

    Args:
        student_logprobs: Student, [n V].
        teacher_logprobs: Teacher, [n V].
        beta: Weight of the teacher in the mixture m, in [0, 1].

    Raises:
        ValueError: beta is outside [0, 1].
    """
    if not 0.0 <= beta <= 1.0:
        raise ValueError(f"jsd beta is {beta}; it must lie in [0, 1]")
    if beta == 0.0:
        return forward_kl(student_logprobs, teacher_logprobs)
    if beta == 1.0:
        return reverse_kl(student_logprobs, teacher_logprobs)
    mixture = torch.logaddexp(
        teacher_logprobs.clamp_min(LOG_ZERO) + math.log(beta), student_logprobs + math.log1p(-beta)
    )
    to_teacher = forward_kl(mixture, teacher_logprobs)
    to_student = forward_kl(mixture, student_logprobs)
    return beta * to_teacher + (1.0 - beta) * to_student


def total_variation(
    student_logprobs: Float[Tensor, "n V"], teacher_logprobs: Float[Tensor, "n V"]
) -> Float[Tensor, " n"]:
    """Half the L1 distance of the distributions, in [0, 1]."""
    return 0.5 * (teacher_logprobs.exp() - student_logprobs.exp()).abs().sum(-1)


def entropy(logprobs: Float[Tensor, "n V"]) -> Float[Tensor, " n"]:
    """-sum_v p log p in nats; exact zeros contribute nothing."""
    return -(logprobs.exp() * logprobs.clamp_min(LOG_ZERO)).sum(-1)


def alpha_beta(
    student_logprobs: Float[Tensor, "n V"],
    teacher_logprobs: Float[Tensor, "n V"],
    alpha: float,
    beta: float,
) -> Float[Tensor, " n"]:
    """-1/(alpha beta) sum_v [p^alpha q^beta - (alpha p^s + beta q^s) / s] with s = alpha + beta.

    ABKD (arXiv:2505.04560). (1, 0) is the forward KL, (0, 1) the reverse KL, and where alpha, beta or
    both are 0 the formula's limit is meant: for beta = 0 that is 1/alpha^2 sum_v [p^alpha log(p^alpha / q^alpha)
    - p^alpha + q^alpha], for both half the squared distance of the logs. The paper's code divides by alpha where
    the limit has alpha^2.

    Args:
        student_logprobs: Student, [n V].
        teacher_logprobs: Teacher, [n V].
        alpha: Power of the teacher, 0 or more.
        beta: Power of the student, 0 or more. Large ones leave tokens alone that the student finds unlikely.

    Raises:
        ValueError: a power is negative, which would be infinite where a probability is 0.
    """
    if not (alpha >= 0.0 and beta >= 0.0):
        raise ValueError(f"alpha is {alpha} and beta {beta}; both must be 0 or more")
    if alpha + beta == 1.0 and beta in (0.0, 1.0):
        return (forward_kl if beta == 0.0 else reverse_kl)(student_logprobs, teacher_logprobs)
    if alpha == 0.0 and beta > 0.0:
        return alpha_beta(teacher_logprobs, student_logprobs, beta, alpha)
    student = student_logprobs.clamp_min(LOG_ZERO)
    teacher = teacher_logprobs.clamp_min(LOG_ZERO)
    if alpha == 0.0:
        return 0.5 * (teacher - student).square().sum(-1)
    if beta == 0.0:
        p = (alpha * teacher).exp()
        q = (alpha * student).exp()
        return (alpha * p * (teacher - student) - p + q).sum(-1) / alpha**2
    power = alpha + beta
    powers = alpha * (power * teacher).exp() + beta * (power * student).exp()
    return (powers / power - (alpha * teacher + beta * student).exp()).sum(-1) / (alpha * beta)


def decoupled(
    student_logprobs: Float[Tensor, "n V"],
    teacher_logprobs: Float[Tensor, "n V"],
    labels: Int[Tensor, " n"],
    alpha: float = 1.0,
    beta: float = 1.0,
) -> Float[Tensor, " n"]:
    """alpha TCKD + beta NCKD: the forward KL in two parts, of which the second is not scaled by 1 - p_label.

    TCKD is the KL of (p_label, 1 - p_label), NCKD that of the other tokens renormalised, and KL = TCKD +
    (1 - p_label) NCKD (DKD, arXiv:2203.08679). The remainder 1 - p_label is summed from the other tokens,
    so it is known where p_label is 1 to machine precision.

    Args:
        student_logprobs: Student, [n V].
        teacher_logprobs: Teacher, [n V].
        labels: The token that is set apart, [n].
        alpha: Weight of TCKD.
        beta: Weight of NCKD.
    """
    student = student_logprobs.clamp_min(LOG_ZERO)
    teacher = teacher_logprobs.clamp_min(LOG_ZERO)
    student_label, student_rest, student_others = set_apart(student, labels)
    teacher_label, teacher_rest, teacher_others = set_apart(teacher, labels)
    target = teacher_label.exp() * (teacher_label - student_label)
    target = target + teacher_rest.exp() * (teacher_rest - student_rest)
    return alpha * target + beta * forward_kl(student_others, teacher_others)


def set_apart(
    logprobs: Float[Tensor, "n V"], labels: Int[Tensor, " n"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"], Float[Tensor, "n V"]]:
    """Log-probability of the label, of all others together, and of each among the others.

    Log-probabilities may not be below `LOG_ZERO`. The label's own place among the others holds that.
    """
    is_label = torch.arange(logprobs.shape[-1], device=labels.device) == labels.unsqueeze(-1)
    rest = logprobs.masked_fill(is_label, -torch.inf).logsumexp(-1)
    others = (logprobs - rest.unsqueeze(-1)).masked_fill(is_label, LOG_ZERO)
    return logprobs.gather(-1, labels.unsqueeze(-1)).squeeze(-1), rest, others

"""Divergences between a student and a target, per position, in log space.

Direction is in the name and the student comes first: `forward_kl(student, teacher)` is
KL(teacher || student). All take log-probabilities [n V], return nats [n] and keep the input's
dtype, so that float64 inputs are checked in float64. The log of a probability of 0 is taken as
`LOG_ZERO`: a token that one side rules out costs the other a large finite number, a token that both
rule out costs nothing, and no loss or gradient is ever infinite or NaN.
"""

import math
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor


DivergenceName = Literal["forward_kl", "reverse_kl", "jsd", "total_variation"]

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

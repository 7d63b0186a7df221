"""Divergences that depend on more than the two distributions: labels, who wrote the text, the progress."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from collegium.losses.blended_divergences import detached_skew_reverse_kl, skew_forward_kl, taid_target
from collegium.losses.divergences import decoupled, entropy, forward_kl


@dataclass(frozen=True)
class Decoupled:
    """`divergences.decoupled` with the position's label set apart (DKD, arXiv:2203.08679).

    Attributes:
        alpha: Weight of the label against all others.
        beta: Weight among the others.
    """

    alpha: float = 1.0
    beta: float = 1.0

    def at(
        self,
        student_logprobs: Float[Tensor, "n V"],
        teacher_logprobs: Float[Tensor, "n V"],
        labels: Int[Tensor, " n"],
        parameter: Float[Tensor, " n"],
    ) -> Float[Tensor, " n"]:
        """See `PositionalDivergence`; the parameter is not read."""
        return decoupled(student_logprobs, teacher_logprobs, labels, self.alpha, self.beta)


@dataclass(frozen=True)
class Blend:
    """Cross-entropy to a blend of student and teacher; the parameter is the teacher's share (arXiv:2501.16937).

    As in the official code it is not the KL, which has the same gradient: the share adapts to this value.
    """

    def at(
        self,
        student_logprobs: Float[Tensor, "n V"],
        teacher_logprobs: Float[Tensor, "n V"],
        labels: Int[Tensor, " n"],
        parameter: Float[Tensor, " n"],
    ) -> Float[Tensor, " n"]:
        """See `PositionalDivergence`; labels are not read."""
        blend = taid_target(student_logprobs, teacher_logprobs, parameter)
        return forward_kl(student_logprobs, blend) + entropy(blend)


@dataclass(frozen=True)
class SkewPair:
    """A skewed forward KL on given text, a skewed reverse KL on the student's own (DistiLLM-2, arXiv:2503.07067).

    The size of the parameter is the weight of a position; it is negative on given text.

    Attributes:
        alpha: Share, in the mixture, of whose text it is.
    """

    alpha: float = 0.1

    def at(
        self,
        student_logprobs: Float[Tensor, "n V"],
        teacher_logprobs: Float[Tensor, "n V"],
        labels: Int[Tensor, " n"],
        parameter: Float[Tensor, " n"],
    ) -> Float[Tensor, " n"]:
        """See `PositionalDivergence`; labels are not read."""
        given = skew_forward_kl(student_logprobs, teacher_logprobs, self.alpha)
        own = detached_skew_reverse_kl(student_logprobs, teacher_logprobs, self.alpha)
        return torch.where(parameter > 0, own, given) * parameter.abs()

"""Weights of teachers that sum to 1 at each position, from scores or figures of all teachers side by side.

Sums over teachers are made one teacher at a time: adding an absent teacher's 0.0 is exact, whereas a vectorised
sum over M and M - 1 entries may round differently. That is what makes "weight 0" and "absent" equal bit for bit.
"""

from functools import reduce
from operator import add

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from collegium.losses.stretches import group_sums


def uniform_weights(valid: Bool[Tensor, "n M"], *, dtype: torch.dtype) -> Float[Tensor, "n M"]:
    """The same weight for every valid teacher."""
    return weights_from_scores(torch.zeros_like(valid, dtype=dtype), valid)


def static_weights(values: Float[Tensor, " M"], valid: Bool[Tensor, "n M"]) -> Float[Tensor, "n M"]:
    """Fixed non-negative weights, renormalised over the teachers valid at each position."""
    return weights_from_scores(values.log().expand(valid.shape), valid)


def entropy_weights(
    entropy: Float[Tensor, "n M"], *, tau: float = 1.0, valid: Bool[Tensor, "n M"] | None = None
) -> Float[Tensor, "n M"]:
    """exp(-H_m / tau), normalised over valid teachers (arXiv:2507.15198).

    Args:
        entropy: Entropy in nats, at temperature 1 after calibration.
        tau: Sharpness in nats; large is uniform, small picks the most certain teacher.
        valid: Teachers to use at each position; all if None.

    Returns:
        Weights whose rows sum to 1, or are all 0 where no teacher is valid.

    Raises:
        ValueError: tau is not positive.
    """
    if not tau > 0.0:
        raise ValueError(f"tau is {tau}; it must be above 0 (large: uniform, small: the most certain teacher)")
    valid = torch.ones_like(entropy, dtype=torch.bool) if valid is None else valid
    return weights_from_scores(-entropy, valid, tau=tau)


def weights_from_scores(
    scores: Float[Tensor, "n M"], valid: Bool[Tensor, "n M"], *, tau: float = 1.0
) -> Float[Tensor, "n M"]:
    """exp(score / tau), normalised over valid teachers; all 0 in a row where no score is above -inf.

    At tau = 0 the highest score has it all, and equal ones share. Scores are subtracted before they are
    divided: at tau = 0.001 the quotients of 10 nats would be wrong in the fourth digit in float32.
    """
    if not tau >= 0.0:
        raise ValueError(f"tau is {tau}; it must be above 0, or 0 for the highest score alone")
    scores = scores.masked_fill(~valid, -torch.inf)
    top = scores.amax(-1, keepdim=True)
    top = top.masked_fill(top == -torch.inf, 0.0)
    shares = shares_of(scores, top, tau)
    total = reduce(add, shares.unbind(-1)).unsqueeze(-1)
    return shares / total.masked_fill(total == 0, 1.0)


def shares_of(scores: Tensor, top: Tensor, tau: float) -> Tensor:
    """exp((score - top) / tau), and 0 for a score of -inf whatever tau is."""
    if tau == 0.0:
        return (scores == top).to(scores.dtype)
    return ((scores - top) / tau).exp().masked_fill(scores == -torch.inf, 0.0)


def group_mean(
    values: Float[Tensor, "N M"], valid: Bool[Tensor, "N M"], groups: Int[Tensor, " N"]
) -> tuple[Float[Tensor, "N M"], Bool[Tensor, "N M"]]:
    """Mean of the valid values of each group, at every member, and whether the group has any."""
    totals = group_sums(torch.where(valid, values, torch.zeros_like(values)), groups)
    counts = group_sums(valid.to(values.dtype), groups)
    return totals / counts.clamp_min(1.0), counts > 0

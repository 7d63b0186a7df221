"""Shares of domains in the training text by how far a student lags behind its target (DDK, arXiv:2407.16154).

The measure is the ratio of perplexities. It enters exponentially, so a student that starts from nothing would give
nearly all text to one domain: the ratio is cut off, which the paper, whose students are trained already, does not.
"""

from jaxtyping import Float
from torch import Tensor


MAX_RATIO = 5.0
"""By default: e^5 is 148 times the share of a domain without any discrepancy."""


def initial_proportions(
    student_perplexity: Float[Tensor, " domains"],
    target_perplexity: Float[Tensor, " domains"],
    max_ratio: float = MAX_RATIO,
) -> Float[Tensor, " domains"]:
    """exp(ratio_i) / sum_j exp(ratio_j), ratio = student / target, at most `max_ratio`."""
    return discrepancy(student_perplexity, target_perplexity, max_ratio).softmax(-1)


def next_proportions(
    proportions: Float[Tensor, " domains"],
    student_perplexity: Float[Tensor, " domains"],
    target_perplexity: Float[Tensor, " domains"],
    alpha: float = 0.5,
    max_ratio: float = MAX_RATIO,
) -> Float[Tensor, " domains"]:
    """alpha psi_i / sum_j psi_j + (1 - alpha) / domains, psi_i = proportion_i exp(ratio_i).

    Args:
        proportions: Proportions of the round that is done, summing to 1.
        student_perplexity: Perplexity of the student at its end.
        target_perplexity: Perplexity of the fused target.
        alpha: Share that follows the discrepancy; the rest is spread evenly.
        max_ratio: Larger ratios count as this.

    Raises:
        ValueError: alpha is outside [0, 1].
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha is {alpha}; it must lie in [0, 1]")
    ratio = discrepancy(student_perplexity, target_perplexity, max_ratio)
    psi = (proportions.log() + ratio).softmax(-1)
    return alpha * psi + (1.0 - alpha) / len(proportions)


def discrepancy(
    student_perplexity: Float[Tensor, " domains"],
    target_perplexity: Float[Tensor, " domains"],
    max_ratio: float = MAX_RATIO,
) -> Float[Tensor, " domains"]:
    """student / target, at most `max_ratio`; that too where the student's is not a number."""
    return (student_perplexity / target_perplexity).nan_to_num(max_ratio).clamp_max(max_ratio)

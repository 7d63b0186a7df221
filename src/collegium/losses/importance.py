"""Scores that say which heads, neurons, channels and layers a model can best do without.

Shapes: B blocks, S tokens, C channels of an activation, H heads of d channels, G groups of heads that
share a key and value. Scores are of activations in forward passes, so they cost no gradient: one pass
over the calibration text ranks every width at once (Minitron, arXiv:2407.14679, section 2.2).
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from collegium.losses.precision import full_precision


def block_means(activations: Float[Tensor, "B S C"], mask: Bool[Tensor, "B S"]) -> Float[Tensor, "B C"]:
    """Mean of |activation| over the text of each block; 0 where a block has none.

    The aggregation over the sequence in Minitron. Its L2 norm over blocks is the root of the summed
    squares, so scores depend on what a block is, but not on how blocks are cut into batches.
    """
    activations = full_precision(activations)
    weights = mask.to(activations.dtype)
    sums: Tensor = torch.einsum("bsc,bs->bc", activations.abs(), weights)
    return sums / weights.sum(1, keepdim=True).clamp_min(1.0)


def head_importance(channels: Float[Tensor, " C"], head_dim: int) -> Float[Tensor, " H"]:
    """L2 norm of the scores of each head's channels."""
    norms: Tensor = torch.linalg.vector_norm(channels.view(-1, head_dim), dim=1)
    return norms


def block_influence(
    before: Float[Tensor, "B S C"], after: Float[Tensor, "B S C"], mask: Bool[Tensor, "B S"]
) -> Float[Tensor, ""]:
    """Sum over text of 1 - cos(before, after) of a layer's input and output; its mean is Block Influence.

    Source: ShortGPT (arXiv:2403.03853), used for depth in Minitron. A layer that only scales its input
    has none.
    """
    cosine = torch.cosine_similarity(full_precision(before), full_precision(after), dim=-1)  # [B S]
    return ((1.0 - cosine) * mask).sum()


def top_indices(scores: Float[Tensor, " n"], count: int) -> Int[Tensor, " k"]:
    """Indices of the `count` highest scores in increasing order; of equal ones the first."""
    return scores.argsort(descending=True, stable=True)[:count].sort().values


def top_heads(
    scores: Float[Tensor, " H"], *, num_groups: int, kept_groups: int, kept_heads: int
) -> tuple[Int[Tensor, " g"], Int[Tensor, " h"]]:
    """Groups to keep, and query heads to keep in them: the same number in each, as grouped queries need.

    A group's score is the L2 norm of its heads' scores; first the groups are chosen, then the best heads
    inside each.

    Args:
        scores: Scores of query heads, those of a group side by side.
        num_groups: G, the number of key-value heads.
        kept_groups: g.
        kept_heads: h, a multiple of g.
    """
    grouped = scores.view(num_groups, -1)  # [G H/G]
    groups = top_indices(torch.linalg.vector_norm(grouped, dim=1), kept_groups)
    inside = [top_indices(grouped[group], kept_heads // kept_groups) for group in groups.tolist()]
    return groups, (torch.stack(inside) + groups[:, None] * grouped.shape[1]).flatten()

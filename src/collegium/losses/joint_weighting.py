"""Teacher weights that need the figures of all teachers at once, and so a first pass over them.

What they share: a teacher gets more the less it has of some figure, in proportion to 1 minus its part of the
sum. That is close to uniform for many teachers: with five of them no weight is above 1/4.
"""

from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from collegium.losses.stretches import Stretches
from collegium.losses.weighting import figures_of, weights_from_scores
from collegium.signals.contracts import Positions, TeacherStats


JointWeightingName = Literal["ebkd", "ca_mkd"]


def ebkd_weights(entropy: Float[Tensor, "n M"], valid: Bool[Tensor, "n M"]) -> Float[Tensor, "n M"]:
    """(1 - H_k / sum of H) / (K - 1) over the K valid teachers; the one there is gets 1.

    Idea: Kwon et al., Adaptive Knowledge Distillation Based on Entropy (ICASSP 2020). Formula: `EBKD` in
    github.com/Rorozhl/CA-MKD, helper/loops.py, which does not divide by K - 1. Uniform where all H are 0.
    """
    entropy = entropy.masked_fill(~valid, 0.0)
    total = reduce(add, entropy.unbind(-1)).unsqueeze(-1)
    share = torch.where(total > 0, entropy / total.masked_fill(total == 0, 1.0), 1.0 / _count(valid, entropy))
    return _complement(share, valid)


def ca_mkd_weights(cross_entropy: Float[Tensor, "n M"], valid: Bool[Tensor, "n M"]) -> Float[Tensor, "n M"]:
    """(1 - softmax over k of CE_k) / (K - 1) over the K valid teachers (arXiv:2201.00007)."""
    return _complement(weights_from_scores(cross_entropy, valid), valid)


def _count(valid: Tensor, like: Tensor) -> Tensor:
    return valid.sum(-1, keepdim=True).clamp_min(1).to(like.dtype)


def _complement(share: Float[Tensor, "n M"], valid: Bool[Tensor, "n M"]) -> Float[Tensor, "n M"]:
    """(1 - share) / (K - 1), and 1 where K is 1."""
    others = _count(valid, share) - 1.0
    weights = torch.where(others > 0, (1.0 - share) / others.clamp_min(1.0), 1.0)
    return weights.masked_fill(~valid, 0.0)


@dataclass(frozen=True)
class JointWeighting:
    """Weights that compare all teachers.

    Attributes:
        kind: `ebkd` goes by entropy, `ca_mkd` by cross-entropy, and so reads labels: the position's own, or
            past ones only if `granularity` is `causal`.
        granularity: Stretch over which the figure is averaged; as in `Weighting`.
    """

    kind: JointWeightingName
    granularity: str = "token"

    def __call__(self, stats: TeacherStats, positions: Positions) -> Float[Tensor, "N M"]:
        """Weights; rows sum to 1 over valid teachers."""
        reads_labels = self.kind == "ca_mkd"
        stretches = Stretches(positions, self.granularity, past_only=reads_labels)
        rows, means = slice(0, len(positions)), []
        for m, figures in enumerate(figures_of(stats)):
            figure = figures.cross_entropy if reads_labels else figures.entropy
            said = torch.ones_like(figures.valid) if stretches.past_only else figures.valid
            means.append(stretches.means(figure, said, rows, m))
        weights = ca_mkd_weights if reads_labels else ebkd_weights
        return weights(torch.stack(means, -1), stats.valid)

"""Weights of teachers that compare the figures of all of them, and so need a first pass over them.

In each rule a teacher gets more the less it has of some figure, in proportion to 1 minus its part of the sum.
That is close to uniform for many teachers: with five of them no weight is above 1/4.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from collegium.losses.stretches import Stretches
from collegium.losses.teacher_weights import weights_from_scores
from collegium.losses.weighting import figures_of
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
class JointRule:
    """Rule of one kind of joint weighting.

    Attributes:
        weights: Weights [n M] from a figure of each teacher [n M] and where it is valid.
        reads_labels: True if that figure is the cross-entropy; else it is the entropy.
    """

    weights: Callable[[Tensor, Tensor], Tensor]
    reads_labels: bool


JOINT_RULES: Mapping[JointWeightingName, JointRule] = {
    "ebkd": JointRule(ebkd_weights, reads_labels=False),
    "ca_mkd": JointRule(ca_mkd_weights, reads_labels=True),
}
"""The rule of each kind; `JointWeighting` describes them."""


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

    @property
    def is_known_ahead(self) -> bool:
        """True if the weights at a position are known before its label."""
        return not JOINT_RULES[self.kind].reads_labels or self.granularity.startswith("causal")

    @property
    def entropy_stretch(self) -> str | None:
        """Granularity of the entropies that set the weights; None if none do."""
        return None if JOINT_RULES[self.kind].reads_labels else self.granularity

    def __call__(self, stats: TeacherStats, positions: Positions) -> Float[Tensor, "N M"]:
        """Return weights; rows sum to 1 over valid teachers."""
        rule = JOINT_RULES[self.kind]
        stretches = Stretches(positions, self.granularity, past_only=rule.reads_labels)
        everywhere = slice(0, len(positions))
        means = []
        for m, figures in enumerate(figures_of(stats)):
            figure = figures.cross_entropy if rule.reads_labels else figures.entropy
            counts = torch.ones_like(figures.valid) if stretches.past_only else figures.valid
            means.append(stretches.means(figure, counts, everywhere, m))
        return rule.weights(torch.stack(means, -1), stats.valid)

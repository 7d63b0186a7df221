"""Teacher weights from what is known at each position, and the text that shares them.

The source paper weights per token by exp(-H) (arXiv:2507.15198). Averaging the entropy over a
window or a document first was better in our pilot (2.09 against 2.14 nats per character, uniform
2.13), so that is the product's default and the per-token rule a preset.

Sums over teachers are made one teacher at a time: adding an absent teacher's 0.0 is exact, whereas
a vectorised sum over M and M - 1 entries may round differently. That is what makes "weight 0" and
"absent" equal bit for bit.
"""

from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from collegium.contracts import Positions, TeacherStats


WeightingName = Literal["uniform", "static", "entropy"]


def uniform_weights(valid: Bool[Tensor, "n M"], *, dtype: torch.dtype) -> Float[Tensor, "n M"]:
    """The same weight for every valid teacher."""
    return weights_from_scores(torch.zeros_like(valid, dtype=dtype), valid)


def static_weights(values: Float[Tensor, " M"], valid: Bool[Tensor, "n M"]) -> Float[Tensor, "n M"]:
    """Fixed non-negative weights, renormalised over the teachers valid at each position."""
    return weights_from_scores(values.log().expand(valid.shape), valid)


def entropy_weights(
    entropy: Float[Tensor, "n M"], *, tau: float = 1.0, valid: Bool[Tensor, "n M"] | None = None
) -> Float[Tensor, "n M"]:
    """exp(-H_m / tau), normalised over valid teachers (arXiv:2507.15198; METHOD eq. 3).

    Args:
        entropy: Entropy in nats, at temperature 1 after calibration.
        tau: Sharpness in nats; large is uniform, small picks the most certain teacher.
        valid: Teachers to use at each position; all if None.

    Returns:
        Weights whose rows sum to 1, or are all 0 where no teacher is valid.

    Raises:
        ValueError: tau is not positive.
    """
    valid = torch.ones_like(entropy, dtype=torch.bool) if valid is None else valid
    return weights_from_scores(-entropy, valid, tau=tau)


def weights_from_scores(
    scores: Float[Tensor, "n M"], valid: Bool[Tensor, "n M"], *, tau: float = 1.0
) -> Float[Tensor, "n M"]:
    """exp(score / tau), normalised over valid teachers; all 0 in a row where no score is above -inf.

    Scores are subtracted before they are divided: at tau = 0.001 the quotients of 10 nats would be
    wrong in the fourth digit in float32.
    """
    if not tau > 0.0:
        raise ValueError(f"tau is {tau}; it must be above 0 (large: uniform, small: the most certain teacher)")
    scores = scores.masked_fill(~valid, -torch.inf)
    top = scores.amax(-1, keepdim=True)
    top = top.masked_fill(top == -torch.inf, 0.0)
    shares = shares_of(scores, top, tau)
    total = reduce(add, shares.unbind(-1)).unsqueeze(-1)
    return shares / total.masked_fill(total == 0, 1.0)


def shares_of(scores: Tensor, top: Tensor, tau: float) -> Tensor:
    """exp((score - top) / tau), and 0 for a score of -inf whatever tau is."""
    return ((scores - top) / tau).exp().masked_fill(scores == -torch.inf, 0.0)


def window_groups(
    segments: Int[Tensor, " N"], offsets: Int[Tensor, " N"], window: int | None
) -> Int[Tensor, " N"]:
    """Number, from 0 in reading order, of the stretch of text that each position belongs to.

    A stretch shares its weights and never crosses a segment: it is a whole segment (`window` None)
    or `window` positions of it.
    """
    changed = segments.diff(prepend=segments[:1]) != 0
    if window is not None:
        block = offsets // window
        changed = changed | (block.diff(prepend=block[:1]) != 0)
    return changed.cumsum(0)


def group_mean(
    values: Float[Tensor, "N M"], valid: Bool[Tensor, "N M"], groups: Int[Tensor, " N"]
) -> tuple[Float[Tensor, "N M"], Bool[Tensor, "N M"]]:
    """Mean of the valid values of each group, at every member, and whether the group has any."""
    totals = torch.zeros_like(values).index_add_(0, groups, torch.where(valid, values, torch.zeros_like(values)))
    counts = torch.zeros_like(values).index_add_(0, groups, valid.to(values.dtype))
    means = totals / counts.clamp_min(1.0)
    return means[groups], counts[groups] > 0


@dataclass(frozen=True)
class Weighting:
    """How much each teacher counts at each position: exp(score / tau), normalised over teachers.

    A teacher's score depends on that teacher alone, so a loss can mix teachers one after another
    and divide by the sum of their shares at the end.

    Attributes:
        kind: `uniform`, `static` or `entropy`.
        granularity: Stretch over which entropies are averaged: `token`, `sequence` or `window:W`.
        tau: Sharpness of `entropy`, in nats.
        values: Weight of each teacher, for `static`.
    """

    kind: WeightingName = "entropy"
    granularity: str = "window:128"
    tau: float = 0.25
    values: tuple[float, ...] | None = None

    def __call__(self, stats: TeacherStats, positions: Positions) -> Float[Tensor, "N M"]:
        """Weights; rows sum to 1 over valid teachers."""
        groups = self.groups(positions)
        columns = [self.scores(m, entropy, valid, groups) for m, (entropy, valid) in enumerate(_columns(stats))]
        return weights_from_scores(torch.stack(columns, -1), stats.valid, tau=self.score_tau)

    @property
    def score_tau(self) -> float:
        """What scores are divided by."""
        return self.tau if self.kind == "entropy" else 1.0

    def groups(self, positions: Positions) -> Int[Tensor, " N"] | None:
        """Number of the stretch of text that each position shares its weights with; None: with none."""
        if self.kind != "entropy" or self.granularity == "token":
            return None
        _, colon, size = self.granularity.partition(":")
        return window_groups(positions.segments, positions.offsets, int(size) if colon else None)

    def scores(
        self,
        teacher: int,
        entropy: Float[Tensor, " n"],
        valid: Bool[Tensor, " n"],
        groups: Int[Tensor, " n"] | None,
    ) -> Float[Tensor, " n"]:
        """Scores of one teacher from its entropies over whole groups; read only where it is valid."""
        if self.kind == "uniform":
            return torch.zeros_like(entropy)
        if self.kind == "static":
            assert self.values is not None, "static weights have values"
            return entropy.new_tensor(self.values[teacher]).log().expand_as(entropy)
        if groups is None:
            return -entropy
        means, _ = group_mean(entropy.unsqueeze(-1), valid.unsqueeze(-1), groups - groups[:1])
        return -means.squeeze(-1)


def _columns(stats: TeacherStats) -> list[tuple[Tensor, Tensor]]:
    return list(zip(stats.entropy.unbind(-1), stats.valid.unbind(-1), strict=True))


@dataclass(frozen=True)
class GivenWeights:
    """Weights that are known beforehand.

    Attributes:
        weights: Rows sum to 1, or are all 0 where no teacher counts.
        valid: Where each teacher's logits may be read.
    """

    weights: Float[Tensor, "N M"]
    valid: Bool[Tensor, "N M"]

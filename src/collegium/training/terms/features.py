"""Terms of the loss that match a student's inner states with teachers'.

A term is a sum over text positions, which the caller divides once by their global count. Projections that
fit the student's width to a teacher's belong to the term: they are trained along and never exported.
"""

from collections.abc import Sequence
from typing import Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from collegium.base.schedule import Schedule
from collegium.losses.features import LayerMap, block_pairs, feature_map_transfer, layer_pairs, squared_error
from collegium.signals.contracts import Batch, Capability
from collegium.signals.inner_states import InnerLayers, InnerStates
from collegium.training.module import TrainedModule


LayerReduction = Literal["mean", "sum"]
Pairs = tuple[tuple[int, int], ...]


def normalized_importance(importance: Sequence[float] | None, num_teachers: int) -> list[float]:
    """Share of each teacher in a term; the sum is 1.

    Raises:
        ValueError: the importances do not fit the teachers.
    """
    betas = [1.0] * num_teachers if importance is None else list(importance)
    if len(betas) != num_teachers or min(betas) < 0 or sum(betas) <= 0:
        raise ValueError(f"importance must be 0 or more for each of {num_teachers} teachers, got {betas}")
    return [beta / sum(betas) for beta in betas]


class FeatureTerm(TrainedModule):
    """Sum over teachers k of beta_k times what a sub-class says of one teacher.

    Args:
        num_teachers: Teachers, in the order in which their states are given.
        importance: beta of each teacher; normalised to sum to 1. Equal if None.
        weight: Weight among the feature terms of an objective; a schedule may change it between steps.

    Attributes:
        need: What teachers must provide.
        student_layers: Layers of the student that the term reads.
        teacher_layers: Layers of each teacher that it reads.
        takes_emphasis: True if each position can be given a factor.
        progress: Share of the training that is done, in [0, 1]; set between steps.

    Raises:
        ValueError: the importances do not fit.
    """

    need: frozenset[Capability]
    student_layers: InnerLayers
    teacher_layers: tuple[InnerLayers, ...]
    takes_emphasis: bool = True

    def __init__(
        self,
        num_teachers: int,
        *,
        importance: Sequence[float] | None = None,
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__()
        self.betas = normalized_importance(importance, num_teachers)
        self.weight = weight
        self.progress = 0.0

    def forward(
        self,
        student: InnerStates,
        teachers: Sequence[InnerStates],
        batch: Batch,
        emphasis: Float[Tensor, "B S"] | None = None,
    ) -> Tensor:
        """Sum over text positions, not yet divided by their count; each times its emphasis, if there is any.

        Raises:
            ValueError: there is an emphasis, but the term takes none.
        """
        if emphasis is not None and not self.takes_emphasis:
            raise ValueError(f"{type(self).__name__} weighs all positions alike: it takes no emphasis")
        sums = [
            beta * self.of_teacher(m, student, teacher, batch, emphasis)
            for m, (beta, teacher) in enumerate(zip(self.betas, teachers, strict=True))
        ]
        return torch.stack(sums).sum()

    def of_teacher(
        self, m: int, student: InnerStates, teacher: InnerStates, batch: Batch, emphasis: Tensor | None
    ) -> Tensor:
        """Sum over text positions for teacher `m`."""
        raise NotImplementedError


class LayerwiseTerm(FeatureTerm):
    """A term over pairs of layers.

    Args:
        pairs: (student layer, teacher layer) for each teacher.
        layer_reduction: `mean` or `sum` over pairs.
        stage_share: Share of the training in which the M pairs come in one after another (progressive transfer);
            None takes all from the start. At progress p the first min(M, floor(p / stage_share * M) + 1) count,
            and the reduction is over these.
        importance: See `FeatureTerm`.
        weight: See `FeatureTerm`.

    Raises:
        ValueError: the importances do not fit, or stage_share is not in (0, 1].
    """

    def __init__(
        self,
        pairs: Sequence[Pairs],
        *,
        layer_reduction: LayerReduction = "mean",
        stage_share: float | None = None,
        importance: Sequence[float] | None = None,
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(len(pairs), importance=importance, weight=weight)
        if stage_share is not None and not 0 < stage_share <= 1:
            raise ValueError(f"stage_share is {stage_share}; it must lie in (0, 1]")
        self.pairs = list(pairs)
        self.layer_reduction = layer_reduction
        self.stage_share = stage_share
        mine = frozenset(s for pairs in self.pairs for s, _ in pairs)
        theirs = [frozenset(t for _, t in pairs) for pairs in self.pairs]
        attends = Capability.ATTENTION in self.need
        self.student_layers = InnerLayers(attention=mine) if attends else InnerLayers(mine)
        self.teacher_layers = tuple(
            InnerLayers(attention=layers) if attends else InnerLayers(layers) for layers in theirs
        )

    def of_teacher(
        self, m: int, student: InnerStates, teacher: InnerStates, batch: Batch, emphasis: Tensor | None
    ) -> Tensor:
        """See `FeatureTerm`."""
        num_pairs = len(self.pairs[m])
        reached = self.reached(num_pairs)
        errors = torch.stack([self.of_pair(m, i, student, teacher, batch, emphasis) for i in range(reached)])
        total = errors.sum() if self.layer_reduction == "sum" else errors.mean()
        if reached < num_pairs:  # what is not yet used must have a gradient on every rank
            total = total + torch.stack([total.new_zeros(()), *(0.0 * p.sum() for p in self.parameters())]).sum()
        return total

    def of_pair(
        self, m: int, i: int, student: InnerStates, teacher: InnerStates, batch: Batch, emphasis: Tensor | None
    ) -> Tensor:
        """Sum over text positions for pair `i` of teacher `m`."""
        raise NotImplementedError

    def reached(self, num_pairs: int) -> int:
        """Number of pairs that count at this progress."""
        if self.stage_share is None:
            return num_pairs
        return min(num_pairs, int(self.progress / self.stage_share * num_pairs) + 1)


class HiddenStatesTerm(LayerwiseTerm):
    """Squared error between projected and teacher's hidden states.

    Args:
        student_size: Student's width and number of layers.
        teacher_sizes: Width and number of layers of each teacher.
        layer_map: `uniform`, `last`, or pairs (student layer, teacher layer).
        layer_norm: Normalise both sides first.
        shared_projection: One projection for all pairs of a teacher (TinyBERT) instead of one for each.
        final_norm: Take the last layer after the final norm, else before it.
        layer_reduction: See `LayerwiseTerm`.
        importance: See `FeatureTerm`.
        weight: See `FeatureTerm`.

    Raises:
        ValueError: the layer map does not fit, or the importances do not.
    """

    need = frozenset({Capability.HIDDEN_STATES})

    def __init__(
        self,
        student_size: tuple[int, int],
        teacher_sizes: Sequence[tuple[int, int]],
        *,
        layer_map: LayerMap = "uniform",
        layer_norm: bool = True,
        shared_projection: bool = False,
        final_norm: bool = True,
        layer_reduction: LayerReduction = "mean",
        importance: Sequence[float] | None = None,
        weight: float | Schedule = 1.0,
    ) -> None:
        width, depth = student_size
        pairs = [layer_pairs(layer_map, depth, layers) for _, layers in teacher_sizes]
        super().__init__(pairs, layer_reduction=layer_reduction, importance=importance, weight=weight)
        self.layer_norm = layer_norm
        self.shared_projection = shared_projection
        self.final_norm = final_norm
        self.projections = nn.ModuleList(
            nn.ModuleList(nn.Linear(width, size, bias=False) for _ in (pairs[:1] if shared_projection else pairs))
            for (size, _), pairs in zip(teacher_sizes, self.pairs, strict=True)
        )

    def of_pair(
        self, m: int, i: int, student: InnerStates, teacher: InnerStates, batch: Batch, emphasis: Tensor | None
    ) -> Tensor:
        """See `LayerwiseTerm`."""
        projections = cast(nn.ModuleList, self.projections[m])
        s, t = self.pairs[m][i]
        return squared_error(
            projections[0 if self.shared_projection else i](self._states(student, s)),
            self._states(teacher, t),
            batch.attention_mask,
            normalize=self.layer_norm,
            emphasis=emphasis,
        )

    def _states(self, states: InnerStates, layer: int) -> Tensor:
        at_end = not self.final_norm and layer in states.before_norm
        return states.before_norm[layer] if at_end else states.hidden_states[layer]


class FeatureMapTerm(LayerwiseTerm):
    """MobileBERT's feature map transfer; a projection where widths differ. See `feature_map_transfer`.

    Args:
        student_size: Student's width and number of layers.
        teacher_sizes: Width and number of layers of each teacher.
        layer_map: `uniform` over layers from 1, `last`, or pairs (student layer, teacher layer).
        factors: Of the normalised map, of the mean and of the variance.
        stage_share: See `LayerwiseTerm`.
        importance: See `FeatureTerm`.
        weight: See `FeatureTerm`.

    Raises:
        ValueError: the layer map does not fit, or the importances do not.
    """

    need = frozenset({Capability.HIDDEN_STATES})
    takes_emphasis = False

    def __init__(
        self,
        student_size: tuple[int, int],
        teacher_sizes: Sequence[tuple[int, int]],
        *,
        layer_map: LayerMap = "uniform",
        factors: tuple[float, float, float] = (100.0, 5000.0, 5.0),
        stage_share: float | None = None,
        importance: Sequence[float] | None = None,
        weight: float | Schedule = 1.0,
    ) -> None:
        width, depth = student_size
        pairs = [block_pairs(layer_map, depth, layers) for _, layers in teacher_sizes]
        super().__init__(pairs, stage_share=stage_share, importance=importance, weight=weight)
        self.factors = factors
        self.projections = nn.ModuleList(
            nn.ModuleList(nn.Identity() if size == width else nn.Linear(width, size, bias=False) for _ in pairs)
            for (size, _), pairs in zip(teacher_sizes, self.pairs, strict=True)
        )

    def of_pair(
        self, m: int, i: int, student: InnerStates, teacher: InnerStates, batch: Batch, emphasis: Tensor | None
    ) -> Tensor:
        """See `LayerwiseTerm`."""
        s, t = self.pairs[m][i]
        map_factor, mean_factor, variance_factor = self.factors
        return feature_map_transfer(
            cast(nn.ModuleList, self.projections[m])[i](student.hidden_states[s]),
            teacher.hidden_states[t],
            batch.attention_mask,
            map_factor=map_factor,
            mean_factor=mean_factor,
            variance_factor=variance_factor,
        )

"""Terms of the loss that match a student's inner states with teachers'.

A term is a sum over text positions, which the caller divides once by their global count. Projections that
fit the student's width to a teacher's belong to the term: they are trained along and never exported.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from collegium.contracts import Batch, Capability, InnerLayers, InnerStates
from collegium.functional.features import LayerMap, layer_pairs, squared_error
from collegium.schedule import Schedule


class FeatureTerm(nn.Module):
    """Sum over teachers k of beta_k times what a sub-class says of one teacher.

    Args:
        num_teachers: Teachers, in the order in which their states are given.
        importance: beta of each teacher; normalised to sum to 1. Equal if None.
        weight: Weight among the feature terms of an objective; a schedule may change it between steps.

    Attributes:
        need: What teachers must provide.
        student_layers: Layers of the student that the term reads.
        teacher_layers: Layers of each teacher that it reads.
        progress: Share of the training that is done, in [0, 1]; set between steps.

    Raises:
        ValueError: the importances do not fit.
    """

    need: frozenset[Capability]
    student_layers: InnerLayers
    teacher_layers: tuple[InnerLayers, ...]

    def __init__(
        self,
        num_teachers: int,
        *,
        importance: Sequence[float] | None = None,
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__()
        betas = [1.0] * num_teachers if importance is None else list(importance)
        if len(betas) != num_teachers or min(betas) < 0 or sum(betas) <= 0:
            raise ValueError(f"importance must be 0 or more for each of {num_teachers} teachers, got {betas}")
        self.betas = [beta / sum(betas) for beta in betas]
        self.weight = weight
        self.progress = 0.0

    def forward(
        self,
        student: InnerStates,
        teachers: Sequence[InnerStates],
        batch: Batch,
        emphasis: Float[Tensor, "B S"] | None = None,
    ) -> Tensor:
        """Sum over text positions, not yet divided by their count; each times its emphasis, if there is any."""
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


class HiddenStatesTerm(FeatureTerm):
    """Mean over layer pairs of the squared error between projected and teacher's hidden states.

    Args:
        student_size: Student's width and number of layers.
        teacher_sizes: Width and number of layers of each teacher.
        layer_map: `uniform`, `last`, or pairs (student layer, teacher layer).
        layer_norm: Normalise both sides first.
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
        importance: Sequence[float] | None = None,
        weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(len(teacher_sizes), importance=importance, weight=weight)
        self.layer_norm = layer_norm
        width, depth = student_size
        self.pairs = [layer_pairs(layer_map, depth, layers) for _, layers in teacher_sizes]
        self.student_layers = InnerLayers(frozenset(s for pairs in self.pairs for s, _ in pairs))
        self.teacher_layers = tuple(InnerLayers(frozenset(t for _, t in pairs)) for pairs in self.pairs)
        self.projections = nn.ModuleList(
            nn.ModuleList(nn.Linear(width, size, bias=False) for _ in pairs)
            for (size, _), pairs in zip(teacher_sizes, self.pairs, strict=True)
        )

    def of_teacher(
        self, m: int, student: InnerStates, teacher: InnerStates, batch: Batch, emphasis: Tensor | None
    ) -> Tensor:
        """See `FeatureTerm`."""
        projections = self.projections[m]
        assert isinstance(projections, nn.ModuleList)
        errors = [
            squared_error(
                projection(student.hidden_states[s]),
                teacher.hidden_states[t],
                batch.attention_mask,
                normalize=self.layer_norm,
                emphasis=emphasis,
            )
            for (s, t), projection in zip(self.pairs[m], projections, strict=True)
        ]
        return torch.stack(errors).mean()

"""Dynamic KD: the student is taught by what it does not know. See `collegium.fused.uncertainty`."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from collegium.fused.uncertainty import Adoption, Selection, adoption_weights, selected_positions, student_figures
from collegium.signals.signals import Head


@dataclass(frozen=True)
class Guidance:
    """Consequences of the student's figures, at each predicted position.

    Attributes:
        kd: Factor of the divergence's weight.
        features: Factor of terms on inner states; None leaves them as they are.
        teacher_scores: Log of the teachers' weights; None leaves these to the weighting.
        uncertainty: Entropy / log V.
    """

    kd: Float[Tensor, " N"]
    features: Float[Tensor, " N"] | None
    teacher_scores: Float[Tensor, "N 2"] | None
    uncertainty: Float[Tensor, " N"]


@dataclass(frozen=True)
class DynamicDistillation:
    """The three dynamic strategies of arXiv:2109.11295; any of them may be on.

    Attributes:
        adoption: How two teachers, the smaller one first, are weighed.
        selection: By what positions are chosen for distillation; the text is learnt at all of them.
        selected_share: Share of the positions of a micro-batch that is chosen.
        objective: Give the divergence 1 - u and terms on inner states u.
    """

    adoption: Adoption | None = None
    selection: Selection | None = None
    selected_share: float = 0.5
    objective: bool = False

    @torch.no_grad()
    def guide(
        self, student_hidden: Float[Tensor, "N D"], head: Head, labels: Int[Tensor, " N"], *, chunk_size: int
    ) -> Guidance:
        """Measure the student once, and decide."""
        figures = student_figures(student_hidden, head, labels, chunk_size=chunk_size)
        kd = torch.ones_like(figures.uncertainty)
        if self.selection is not None:
            chosen = selected_positions(figures, self.selection, self.selected_share)
            # By their number, not by the share: of three positions at 0.5 one is chosen, and its mean is its own.
            kd = kd * chosen * len(chosen) / chosen.sum().clamp_min(1)
        features = None
        if self.objective:
            kd = kd * (1.0 - figures.uncertainty)
            features = figures.uncertainty
        scores = None
        if self.adoption is not None:
            scores = adoption_weights(figures.uncertainty, self.adoption).log()
        return Guidance(kd, features, scores, figures.uncertainty)

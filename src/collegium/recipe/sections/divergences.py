"""Sections of a recipe that say which divergence holds the student to its target. No torch here.

A plain string, `divergence: todi`, is that kind with its defaults, which are those of the papers' code.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from collegium.recipe.sections.base import Section


class ForwardKlSection(Section):
    """KL(target || student)."""

    kind: Literal["forward_kl"] = "forward_kl"
    """Covers all that the target holds likely."""


class ReverseKlSection(Section):
    """KL(student || target)."""

    kind: Literal["reverse_kl"]
    """Keeps the student to what the target holds likely."""


class TotalVariationSection(Section):
    """Half the sum of absolute differences."""

    kind: Literal["total_variation"]
    """Never scaled by the squared temperature."""


class JsdSection(Section):
    """beta KL(target || m) + (1 - beta) KL(student || m), m their mixture (GKD, arXiv:2306.13649)."""

    kind: Literal["jsd"]
    """Jensen-Shannon divergence."""
    beta: float = Field(default=0.5, ge=0, le=1)
    """Weight of the target in the mixture; 0 is the forward KL, 1 the reverse KL."""


class SkewForwardKlSection(Section):
    """KL(target || alpha target + (1 - alpha) student) (DistiLLM, arXiv:2402.03898)."""

    kind: Literal["skew_forward_kl"]
    """The forward KL, bounded."""
    alpha: float = Field(default=0.1, ge=0, lt=1)
    """Share of the target in the mixture; 0 is the forward KL."""


class SkewReverseKlSection(Section):
    """KL(student || alpha student + (1 - alpha) target) (DistiLLM, arXiv:2402.03898)."""

    kind: Literal["skew_reverse_kl"]
    """The reverse KL, bounded."""
    alpha: float = Field(default=0.1, ge=0, lt=1)
    """Share of the student in the mixture; 0 is the reverse KL."""


class AdaptiveKlSection(Section):
    """Both KLs, by where the distributions differ (AKL, arXiv:2404.02657)."""

    kind: Literal["adaptive_kl"]
    """More forward KL where the gap lies in the target's head."""
    mu: float = Field(default=0.5, gt=0, lt=1)
    """Mass of the head."""


class AlphaBetaSection(Section):
    """The alpha-beta divergence (ABKD, arXiv:2505.04560)."""

    kind: Literal["alpha_beta"]
    """(1, 0) is the forward KL, (0, 1) the reverse KL."""
    alpha: float = Field(default=0.2, ge=0)
    """Power of the target."""
    beta: float = Field(default=0.7, ge=0)
    """Power of the student."""


class TodiSection(Section):
    """Both KLs, by the ratio of both probabilities of each token (ToDi, arXiv:2505.16297)."""

    kind: Literal["todi"]
    """Forward where the student is too low, reverse where it is too high."""


class Distillm2Section(Section):
    """A skewed forward KL on given text, a skewed reverse KL on the student's own (arXiv:2503.07067)."""

    kind: Literal["distillm2"]
    """Which of both applies is a matter of who wrote a block."""
    alpha: float = Field(default=0.1, ge=0, lt=1)
    """Share, in the mixture, of whose text it is; 0 is the forward KL on given text, the reverse KL on own."""
    gradual: bool = False
    """Move weight from given text to the student's own over the first half; the paper's code leaves it off."""


class TaidSection(Section):
    """The forward KL to a blend of student and target that moves to the target (arXiv:2501.16937)."""

    kind: Literal["taid"]
    """The target's share in the blend rises over the run."""
    start: float = Field(default=0.4, ge=0, lt=1)
    """First share of the target."""
    end: float = Field(default=1.0, gt=0, le=1)
    """Last share of the target."""
    alpha: float = Field(default=5e-4, ge=0, le=1)
    """Size of a step by which the share may run ahead of a straight line; 0 is the straight line."""
    beta: float = Field(default=0.99, ge=0, lt=1)
    """Decay of the momentum of the loss's relative decrease."""

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if self.end <= self.start:
            raise ValueError(f"the share of the target rises, but start is {self.start} and end {self.end}")
        return self


class DecoupledSection(Section):
    """The forward KL in two parts, the label against all others and among the others (arXiv:2203.08679)."""

    kind: Literal["decoupled"]
    """DKD."""
    alpha: float = Field(default=1.0, ge=0)
    """Weight of the label against all others."""
    beta: float = Field(default=1.0, ge=0)
    """Weight among the others; 8 in the paper's image classification."""


def _kind_of_name(given: Any) -> Any:
    return {"kind": given} if isinstance(given, str) else given


DivergenceSection = Annotated[
    ForwardKlSection
    | ReverseKlSection
    | TotalVariationSection
    | JsdSection
    | SkewForwardKlSection
    | SkewReverseKlSection
    | AdaptiveKlSection
    | AlphaBetaSection
    | TodiSection
    | Distillm2Section
    | TaidSection
    | DecoupledSection,
    Field(discriminator="kind"),
    BeforeValidator(_kind_of_name),
]

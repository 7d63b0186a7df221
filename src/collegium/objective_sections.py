"""Sections of a recipe that say what the loss is. No torch here."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from collegium.divergence_sections import DivergenceSection, ForwardKlSection
from collegium.section import Many, Section


class WeightingSection(Section):
    """How certain teachers get more weight."""

    kind: Literal["uniform", "static", "entropy"] = "entropy"
    """`entropy` is exp(-H / tau), normalised over teachers."""
    granularity: Annotated[str, Field(pattern=r"^(token|sequence|window:[1-9][0-9]*)$")] = "window:128"
    """Stretch over which the entropy is averaged: `token`, `sequence` (a document), `window:W` tokens."""
    tau: float = Field(default=0.25, gt=0)
    """In nats; large is uniform, small picks the most certain teacher."""
    values: dict[str, float] | None = None
    """Weight of each teacher by name, for `static`."""

    @model_validator(mode="before")
    @classmethod
    def _presets(cls, given: Any) -> Any:
        if given == "paper":
            return {"kind": "entropy", "granularity": "token", "tau": 1.0}
        if given in ("uniform", "entropy"):
            return {"kind": given}
        return given

    @model_validator(mode="after")
    def _values_go_with_static(self) -> Self:
        if (self.kind == "static") != (self.values is not None):
            raise ValueError("`values` (a weight for each teacher) and `kind: static` go together")
        if self.values is not None and (min(self.values.values()) < 0 or sum(self.values.values()) <= 0):
            raise ValueError(f"static weights must be 0 or more and not all 0, got {self.values}")
        return self


class FeatureSection(Section):
    """A loss that matches the student's inner states with each teacher's."""

    layer_map: Literal["uniform", "last"] | Many[Annotated[tuple[int, int], Field(strict=False)]] = "uniform"
    """Pairs (student layer, teacher layer), 0 being the embedding output; or `uniform`, or `last`."""
    importance: dict[str, float] | None = None
    """beta of each teacher by name; equal if not given. They are normalised to sum to 1."""
    layer_norm: bool = True
    """Normalise both sides first, so that a few huge dimensions do not decide."""
    balance: bool = False
    """Rescale the term to the size of the rest of the loss (Minitron), before feature_weight."""


class ObjectiveSection(Section):
    """kd_weight * KD + (1 - kd_weight) * CE + feature_weight * feature loss."""

    kd_weight: float = Field(default=0.5, ge=0, le=1)
    """Share of the distillation loss; 0 is cross-entropy alone, 1 is distillation alone."""
    divergence: DivergenceSection = ForwardKlSection()
    """From the student to the fused target: a section with `kind`, or the kind alone."""
    fusion: Literal["mixture", "geometric"] = "mixture"
    """Weighted mean of the teachers' probabilities, or normalised of their logarithms."""
    weighting: WeightingSection = WeightingSection()
    """A section, or `paper`, `uniform` or `entropy`."""
    kd_temperature: float = Field(default=1.0, gt=0)
    """Softens student and target alike; 1 is best for language models."""
    scale_by_squared_temperature: bool = True
    """Multiply the distillation loss by kd_temperature squared; never done for total_variation."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of a label's probability that the cross-entropy spreads over the vocabulary."""
    feature_weight: float = Field(default=0.0, ge=0)
    """Weight of the feature loss; 0 leaves it out."""
    feature: FeatureSection = FeatureSection()
    """Only read when feature_weight is above 0."""
    max_invalid_fraction: float = Field(default=0.01, ge=0, le=1)
    """Stop when a teacher's logits hold NaN or Inf at more than this share of positions."""

"""Sections of a recipe that say what the loss is. No torch here."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from collegium.section import Many, Section


_GRANULARITY = r"^(token|sequence|(window|causal):[1-9][0-9]*)$"

_OWN_KEYS: Mapping[str, tuple[str, str]] = {
    "values": ("static", "a weight for each teacher"),
    "decay": ("bayes", "how fast past labels are forgotten"),
    "domains": ("domain", "the teacher of each source"),
    "max_weight": ("min_norm", "the most that one teacher gets"),
}
"""Keys that one kind needs and no other reads."""

_OWN_DEFAULTS: Mapping[str, Mapping[str, float]] = {"bayes": {"decay": 0.97}, "min_norm": {"max_weight": 0.6}}


class WeightingSection(Section):
    """How much each teacher counts at each position; `docs/weighting.md` compares the kinds."""

    kind: Literal[
        "uniform",
        "static",
        "domain",
        "entropy",
        "inverse_entropy",
        "most_certain",
        "mt_bert",
        "min_ce",
        "avg_ce",
        "bayes",
        "ebkd",
        "ca_mkd",
        "min_norm",
    ] = "entropy"
    """`entropy` is exp(-H / tau), normalised over teachers."""
    granularity: Annotated[str, Field(pattern=_GRANULARITY)] = "window:128"
    """Stretch of the averages: `token`, `sequence` (a document), `window:W` tokens, `causal:W` (a fading past)."""
    tau: float = Field(default=0.25, gt=0)
    """Of `entropy`, in nats; large is uniform, small picks the most certain teacher."""
    values: dict[str, float] | None = None
    """Weight of each teacher by name, for `static`."""
    decay: float | None = Field(default=None, gt=0, le=1)
    """For `bayes`: what a label still counts one token later; 0.97 if not given, 1 forgets nothing."""
    domains: dict[str, str] | None = None
    """For `domain`: the teacher of each source, by name."""
    max_weight: float | None = Field(default=None, gt=0, le=1)
    """For `min_norm`: the most that one teacher gets (C of AE-KD); 0.6 if not given."""

    @model_validator(mode="before")
    @classmethod
    def _presets(cls, given: Any) -> Any:
        if given == "paper":
            return {"kind": "entropy", "granularity": "token", "tau": 1.0}
        if isinstance(given, str):
            given = {"kind": given}
        if isinstance(given, dict):
            own = _OWN_DEFAULTS.get(str(given.get("kind")), {})
            return given | {key: value for key, value in own.items() if given.get(key) is None}
        return given

    @model_validator(mode="after")
    def _keys_go_with_kinds(self) -> Self:
        for key, (kind, meaning) in _OWN_KEYS.items():
            if (self.kind == kind) != (getattr(self, key) is not None):
                raise ValueError(f"`{key}` ({meaning}) and `kind: {kind}` go together; the kind is {self.kind!r}")
        if self.values is not None and (min(self.values.values()) < 0 or sum(self.values.values()) <= 0):
            raise ValueError(f"static weights must be 0 or more and not all 0, got {self.values}")
        if self.kind in ("bayes", "domain") and self.granularity != "window:128":
            raise ValueError(f"`kind: {self.kind}` averages nothing: leave out `granularity`")
        if self.kind not in ("entropy", "uniform", "static") and self.tau != 0.25:
            raise ValueError(f"`kind: {self.kind}` has no sharpness: leave out `tau`, which `entropy` reads")
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
    divergence: Literal["forward_kl", "reverse_kl", "jsd", "total_variation"] = "forward_kl"
    """From the student to the fused target; forward is KL(target || student)."""
    jsd_beta: float = Field(default=0.5, ge=0, le=1)
    """Weight of the target in the mixture of `jsd`."""
    fusion: Literal["mixture", "geometric"] = "mixture"
    """Weighted mean of the teachers' probabilities, or normalised of their logarithms."""
    weighting: WeightingSection = WeightingSection()
    """A section, `paper`, or the name of a kind that needs no more."""
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

"""Sections of a recipe that say what the loss is. No torch here."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from collegium.base.schedule import largest
from collegium.recipe.sections.base import Many, Section
from collegium.recipe.sections.cross_tokenizer import CrossTokenizerSection
from collegium.recipe.sections.divergences import DivergenceSection, ForwardKlSection
from collegium.recipe.sections.features import FeatureSection, HiddenStatesSection
from collegium.recipe.sections.schedule import Weight, schedule_of


_GRANULARITY = r"^(token|sequence|(window|causal):[1-9][0-9]*)$"

_STRETCH = "window:32"
_TAU = 0.5
"""Of entropy weights, if not given: docs/when-it-helps.md says what chose them."""

_OWN_KEYS: Mapping[str, tuple[str, str]] = {
    "values": ("static", "a weight for each teacher"),
    "decay": ("bayes", "how fast past labels are forgotten"),
    "domains": ("domain", "the teacher of each source"),
    "max_weight": ("min_norm", "the most that one teacher gets"),
    "loss_weight": ("router", "weight of the router's own loss"),
}
"""Keys that one kind needs and no other reads."""

_OWN_DEFAULTS: Mapping[str, Mapping[str, float]] = {
    "bayes": {"decay": 0.97},
    "min_norm": {"max_weight": 0.6},
    "router": {"loss_weight": 1.0, "tau": 0.25},
}


class WeightingSection(Section):
    """Share of each teacher at each position; `docs/weighting.md` compares the kinds."""

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
        "router",
    ] = "entropy"
    """`entropy` is exp(-H / tau), normalised over teachers."""
    granularity: Annotated[str, Field(pattern=_GRANULARITY)] = _STRETCH
    """Stretch of the averages: `token`, `sequence` (a document), `window:W` tokens, `causal:W` (a fading past)."""
    tau: float = Field(default=_TAU, gt=0)
    """Sharpness of `entropy` and of what a `router` learns, in nats; large is uniform, small picks one teacher."""
    values: dict[str, float] | None = None
    """Weight of each teacher by name, for `static`."""
    decay: float | None = Field(default=None, gt=0, le=1)
    """For `bayes`: what a label still counts one token later; 0.97 if not given, 1 forgets nothing."""
    domains: dict[str, str] | None = None
    """For `domain`: the teacher of each source, by name."""
    max_weight: float | None = Field(default=None, gt=0, le=1)
    """For `min_norm`: the most that one teacher gets (C of AE-KD); 0.6 if not given."""
    loss_weight: float | None = Field(default=None, ge=0)
    """For `router`: weight of its own loss; 1 if not given."""

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
        if self.kind in ("bayes", "domain") and self.granularity != _STRETCH:
            raise ValueError(f"`kind: {self.kind}` averages nothing: leave out `granularity`")
        if self.kind not in ("entropy", "uniform", "static", "router") and self.tau != _TAU:
            raise ValueError(f"`kind: {self.kind}` has no sharpness: leave out `tau`, which `entropy` reads")
        return self


class DynamicSection(Section):
    """Dynamic KD: the student's own uncertainty decides what it is taught (arXiv:2109.11295)."""

    adoption: Literal["hard", "soft", "instance"] | None = None
    """Weigh two teachers, the small one first: where the student is uncertain it follows the small one."""
    selection: Literal["entropy", "confidence", "margin", "label"] | None = None
    """Distil only where the student is least certain by this measure."""
    selected_share: float = Field(default=0.5, gt=0, le=1)
    """Share of the positions of a micro-batch that `selection` takes."""
    objective: bool = False
    """Weigh the divergence by certainty and the feature loss by uncertainty."""

    @model_validator(mode="after")
    def _does_something(self) -> Self:
        if self.adoption is None and self.selection is None and not self.objective:
            raise ValueError("give at least one of adoption, selection and objective")
        return self


def _one_or_list(given: Any) -> str:
    return "list" if isinstance(given, list | tuple) else "one"


Features = Annotated[
    Annotated[FeatureSection, Tag("one")] | Annotated[Many[FeatureSection], Field(min_length=1), Tag("list")],
    Discriminator(_one_or_list),
]
"""A section, or a list of at least one."""


class ObjectiveSection(Section):
    """kd_weight * KD + ce_weight * CE + feature_weight * feature loss + cross_tokenizer_weight * its terms."""

    kd_weight: Weight = 0.5
    """Weight of the distillation loss; 0 is cross-entropy alone. A number, or a schedule."""
    ce_weight: Weight | None = None
    """Weight of the cross-entropy to the text; 1 - kd_weight if not given."""
    divergence: DivergenceSection = ForwardKlSection()
    """From the student to the fused target: a section with `kind`, or the kind alone."""
    fusion: Literal["mixture", "geometric"] = "mixture"
    """Weighted mean of the teachers' probabilities, or normalised of their logarithms."""
    weighting: WeightingSection = WeightingSection()
    """A section, `paper`, or the name of a kind that needs no more."""
    kd_temperature: float = Field(default=1.0, gt=0)
    """Softens student and target; 1 is best for language models."""
    scale_by_squared_temperature: bool = True
    """Multiply the distillation loss by kd_temperature squared; never done for total_variation."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of a label's probability that the cross-entropy spreads over the vocabulary."""
    feature_weight: Weight = 0.0
    """Weight of the feature loss; 0 leaves it out."""
    feature: Features = HiddenStatesSection()
    """One term on inner states, or a list of them, each with `kind`; only read when feature_weight is above 0."""
    cross_tokenizer_weight: Weight = 0.0
    """Weight of the terms that compare vocabularies as they are; 0 leaves them out."""
    cross_tokenizer: Many[CrossTokenizerSection] = ()
    """Such terms, each with `kind`; given if and only if cross_tokenizer_weight is above 0."""
    conflict_limit: float | None = Field(default=None, ge=0)
    """Nats of conflict among teachers above which a position is left to the text alone."""
    balance: Literal["fixed", "gradient_free", "uncertainty"] = "fixed"
    """Balance of terms on top of their weights: `gradient_free` makes them equally large, step by step (Minitron's
    balancer); `uncertainty` learns a variance for each."""
    dynamic: DynamicSection | None = None
    """Dynamic KD, if given."""
    max_invalid_fraction: float = Field(default=0.01, ge=0, le=1)
    """Stop when a teacher's logits hold NaN or Inf at more than this share of positions."""

    @model_validator(mode="after")
    def _weights_go_together(self) -> Self:
        kd_weight = schedule_of(self.kd_weight)
        feature_weight = schedule_of(self.feature_weight)
        if self.ce_weight is None and largest(kd_weight) > 1:
            raise ValueError(f"kd_weight reaches {largest(kd_weight):g}; above 1 give ce_weight too")
        if self.compares_vocabularies != bool(self.cross_tokenizer):
            raise ValueError(
                "cross_tokenizer and a cross_tokenizer_weight above 0 go together: give both, or leave out both"
            )
        if self.dynamic is not None:
            if largest(kd_weight) == 0:
                raise ValueError("dynamic decides on the distillation loss: set kd_weight above 0")
            if self.dynamic.objective and largest(feature_weight) == 0:
                raise ValueError("dynamic.objective moves weight to the feature loss: set feature_weight above 0")
            if self.dynamic.objective and (others := {f.kind for f in self.features} - {"hidden_states"}):
                raise ValueError(
                    f"dynamic.objective weighs positions, which `kind: {sorted(others)[0]}` cannot: let "
                    "objective.feature be hidden_states alone, or set dynamic.objective to false"
                )
            if self.dynamic.adoption is not None and self.weighting != WeightingSection():
                raise ValueError("dynamic.adoption weighs the teachers: leave out weighting")
            if self.balance == "uncertainty":
                raise ValueError("balance: uncertainty needs one weight for all positions: leave out dynamic")
        return self

    @property
    def distils(self) -> bool:
        """True if teachers' distributions are read at any time."""
        return largest(schedule_of(self.kd_weight)) > 0

    @property
    def reads_lists(self) -> bool:
        """True if draws do not serve: right on average, they fit only a loss that is linear in its target."""
        return self.distils and (self.divergence.kind != "forward_kl" or self.fusion != "mixture")

    @property
    def matches_features(self) -> bool:
        """True if teachers' inner states are read at any time."""
        return largest(schedule_of(self.feature_weight)) > 0

    @property
    def needs_teachers(self) -> bool:
        """True if teachers are asked for anything at any time."""
        return self.distils or self.matches_features or self.compares_vocabularies

    @property
    def compares_vocabularies(self) -> bool:
        """True if teachers are read in their own vocabularies at any time."""
        return largest(schedule_of(self.cross_tokenizer_weight)) > 0

    @property
    def named_cross_tokenizer(self) -> dict[str, CrossTokenizerSection]:
        """The terms that do so, by their keys in a recipe."""
        return {f"objective.cross_tokenizer.{i}": section for i, section in enumerate(self.cross_tokenizer)}

    @property
    def features(self) -> tuple[FeatureSection, ...]:
        """The terms on inner states; read only where it `matches_features`."""
        return self.feature if isinstance(self.feature, tuple) else (self.feature,)

    @property
    def named_features(self) -> dict[str, FeatureSection]:
        """The same by their keys in a recipe."""
        if not isinstance(self.feature, tuple):
            return {"objective.feature": self.feature}
        return {f"objective.feature.{i}": section for i, section in enumerate(self.feature)}

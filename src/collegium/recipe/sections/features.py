"""Sections of a recipe for the terms on inner states, one a kind. No torch here."""

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from collegium.recipe.sections.base import Many, Section
from collegium.recipe.sections.schedule import Weight


LayerMapSetting = Literal["uniform", "last"] | Many[Annotated[tuple[int, int], Field(strict=False)]]


class FeatureTermSection(Section):
    """Common to all terms on inner states."""

    weight: Weight = 1.0
    """Among the terms; feature_weight multiplies all of them. A number, or a schedule."""
    importance: dict[str, float] | None = None
    """beta of each teacher by name; equal if not given. They are normalised to sum to 1."""

    @property
    def needs_attention(self) -> bool:
        """True if it reads queries, keys and values, False if hidden states."""
        return True

    def lacks(self, mode: str | None) -> tuple[str, str] | None:
        """Something it reads that a cache of this mode, if known, does not hold, and the setting that fixes it."""
        return "queries, keys and values, which no cache holds", "kind: hidden_states"


class HiddenStatesSection(FeatureTermSection):
    """Squared error between the student's projected hidden states and each teacher's."""

    kind: Literal["hidden_states"] = "hidden_states"
    """Projections belong to the training and are not exported."""
    layer_map: LayerMapSetting = "uniform"
    """Pairs (student layer, teacher layer), 0 being the embedding output; or `uniform`, or `last`."""
    layer_norm: bool = True
    """Normalise both sides first, so that a few huge dimensions do not decide."""
    shared_projection: bool = False
    """One projection for all layers of a teacher (TinyBERT) instead of one for each pair."""
    final_norm: bool = True
    """Take the last layer after the final norm, else before it."""
    layer_reduction: Literal["mean", "sum"] = "mean"
    """Over pairs of layers."""

    @property
    def needs_attention(self) -> bool:
        """No."""
        return False

    def lacks(self, mode: str | None) -> tuple[str, str] | None:
        """See `FeatureTermSection`."""
        return _lacking_states(mode, self.layer_map, self.final_norm)


def _lacking_states(mode: str | None, layer_map: object, final_norm: bool = True) -> tuple[str, str] | None:
    if mode not in (None, "hidden_states"):
        return f"hidden states, which cache.mode {mode} does not hold", "cache.mode: hidden_states"
    if layer_map == "uniform":
        return "all layers, of which a cache holds the last", "layer_map: last"
    if not final_norm:
        return "states before the final norm, of which a cache holds those after it", "final_norm: true"
    return None


class AttentionSection(FeatureTermSection):
    """Common to terms on attention."""

    layer_map: LayerMapSetting = "uniform"
    """Pairs (student layer, teacher layer) from 1; or `uniform`, or `last`."""
    layer_reduction: Literal["mean", "sum"] = "mean"
    """Over pairs of layers."""


class AttentionScoresSection(AttentionSection):
    """Squared error between scores before the softmax (TinyBERT)."""

    kind: Literal["attention_scores"]
    """Means over heads are compared where their numbers differ."""


class AttentionMapsSection(AttentionSection):
    """Divergence between attention after the softmax (MiniLM, MobileBERT)."""

    kind: Literal["attention_maps"]
    """Means over heads are compared where their numbers differ."""
    stage_share: float | None = Field(default=None, gt=0, le=1)
    """Share of the training in which layers come in one after another; all from the start if not given."""


class FeatureMapsSection(FeatureTermSection):
    """Squared error between normalised hidden states, their means and variances (MobileBERT)."""

    kind: Literal["feature_maps"]
    """Has a projection only where the student's width is not the teacher's."""
    layer_map: LayerMapSetting = "uniform"
    """Pairs (student layer, teacher layer) from 1; or `uniform`, or `last`."""
    map_factor: float = Field(default=100.0, ge=0)
    """Weight of the error between normalised states."""
    mean_factor: float = Field(default=5000.0, ge=0)
    """Weight of the squared difference of means over the width."""
    variance_factor: float = Field(default=5.0, ge=0)
    """Weight of the difference of variances over the width."""
    stage_share: float | None = Field(default=None, gt=0, le=1)
    """Share of the training in which layers come in one after another; all from the start if not given."""

    @property
    def needs_attention(self) -> bool:
        """No."""
        return False

    def lacks(self, mode: str | None) -> tuple[str, str] | None:
        """See `FeatureTermSection`."""
        return _lacking_states(mode, self.layer_map)


class StructureSection(FeatureTermSection):
    """Relations of tokens, phrases and documents among themselves (MGSKD)."""

    kind: Literal["structure"]
    """No projections: structures do not depend on widths."""
    layer_map: LayerMapSetting = "uniform"
    """Pairs (student layer, teacher layer), 0 being the embedding output; or `uniform`, or `last`."""
    relation_heads: int = Field(default=64, ge=1)
    """Parts that states are cut into; must divide the widths of student and teachers."""
    salient_tokens: int = Field(default=20, ge=1)
    """Tokens, or phrases, of a document at which angles are taken."""
    neighbours: int = Field(default=20, ge=2)
    """Tokens, or phrases, that span angles there."""
    lower_pairs: int = Field(default=2, ge=0)
    """Layer pairs, from the lowest, for tokens and phrases; the others are for documents."""
    level_weights: Annotated[tuple[float, float, float], Field(strict=False)] = (1.0, 1.0, 4.0)
    """Weights of tokens, phrases and documents."""

    @property
    def needs_attention(self) -> bool:
        """No."""
        return False

    def lacks(self, mode: str | None) -> tuple[str, str] | None:
        """See `FeatureTermSection`."""
        return _lacking_states(mode, self.layer_map)


LayerNumber = Annotated[float, Field(gt=0)]


class RelationsSection(FeatureTermSection):
    """Divergence between relations among tokens (MiniLMv2, and MiniLM's of values)."""

    kind: Literal["relations"]
    """The student's last layer is matched."""
    of: Annotated[Many[Literal["queries", "keys", "values"]], Field(min_length=1)] = ("queries", "keys", "values")
    """What is related to itself; the kinds are summed."""
    num_relation_heads: Annotated[int, Field(ge=1)] | Literal["auto", "attention"] = "auto"
    """Must divide both widths; `auto`: the most up to 64 that does; `attention`: heads as they are (MiniLM)."""
    layer: Literal["last"] | LayerNumber | dict[str, LayerNumber] = "last"
    """The teacher's: a number from 1, or below 1 a share of its layers; or one for each teacher by name."""

    @model_validator(mode="after")
    def _layers_are_whole(self) -> Self:
        given = self.layer if isinstance(self.layer, dict) else {"": self.layer}
        if broken := [x for x in given.values() if isinstance(x, float) and x > 1 and x != int(x)]:
            raise ValueError(f"layer is {broken[0]}; give a whole number, or a share of the layers below 1")
        return self

    def layer_of(self, teacher: str, num_layers: int) -> int:
        """Number of the layer of a teacher with `num_layers` layers."""
        given = self.layer[teacher] if isinstance(self.layer, dict) else self.layer
        if given == "last":
            return num_layers
        return int(given) if given >= 1 else max(1, round(given * num_layers))


def _kind_of_feature(given: Any) -> str:
    if isinstance(given, dict):
        return str(given.get("kind", "hidden_states"))
    return str(getattr(given, "kind", "hidden_states"))


FeatureSection = Annotated[
    Annotated[HiddenStatesSection, Tag("hidden_states")]
    | Annotated[AttentionScoresSection, Tag("attention_scores")]
    | Annotated[AttentionMapsSection, Tag("attention_maps")]
    | Annotated[FeatureMapsSection, Tag("feature_maps")]
    | Annotated[RelationsSection, Tag("relations")]
    | Annotated[StructureSection, Tag("structure")],
    Discriminator(_kind_of_feature),
]
"""One of the kinds; `hidden_states` where none is given."""

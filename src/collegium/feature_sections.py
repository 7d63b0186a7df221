"""Sections of a recipe for the terms on inner states, one a kind. No torch here."""

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from collegium.schedule_section import Weight
from collegium.section import Many, Section


LayerMapSetting = Literal["uniform", "last"] | Many[Annotated[tuple[int, int], Field(strict=False)]]


class FeatureTermSection(Section):
    """Common to all terms on inner states."""

    weight: Weight = 1.0
    """Among the terms; feature_weight multiplies all of them. A number, or a schedule."""
    importance: dict[str, float] | None = None
    """beta of each teacher by name; equal if not given. They are normalised to sum to 1."""

    @property
    def needs_attention(self) -> bool:
        """Whether it reads queries, keys and values, else hidden states."""
        return True


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
    """Of the error between normalised states."""
    mean_factor: float = Field(default=5000.0, ge=0)
    """Of the squared difference of means over the width."""
    variance_factor: float = Field(default=5.0, ge=0)
    """Of the difference of variances over the width."""
    stage_share: float | None = Field(default=None, gt=0, le=1)
    """Share of the training in which layers come in one after another; all from the start if not given."""

    @property
    def needs_attention(self) -> bool:
        """No."""
        return False


LayerNumber = Annotated[float, Field(gt=0)]


class RelationsSection(FeatureTermSection):
    """Divergence between relations among tokens (MiniLMv2, and MiniLM's of values)."""

    kind: Literal["relations"]
    """The student's last layer is matched."""
    of: Annotated[Many[Literal["queries", "keys", "values"]], Field(min_length=1)] = ("queries", "keys", "values")
    """What is related to itself; the kinds are summed."""
    num_relation_heads: Annotated[int, Field(ge=1)] | Literal["auto", "attention"] = "auto"
    """Must divide the widths of both sides; `auto`: the most up to 64 that does; `attention`: heads as they are."""
    layer: Literal["last"] | LayerNumber | dict[str, LayerNumber] = "last"
    """The teacher's: a number from 1, or below 1 a share of its layers; or one for each teacher by name."""

    @model_validator(mode="after")
    def _layers_are_whole(self) -> Self:
        given = self.layer if isinstance(self.layer, dict) else {"": self.layer}
        if broken := [x for x in given.values() if isinstance(x, float) and x > 1 and x != int(x)]:
            raise ValueError(f"layer is {broken[0]}; give a whole number, or a share of the layers below 1")
        return self

    def layer_of(self, teacher: str, num_layers: int) -> int:
        """Number of the layer of a teacher that has so many."""
        given = self.layer[teacher] if isinstance(self.layer, dict) else self.layer
        if given == "last":
            return num_layers
        return int(given) if given >= 1 else max(1, round(given * num_layers))


def _kind_of_feature(given: Any) -> str:
    kind = (
        given.get("kind", "hidden_states") if isinstance(given, dict) else getattr(given, "kind", "hidden_states")
    )
    return str(kind)


FeatureSection = Annotated[
    Annotated[HiddenStatesSection, Tag("hidden_states")]
    | Annotated[AttentionScoresSection, Tag("attention_scores")]
    | Annotated[AttentionMapsSection, Tag("attention_maps")]
    | Annotated[FeatureMapsSection, Tag("feature_maps")]
    | Annotated[RelationsSection, Tag("relations")],
    Discriminator(_kind_of_feature),
]
"""One of the kinds; `hidden_states` where none is given."""

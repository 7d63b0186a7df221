"""The choice of what pruning keeps: made by importance, written as JSON, read again on resuming."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from transformers import PreTrainedModel

from collegium.losses.importance import top_heads, top_indices
from collegium.models.pruning.calibration import Importance, measure_importance
from collegium.models.pruning.layout import Sizes
from collegium.models.student import choose_layers
from collegium.signals.contracts import Batch


DepthCriterion = Literal["loss", "block_influence"]


@dataclass(frozen=True)
class Kept:
    """Indices in the model that is pruned, increasing.

    Attributes:
        layers: Layers.
        channels: Channels of the hidden size, the same everywhere.
        key_value_heads: For each kept layer.
        heads: Query heads for each kept layer.
        neurons: MLP neurons for each kept layer.
    """

    layers: list[int]
    channels: list[int]
    key_value_heads: list[list[int]]
    heads: list[list[int]]
    neurons: list[list[int]]

    def dumped(self) -> str:
        """The choice as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def parsed(cls, text: str) -> "Kept":
        """Read a choice from JSON.

        Raises:
            ValueError: it is not a choice.
        """
        content = json.loads(text)
        if not isinstance(content, dict) or set(content) != set(cls.__dataclass_fields__):
            raise ValueError(f"needs {', '.join(cls.__dataclass_fields__)}")
        return cls(
            layers=_integers(content["layers"]),
            channels=_integers(content["channels"]),
            key_value_heads=[_integers(row) for row in content["key_value_heads"]],
            heads=[_integers(row) for row in content["heads"]],
            neurons=[_integers(row) for row in content["neurons"]],
        )


def _integers(values: Any) -> list[int]:
    if not isinstance(values, list) or not all(type(value) is int for value in values):
        raise ValueError("needs lists of integers")
    return values


def choose_kept(
    model: PreTrainedModel, target: Sizes, batches: Sequence[Batch], *, depth_criterion: DepthCriterion = "loss"
) -> Kept:
    """Choose what to keep from scores of the whole model, in one shot as Minitron does.

    Args:
        model: In evaluation mode.
        target: Sizes after pruning, from `target_sizes`.
        batches: Calibration text.
        depth_criterion: `loss` drops layer after layer the one whose absence costs least; `block_influence`
            keeps those that change their input's direction most, at no cost beyond the scores.

    Raises:
        RecipeError: the architecture cannot be pruned.
    """
    importance = measure_importance(model, batches)
    if depth_criterion == "loss":
        layers = choose_layers(model, target.num_layers, batches)
    else:
        layers = top_indices(importance.influence, target.num_layers).tolist()
    return select_kept(importance, layers, target, num_groups=Sizes.of(model).num_key_value_heads)


def select_kept(importance: Importance, layers: Sequence[int], target: Sizes, *, num_groups: int) -> Kept:
    """The top of everything in these layers, by scores; see `choose_kept`."""
    heads = [
        top_heads(
            importance.heads[i],
            num_groups=num_groups,
            kept_groups=target.num_key_value_heads,
            kept_heads=target.num_heads,
        )
        for i in layers
    ]
    return Kept(
        layers=list(layers),
        channels=top_indices(importance.channels, target.hidden_size).tolist(),
        key_value_heads=[groups.tolist() for groups, _ in heads],
        heads=[queries.tolist() for _, queries in heads],
        neurons=[top_indices(importance.neurons[i], target.intermediate_size).tolist() for i in layers],
    )

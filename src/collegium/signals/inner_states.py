"""Inner states of a student or teacher: the layers that are asked for, their states, and the model behind them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


Embedding = Callable[[Int[Tensor, "*"]], Float[Tensor, "* E"]]
"""Input embeddings of token ids."""


@dataclass(frozen=True)
class AttentionShape:
    """Heads of an attention layer.

    Attributes:
        num_heads: Heads of queries.
        num_key_value_heads: Heads of keys and values.
        head_dim: Width of one.
    """

    num_heads: int
    num_key_value_heads: int
    head_dim: int


@dataclass(frozen=True)
class UnderlyingModel:
    """The model behind a teacher, as far as the teacher lets it be seen.

    Attributes:
        hidden_size: Width of its hidden states.
        num_layers: Number of its layers.
        hidden_layers: Layers whose hidden states are given, 0 being the embedding output.
        before_norm: True if the last layer's output before the final norm is given too.
        attention: Heads of its last layer; None if queries, keys and values are not given.
        embed: Its input embeddings; None if the model does not run here.
        num_parameters: Number of its parameters, tied ones counted once; None if the weights are not here.
    """

    hidden_size: int
    num_layers: int
    hidden_layers: frozenset[int] = frozenset()
    before_norm: bool = False
    attention: AttentionShape | None = None
    embed: Embedding | None = None
    num_parameters: int | None = None


@dataclass(frozen=True)
class InnerLayers:
    """Layers whose inner states are asked for; the first layer is 1.

    Attributes:
        hidden: Layers whose output is asked for, 0 being the embedding output.
        attention: Layers whose queries, keys and values are asked for.
    """

    hidden: frozenset[int] = frozenset()
    attention: frozenset[int] = frozenset()

    def __or__(self, other: "InnerLayers") -> "InnerLayers":
        return InnerLayers(self.hidden | other.hidden, self.attention | other.attention)

    def __bool__(self) -> bool:
        return bool(self.hidden or self.attention)


@dataclass(frozen=True)
class InnerStates:
    """Inner states of a student or teacher by layer, the first layer being 1; empty where not asked for.

    Attributes:
        hidden_states: Output of layers, 0 being the embeddings'. The last one is after the final norm, as in
            `output_hidden_states` of transformers. A cache knows this one only.
        before_norm: The last layer's output before the final norm, under its number.
        queries: Queries before rotary embedding, after a norm of queries if the model has one.
        keys: Keys, likewise; with grouped queries they have fewer heads.
        values: Values, with as many heads as keys.
        scales: Factor of a product of query and key before the softmax; 1 / sqrt(d) if not given.
    """

    hidden_states: Mapping[int, Float[Tensor, "B S E"]] = field(default_factory=dict)
    before_norm: Mapping[int, Float[Tensor, "B S E"]] = field(default_factory=dict)
    queries: Mapping[int, Float[Tensor, "B H S d"]] = field(default_factory=dict)
    keys: Mapping[int, Float[Tensor, "B K S d"]] = field(default_factory=dict)
    values: Mapping[int, Float[Tensor, "B K S d"]] = field(default_factory=dict)
    scales: Mapping[int, float] = field(default_factory=dict)

    def to(self, device: torch.device) -> "InnerStates":
        """Return the same states with their tensors on `device`."""
        moved: dict[str, Any] = {
            item.name: {layer: tensor.to(device) for layer, tensor in getattr(self, item.name).items()}
            for item in fields(self)
            if item.name != "scales"
        }
        return replace(self, **moved)

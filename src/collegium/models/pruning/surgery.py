"""The cut: a model of fewer layers, channels, heads and neurons, its weights taken from a larger one.

The pruned model computes exactly what the larger one would with the cut channels held at 0 (up to the
epsilon of RMSNorm): an RMSNorm over D' of D channels divides by the root mean square of fewer, larger
values, so gains are multiplied by sqrt(D / D'). Minitron leaves them.
"""

import copy
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from collegium.losses.precision import full_precision
from collegium.models.layer_settings import keep_in_config
from collegium.models.pretrained import place
from collegium.models.pruning.choice import Kept
from collegium.models.pruning.layout import AXES, Axis, head_dim_of, module_name, require_known


@torch.no_grad()
def prune(model: PreTrainedModel, kept: Kept) -> PreTrainedModel:
    """The pruned model, in evaluation mode and in the type and on the device of `model`, which stays as it is.

    Raises:
        RecipeError: the architecture cannot be pruned.
    """
    require_known(model)
    with no_init_weights():
        pruned: PreTrainedModel = AutoModelForCausalLM.from_config(
            _pruned_config(model.config, kept), dtype=model.dtype
        )
    pruned.tie_weights()  # which is part of the initialisation that was left out
    pruned = place(pruned, model.device)
    _copy_weights(model, pruned, kept)
    _copy_rope(model, pruned)
    pruned.generation_config = copy.deepcopy(model.generation_config)
    pruned.eval()
    return pruned


def _pruned_config(config: PretrainedConfig, kept: Kept) -> PretrainedConfig:
    pruned = copy.deepcopy(config)
    text = pruned.get_text_config()
    text.head_dim = head_dim_of(text)  # before the width changes, from which it may be derived
    keep_in_config(text, kept.layers)
    text.hidden_size = len(kept.channels)
    text.intermediate_size = len(kept.neurons[0])
    text.num_attention_heads = len(kept.heads[0])
    text.num_key_value_heads = len(kept.key_value_heads[0])
    return pruned


def _copy_weights(model: PreTrainedModel, pruned: PreTrainedModel, kept: Kept) -> None:
    weights = dict(model.named_parameters(remove_duplicate=False))
    head_dim = head_dim_of(pruned.config.get_text_config())
    gain = math.sqrt(model.config.get_text_config().hidden_size / len(kept.channels))
    for name, parameter in pruned.named_parameters():  # a tied one once
        layer = _layer_of(name)
        source = name if layer is None else _renamed(name, layer, kept.layers[layer])
        weight: Tensor = weights[source]
        indices = _indices(kept, layer, head_dim)
        axes = AXES[module_name(name)][: weight.dim()]
        for dim, axis in enumerate(axes):
            if axis is not None:
                weight = weight.index_select(dim, torch.tensor(indices[axis], device=weight.device))
        parameter.copy_(weight if gain == 1.0 else _rescaled(pruned, name, weight, gain))


def _rescaled(pruned: PreTrainedModel, name: str, weight: Tensor, gain: float) -> Tensor:
    """Weights that see the width: gains of norms, and embeddings that are scaled by its root (Gemma)."""
    module = module_name(name)
    scales_embedding = hasattr(pruned.get_input_embeddings(), "embed_scale")
    if module == "embed_tokens":
        return full_precision(weight) * gain if scales_embedding else weight
    if AXES[module] != ("channels",):
        return weight
    if module == "norm" and scales_embedding and pruned.config.get_text_config().tie_word_embeddings:
        return weight  # the head is the embedding, and has the factor already
    offset = 1.0 if type(pruned).__name__.startswith("Gemma") else 0.0  # Gemma's gain is 1 + weight
    return (full_precision(weight) + offset) * gain - offset


def _copy_rope(model: PreTrainedModel, pruned: PreTrainedModel) -> None:
    """Frequencies as the model has them, which may have been cast with its weights."""
    buffers = dict(model.named_buffers())
    for name in [name for name, _ in pruned.named_buffers()]:
        if name.endswith("inv_freq"):
            parent, _, attribute = name.rpartition(".")
            setattr(pruned.get_submodule(parent), attribute, buffers[name].clone())


def _indices(kept: Kept, layer: int | None, head_dim: int) -> Mapping[Axis, Sequence[int]]:
    if layer is None:
        return {"channels": kept.channels}
    return {
        "channels": kept.channels,
        "queries": _dimensions(kept.heads[layer], head_dim),
        "key_values": _dimensions(kept.key_value_heads[layer], head_dim),
        "neurons": kept.neurons[layer],
    }


def _dimensions(heads: Sequence[int], head_dim: int) -> list[int]:
    return [head * head_dim + i for head in heads for i in range(head_dim)]


def _layer_of(name: str) -> int | None:
    """3 for `model.layers.3.mlp.up_proj.weight`; None outside of layers."""
    parts = name.split(".")
    return int(parts[parts.index("layers") + 1]) if "layers" in parts else None


def _renamed(name: str, layer: int, source: int) -> str:
    return name.replace(f"layers.{layer}.", f"layers.{source}.", 1)

"""What a GGUF file says of its model, beside what transformers' reader made of it.

The reader has a table of keys for each architecture and passes over others: a stretched rotary embedding, a head
size, a soft-cap. Here each key of the architecture is carried over to the configuration, found in it, or named in
an error. The same holds for tensors: biases and rotary factors that no parameter takes are not left out.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from collegium.base.errors import DataError
from collegium.models.weight_files import some
from collegium.models.whole import in_order


INSTEAD = "give the folder with the safetensors that the file was made of"

ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    "context_length": ("max_position_embeddings", "n_positions"),
    "block_count": ("num_hidden_layers", "n_layer"),
    "embedding_length": ("hidden_size", "n_embd"),
    "feed_forward_length": ("intermediate_size", "n_inner"),
    "attention.head_count": ("num_attention_heads", "n_head"),
    "attention.head_count_kv": ("num_key_value_heads", "num_kv_heads"),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", "norm_eps"),
    "attention.layer_norm_epsilon": ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"),
    "attention.key_length": ("head_dim",),
    "attention.value_length": ("head_dim",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "expert_count": ("num_experts", "num_local_experts"),
    "expert_used_count": ("num_experts_per_tok",),
    "expert_feed_forward_length": ("moe_intermediate_size",),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
    "vocab_size": ("vocab_size",),
}
"""Keys of an architecture, and the fields of a configuration that say the same."""

HARMLESS = ("tensor_data_layout", "rope.scaling.finetuned", "attention.causal")
"""Keys that change no number of a causal model."""

SCALED_BY_WIDTH = {("gemma2", 46), ("gemma3", 62)}
"""Architectures and numbers of layers (the 27B models) whose scores are divided by the root of width over heads,
which the file does not say and llama.cpp knows."""


@dataclass(frozen=True)
class Metadata:
    """Keys and tensors of a GGUF file.

    Attributes:
        reference: The file's name in errors.
        architecture: Its `general.architecture`.
        keys: Values of the architecture's keys, without its name in front.
        tensors: Names of its tensors.
        rope_factors: What each rotary frequency is divided by; None if the file holds no such tensor.
    """

    reference: str
    architecture: str
    keys: Mapping[str, Any]
    tensors: tuple[str, ...]
    rope_factors: torch.Tensor | None

    @classmethod
    def of(cls, parts: Sequence[Path], reference: str) -> "Metadata":
        """Read them from the parts of a file, the first of which holds the keys; no tensor is read."""
        from gguf import GGUFReader

        readers = [GGUFReader(part) for part in parts]
        tensors = [tensor for reader in readers for tensor in reader.tensors]
        reader = readers[0]
        architecture = str(reader.fields["general.architecture"].contents())
        prefix = f"{architecture}."
        keys = {
            name.removeprefix(prefix): f.contents() for name, f in reader.fields.items() if name.startswith(prefix)
        }
        factors = [tensor.data for tensor in tensors if tensor.name == "rope_freqs.weight"]
        return cls(
            reference=reference,
            architecture=architecture,
            keys=keys,
            tensors=tuple(tensor.name for tensor in tensors),
            rope_factors=torch.from_numpy(factors[0].copy()).double() if factors else None,
        )

    def refused(self, what: str) -> DataError:
        """An error that says what of the file cannot be read right."""
        return DataError(f"{self.reference}: GGUF file {what}; {INSTEAD}")


def complete_config(config: PretrainedConfig, metadata: Metadata) -> PretrainedConfig:
    """Carry over to a configuration, as transformers read it, what the file says and it does not.

    Raises:
        DataError: the file says something for which the configuration has no place.
    """
    for key, value in metadata.keys.items():
        if key in HARMLESS:
            continue
        carry = _SPECIAL.get(key) or (_carry_rope_scaling if key.startswith("rope.scal") else _carry_attribute)
        carry(config, metadata, key, value)
    if metadata.rope_factors is not None:
        _set_rope(config, metadata, _llama3(config, metadata))
    if (metadata.architecture, config.num_hidden_layers) in SCALED_BY_WIDTH:
        config.query_pre_attn_scalar = config.hidden_size // config.num_attention_heads
    _set_biases(config, metadata)
    padding = getattr(config, "pad_token_id", None)
    if isinstance(padding, int) and padding >= config.vocab_size:  # of the family's default, not of the file
        config.pad_token_id = None
    return config


def _carry_attribute(config: PretrainedConfig, metadata: Metadata, key: str, value: Any) -> None:
    if isinstance(value, list):
        if len(set(value)) != 1:
            raise metadata.refused(f"has another `{key}` for each layer, which transformers' reader leaves out")
        value = value[0]
    names = [name for name in ATTRIBUTES.get(key, ()) if hasattr(config, name)][:1]
    if key == "attention.key_length" and not names:
        if value == config.hidden_size // config.num_attention_heads:
            return
        names = ["head_dim"]
    if key == "attention.value_length" and value == metadata.keys.get("attention.key_length"):
        return
    if not names:
        if _is_read(metadata.architecture, key):
            return
        raise metadata.refused(
            f"says `{metadata.architecture}.{key}: {value}`, for which {type(config).__name__} has no place"
        )
    if not _same(getattr(config, names[0], None), value):
        setattr(config, names[0], value)


def _is_read(architecture: str, key: str) -> bool:
    """See whether transformers' reader gives the key a field of its own."""
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    table: Mapping[str, Any] = GGUF_CONFIG_MAPPING
    names = {architecture, architecture.replace("-", "_"), architecture.replace("moe", "_moe")}
    return any(table.get(name, {}).get(key) for name in names)


def _same(found: Any, value: Any) -> bool:
    if isinstance(found, int | float) and isinstance(value, int | float) and not isinstance(found, bool):
        return math.isclose(found, value, rel_tol=1e-6)
    return bool(found == value)


def _carry_window(config: PretrainedConfig, metadata: Metadata, key: str, value: Any) -> None:
    """A sliding window: of Mistral it covers all layers, of Gemma those that its configuration lists."""
    if not value or value == getattr(config, "sliding_window", None):
        return
    if config.model_type not in ("mistral", "gemma2", "gemma3_text", "phi3"):
        raise metadata.refused(
            f"says `{metadata.architecture}.{key}: {value}`, a sliding window for which {type(config).__name__} "
            "has no place"
        )
    config.sliding_window = value


def _carry_rotary_size(config: PretrainedConfig, metadata: Metadata, key: str, value: Any) -> None:
    heads = config.num_attention_heads
    size = (
        metadata.keys.get("attention.key_length")
        or getattr(config, "head_dim", None)
        or config.hidden_size // heads
    )
    if value == size:
        return
    partial = getattr(config, "partial_rotary_factor", None) or config.rope_parameters.get("partial_rotary_factor")
    if partial is None or round(size * partial) != value:
        raise metadata.refused(
            f"turns {value} of the {size} dimensions of a head (`{metadata.architecture}.{key}`), which "
            "transformers' reader leaves out"
        )


def _carry_rotary_base(config: PretrainedConfig, metadata: Metadata, key: str, value: Any) -> None:
    rope = _rope_of(config)
    if not _same(rope.get("rope_theta"), value):
        _set_rope(config, metadata, {**rope, "rope_theta": value})


def _carry_rope_scaling(config: PretrainedConfig, metadata: Metadata, key: str, value: Any) -> None:
    """Stretched positions; all of their keys at once, at the first."""
    keys = metadata.keys
    if key != next(name for name in keys if name.startswith("rope.scal") and name not in HARMLESS):
        return
    known = {f"rope.scaling.{n}" for n in ("type", "factor", "original_context_length", "attn_factor")}
    known |= {"rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow", "rope.scale_linear", *HARMLESS}
    for name in keys:
        if name.startswith("rope.scal") and name not in known:
            raise metadata.refused(
                f"says `{metadata.architecture}.{name}: {keys[name]}`, which transformers' reader leaves out"
            )
    kind = keys.get("rope.scaling.type", "linear")
    factor = keys.get("rope.scaling.factor", keys.get("rope.scale_linear", 1.0))
    if kind == "none" or (kind == "linear" and factor in (0.0, 1.0)):
        return
    if kind == "linear":
        _set_rope(config, metadata, {"rope_type": "linear", "factor": factor})
    elif kind == "yarn" and "rope.scaling.original_context_length" in keys:
        _set_rope(config, metadata, _yarn(keys, factor))
    else:
        raise metadata.refused(
            f"stretches positions by `{metadata.architecture}.rope.scaling.type: {kind}`, which is not read here "
            "(linear, yarn and Llama 3's factors are)"
        )


def _yarn(keys: Mapping[str, Any], factor: float) -> dict[str, Any]:
    rope: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": keys["rope.scaling.original_context_length"],
    }
    if "rope.scaling.attn_factor" in keys:  # of what both give attention by themselves
        rope["attention_factor"] = keys["rope.scaling.attn_factor"] * (0.1 * math.log(factor) + 1.0)
    for name in ("beta_fast", "beta_slow"):
        if f"rope.scaling.yarn_{name}" in keys:
            rope[name] = keys[f"rope.scaling.yarn_{name}"]
    return rope


def _rope_of(config: PretrainedConfig) -> dict[str, Any]:
    """Rotary parameters; those of global attention where others have their own."""
    rope: dict[str, Any] = config.rope_parameters
    inner: dict[str, Any] = rope.get("full_attention", rope)
    return inner


def _set_rope(config: PretrainedConfig, metadata: Metadata, values: Mapping[str, Any]) -> None:
    rope = {"rope_theta": _rope_of(config).get("rope_theta"), **values}
    if "rope_theta" not in values and "partial_rotary_factor" in _rope_of(config):
        rope["partial_rotary_factor"] = _rope_of(config)["partial_rotary_factor"]
    if "full_attention" in config.rope_parameters:
        config.rope_parameters = {**config.rope_parameters, "full_attention": rope}
    else:
        config.rope_parameters = rope


def _llama3(config: PretrainedConfig, metadata: Metadata) -> dict[str, Any]:
    """Llama 3's parameters that give the factors of the file.

    Raises:
        DataError: none do.
    """
    factors = metadata.rope_factors
    assert factors is not None, "called for files that hold some"
    size = 2 * len(factors)
    theta = _rope_of(config)["rope_theta"]
    wavelengths = 2 * math.pi * theta ** (torch.arange(0, size, 2, dtype=torch.float64) / size)
    factor = float(factors.max())
    for original in (8192, *(2**power for power in range(4, 20))):
        for low, high in ((1.0, 4.0), (1.0, 2.0), (1.0, 8.0)):
            share = ((original / wavelengths - low) / (high - low)).clamp(0, 1)
            if torch.allclose(1 / ((1 - share) / factor + share), factors, rtol=1e-4):
                return {
                    "rope_type": "llama3",
                    "factor": factor,
                    "low_freq_factor": low,
                    "high_freq_factor": high,
                    "original_max_position_embeddings": original,
                }
    raise metadata.refused("holds factors of rotary frequencies (rope_freqs.weight) that are not Llama 3's")


def _set_biases(config: PretrainedConfig, metadata: Metadata) -> None:
    """Let the model have the biases that the file holds."""
    names = metadata.tensors
    if hasattr(config, "attention_bias"):
        config.attention_bias = any(name.endswith("attn_q.bias") for name in names)
    if hasattr(config, "mlp_bias"):
        config.mlp_bias = any(name.endswith("ffn_up.bias") for name in names)


_SPECIAL: Mapping[str, Callable[[PretrainedConfig, Metadata, str, Any], None]] = {
    "attention.sliding_window": _carry_window,
    "rope.dimension_count": _carry_rotary_size,
    "rope.freq_base": _carry_rotary_base,
}


def require_every_tensor(model: PreTrainedModel, metadata: Metadata) -> None:
    """Require that every tensor of the file has a place in the model.

    Raises:
        DataError: one has none, and was left out.
    """
    from transformers.integrations.gguf.utils import is_gguf_arch_supported
    from transformers.modeling_gguf_pytorch_utils import (
        TENSOR_PROCESSORS,
        TensorProcessor,
        get_gguf_hf_weights_map,
    )

    if is_gguf_arch_supported(metadata.architecture):  # whose report of the loading names them
        return
    kind: Any = TENSOR_PROCESSORS.get(metadata.architecture, TensorProcessor)
    processor = kind(config=model.config.to_dict())
    places = get_gguf_hf_weights_map(model, processor)
    read = {"rope_freqs.weight"} if metadata.rope_factors is not None else set()
    left = {
        name
        for name in metadata.tensors
        if name not in places and name.removesuffix(".weight") not in places and name not in read
    }
    if left:
        raise metadata.refused(
            f"holds {len(left):,} tensors for which {type(model).__name__} has no place ({some(in_order(left))})"
        )

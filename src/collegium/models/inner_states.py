"""Hidden states, queries, keys and values of any Hugging Face causal language model, read by hooks.

Nothing is asked of the attention kernel: SDPA and Flash keep no attention weights, but what goes into them
passes through the projections. Queries and keys are taken before rotary embedding, which needs positions,
and after a norm of queries and keys where the model has one (Qwen3, Gemma3, OLMo2), since the scores are
made of the normed ones. Only the layers that are asked for are held: queries, keys and values of a layer of
SmolLM2-135M (9 heads of 64, 3 of keys and values) are 1.7 times its hidden states.

Non-reentrant gradient checkpointing is supported: what a hook reads in the first pass has its gradient, and the
hooks are gone when backward computes a layer again. A reentrant one runs without gradients and is refused.

Not read: a soft cap on attention scores (Gemma2), biases by position (ALiBi), sliding windows. Latent attention
(DeepSeek) and linear attention have no such queries and keys and are refused by name.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from collegium.base.errors import DataError
from collegium.models.pretrained import causal_lm_of, reads_documents_alone, trunk_of
from collegium.signals.inner_states import AttentionShape, InnerLayers, InnerStates


Heads = Float[Tensor, "B S H d"]

SEPARATE = ("q_proj", "k_proj", "v_proj")
FUSED: Mapping[str, tuple[str, ...]] = {
    "c_attn": ("gpt2",),  # all queries, then all keys, then all values
    "qkv_proj": ("phi3", "phi4_multimodal"),  # likewise, keys and values narrower
    "query_key_value": ("gpt_neox", "bloom", "falcon", "persimmon"),  # a group's queries, its key, its value
}
"""Projections that give queries, keys and values at once, and the `model_type`s known to lay them out so.

CodeGen's `qkv_proj` and BigCode's `c_attn` have other orders, so a name alone is not trusted.
"""
NORMS = (("q_norm", "k_norm"), ("q_layernorm", "k_layernorm"))


@dataclass(frozen=True)
class Attention:
    """Source of one layer's queries, keys and values."""

    module: nn.Module
    projections: tuple[str, ...]
    shape: AttentionShape
    scale: float

    def heads(self, outputs: Mapping[str, Tensor]) -> tuple[Heads, Heads, Heads]:
        """Queries, keys and values from what the projections gave."""
        queries, keys, values = self._split([outputs[name] for name in self.projections])
        for query_norm, key_norm in NORMS:
            if isinstance(getattr(self.module, query_norm, None), nn.Module):
                queries = _normed(getattr(self.module, query_norm), queries)
                keys = _normed(getattr(self.module, key_norm), keys)
        return queries, keys, values

    def _split(self, outputs: list[Tensor]) -> tuple[Heads, Heads, Heads]:
        shape = self.shape
        grid = outputs[0].shape[:2]
        num = shape.num_heads
        groups = shape.num_key_value_heads
        width = shape.head_dim
        if self.projections == ("query_key_value",):
            grouped = outputs[0].reshape(*grid, groups, num // groups + 2, width)
            return grouped[..., :-2, :].flatten(2, 3), grouped[..., -2, :], grouped[..., -1, :]
        parts = outputs if len(outputs) == 3 else list(outputs[0].split([num * width, *[groups * width] * 2], -1))
        queries, keys, values = (part.reshape(*grid, -1, width) for part in parts)
        return queries, keys, values


def _normed(norm: nn.Module, heads: Heads) -> Heads:
    """A norm over each head, or over all of them together (OLMo2)."""
    weight = cast(Tensor, norm.weight)
    if weight.numel() == heads.shape[2] * heads.shape[3] and weight.ndim == 1:
        return cast(Tensor, norm(heads.flatten(2))).reshape(heads.shape)
    return cast(Tensor, norm(heads))


def decoder_layers(model: PreTrainedModel) -> tuple[nn.Module, str, nn.ModuleList]:
    """The stack of layers of a causal language model, with its parent and its name there.

    Raises:
        DataError: no list of as many modules as the configuration has layers is there.
    """
    num_layers = model.config.get_text_config().num_hidden_layers
    for parent in model.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == num_layers:
                return parent, name, child
    raise DataError(f"{type(model).__name__} has no list of {num_layers} layers")


def attention_of(model: nn.Module, layer: int) -> Attention:
    """Find where queries, keys and values of a layer come from, the first layer being 1.

    Raises:
        DataError: the layer has no attention that is known here.
    """
    causal_lm = causal_lm_of(model)
    config = causal_lm.config.get_text_config()
    block = decoder_layers(causal_lm)[2][layer - 1]
    for module in block.modules():
        children = dict(module.named_children())
        if all(name in children for name in SEPARATE):
            return _attention(module, SEPARATE, causal_lm, layer)
        for name, model_types in FUSED.items():
            if name in children and config.model_type in model_types:
                return _attention(module, (name,), causal_lm, layer)
    kinds = sorted({type(module).__name__ for module in block.modules() if "ttention" in type(module).__name__})
    raise DataError(
        f"{type(causal_lm).__name__} (model_type {config.model_type!r}): layer {layer} has no queries, keys and "
        f"values that are known here ({', '.join(kinds) or 'no attention'}); known are q_proj, k_proj and v_proj, "
        f"and {', '.join(f'{name} of {_and(types)}' for name, types in FUSED.items())}; "
        "use a term on hidden states instead"
    )


def _and(words: tuple[str, ...]) -> str:
    return " and ".join(words)


def _attention(
    module: nn.Module, projections: tuple[str, ...], causal_lm: PreTrainedModel, layer: int
) -> Attention:
    config = causal_lm.config.get_text_config()
    num_heads = int(config.num_attention_heads)
    widths = [_width(getattr(module, name)) for name in projections]
    head_dim = getattr(module, "head_dim", None) or getattr(module, "head_size", None)
    head_dim = int(head_dim or config.hidden_size // num_heads)
    groups = widths[1] // head_dim if len(widths) == 3 else (widths[0] // head_dim - num_heads) // 2
    total = [num_heads * head_dim, groups * head_dim, groups * head_dim]
    norms = {name for name, child in module.named_children() if "norm" in name.lower()}
    known = {name for pair in NORMS for name in pair}
    weightless = [name for name in norms if not isinstance(getattr(getattr(module, name), "weight", None), Tensor)]
    if (
        groups < 1
        or num_heads % groups
        or (widths != total and widths != [sum(total)])
        or norms - known
        or weightless
    ):
        raise DataError(
            f"{type(causal_lm).__name__} (model_type {config.model_type!r}): layer {layer} makes queries, keys "
            f"and values of widths {widths} for {num_heads} heads of {head_dim}, with norms {sorted(norms)}: how "
            "they are laid out is not known here; use a term on hidden states instead"
        )
    scale = getattr(module, "scaling", None)
    if scale is None:
        scale = 1.0 if config.model_type == "gpt_neo" else head_dim**-0.5
    return Attention(module, projections, AttentionShape(num_heads, groups, head_dim), float(scale))


def _width(projection: Any) -> int:
    """Outputs of a Linear, of GPT-2's Conv1D, or of an adapter over either."""
    width = getattr(projection, "out_features", None)
    return int(width if width is not None else projection.nf)


def attention_shape(model: nn.Module) -> AttentionShape:
    """Heads of the last layer. See `attention_of`."""
    layers = decoder_layers(causal_lm_of(model))[2]
    return attention_of(model, len(layers)).shape


@dataclass
class Recording:
    """Inner states that hooks have read in one forward pass."""

    layers: InnerLayers
    depth: int
    attentions: Mapping[int, Attention]
    hidden: dict[int, Tensor] = field(default_factory=dict)
    before_norm: dict[int, Tensor] = field(default_factory=dict)
    projected: dict[int, dict[str, Tensor]] = field(default_factory=dict)

    def states(self) -> InnerStates:
        """The inner states that were asked for; call after the forward pass."""
        queries = {}
        keys = {}
        values = {}
        for layer, attention in self.attentions.items():
            heads = attention.heads(self.projected[layer])
            queries[layer], keys[layer], values[layer] = (tensor.transpose(1, 2) for tensor in heads)
        scales = {layer: attention.scale for layer, attention in self.attentions.items()}
        return InnerStates(self.hidden, self.before_norm, queries, keys, values, scales)


@contextlib.contextmanager
def recording(model: nn.Module, layers: InnerLayers) -> Iterator[Recording]:
    """Read these layers' inner states in the forward pass of `trunk_of(model)` that runs inside.

    Args:
        model: A causal language model, or a PEFT model over it.
        layers: Layers to read; hidden states of layer 0 are the embeddings'.

    Raises:
        DataError: a layer is not there or has no attention that is known, or the model recomputes activations
            by reentrant checkpointing.
    """
    if reads_documents_alone(model):
        raise DataError(
            f"{type(causal_lm_of(model)).__name__} reads each document of a block in a row of its own, so its "
            "inner states cannot be compared; set objective.feature_weight to 0, or use another model"
        )
    blocks = decoder_layers(causal_lm_of(model))[2]
    depth = len(blocks)
    if wrong := [i for i in layers.hidden | {i - 1 for i in layers.attention} if not 0 <= i <= depth]:
        raise DataError(f"inner states of layer {wrong[0]} are asked for, but the model has {depth} layers")
    _refuse_reentrant(blocks, type(causal_lm_of(model)).__name__)
    record = Recording(layers, depth, {i: attention_of(model, i) for i in sorted(layers.attention)})
    handles = _hidden_hooks(record, model, blocks)
    for layer, attention in record.attentions.items():
        record.projected[layer] = {}
        for name in attention.projections:
            store = _storing(record.projected[layer], name)
            handles.append(getattr(attention.module, name).register_forward_hook(store))
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()


def _hidden_hooks(record: Recording, model: nn.Module, blocks: nn.ModuleList) -> list[RemovableHandle]:
    handles = []
    for layer in record.layers.hidden:
        if layer == 0:
            handles.append(blocks[0].register_forward_pre_hook(_storing_input(record.hidden), with_kwargs=True))
        elif layer < record.depth:
            handles.append(blocks[layer - 1].register_forward_hook(_storing(record.hidden, layer)))
        else:
            handles.append(blocks[-1].register_forward_hook(_storing(record.before_norm, layer)))
            handles.append(trunk_of(model).register_forward_hook(_storing(record.hidden, layer)))
    return handles


def _storing(store: dict[Any, Tensor], key: int | str) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        store[key] = output if isinstance(output, Tensor) else output[0]

    return hook


def _storing_input(store: dict[int, Tensor]) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        store[0] = args[0] if args else kwargs["hidden_states"]

    return hook


def _refuse_reentrant(blocks: nn.ModuleList, name: str) -> None:
    """Inside a reentrant checkpoint nothing has a gradient, so a term on it would silently teach nothing."""
    for block in blocks:
        if not (getattr(block, "gradient_checkpointing", False) and block.training and torch.is_grad_enabled()):
            continue
        function = getattr(block, "_gradient_checkpointing_func", None)
        if getattr(function, "keywords", {}).get("use_reentrant", False):
            raise DataError(
                f"{name} recomputes activations with use_reentrant=True, under which inner states have no "
                "gradient; set use_reentrant to False in gradient_checkpointing_kwargs"
            )

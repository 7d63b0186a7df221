"""Settings of a configuration that speak of layers one by one, changed when layers go.

By meaning, never by length: four EOS tokens of a model with four layers are no setting of layers. Tables say which
field means what; whether they were enough, `as_configured` sees in the result.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from transformers import PretrainedConfig

from collegium.base.errors import RecipeError


PER_LAYER = (
    "layer_types",
    "mlp_layer_types",
    "layers_block_type",
    "block_types",
    "attention_layers",
    "no_rope_layers",
    "indexer_types",
    "layer_rope_theta",
    "swiglu_limits",
    "swiglu_limits_shared",
    "activation_sparsity_pattern",
    "hybrid_layer_pattern",
    "moe_layer_freq",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "num_query_heads",
    "num_kv_heads",
    "ffn_multipliers",
)
"""Lists with an entry for each layer; what is a number in most families is only meant where it is a list."""

INDICES = (
    "mlp_only_layers",
    "moe_layers",
    "dense_layers",
    "full_attn_idxs",
    "attn_layer_indices",
    "global_attn_layers",
    "hybrid_layer_ids",
    "cross_attention_layers",
    "moe_layers_enum",
)
"""Lists of the numbers of layers."""

FIRST = (
    "first_k_dense_replace",
    "num_dense_layers",
    "n_dense_layers",
    "first_num_dense_layers",
    "max_window_layers",
    "moe_layer_start_index",
)
"""Numbers of layers, counted from the first, that are of another kind."""

LAST = ("moe_layer_end_index",)
"""The number of a layer that is the last of a kind."""

PERIODS: Mapping[str, str | None] = {
    "decoder_sparse_step": None,
    "moe_layer_freq": None,
    "moe_layer_interval": None,
    "attn_layer_period": None,
    "expert_layer_period": None,
    "interleave_moe_layer_step": "moe_layers",
    "no_rope_layer_interval": "no_rope_layers",
    "full_attention_interval": "layer_types",
    "sliding_window_pattern": "layer_types",
    "_sliding_window_pattern": "layer_types",
}
"""Every how many layers one is of another kind, and the list that says it for each layer where there is one."""

REFUSED: Mapping[str, str] = {
    "num_kv_shared_layers": "its last layers read keys and values of earlier ones",
    "scale_attn_by_inverse_layer_idx": "it divides scores by the number of the layer",
    "layer_replication": "it uses layers more than once",
}
"""Settings with which layers cannot be taken out; those that are zero, false or absent do no harm."""


def keep_in_config(config: PretrainedConfig, kept: Sequence[int], *, key: str = "student.kind") -> None:
    """Leave only these layers in a configuration.

    Args:
        config: Of the text model, with all its layers.
        kept: Numbers of the layers that stay, increasing.
        key: The recipe's key in errors.

    Raises:
        RecipeError: it holds a setting with which they cannot be taken out.
    """
    total = int(config.num_hidden_layers)
    if list(kept) == list(range(total)):
        return
    for name, reason in REFUSED.items():
        if getattr(config, name, None):
            raise RecipeError(
                f"{key}: layers of {type(config).__name__} cannot be taken out, since {reason} (`{name}` in "
                "config.json); start from the whole model, or from another one"
            )
    _keep_experts(config, kept)
    for name, place in PERIODS.items():
        period = getattr(config, name, None)
        listed = place is not None and isinstance(getattr(config, place, None), list)
        if isinstance(period, int) and period > 1 and not listed and not _keeps_period(kept, period):
            raise RecipeError(
                f"{key}: `{name}: {period}` in config.json makes one of every {period} layers another kind, which "
                f"the layers {list(kept)} do not follow; keep layers that keep their place in the period, such as "
                f"the first {period}"
            )
    for name in PER_LAYER:
        value = _own(config, name)
        if isinstance(value, list | tuple):
            if len(value) < total:
                raise RecipeError(
                    f"{key}: `{name}` in config.json has {len(value)} entries for {total} layers; correct it first"
                )
            setattr(config, name, [value[i] for i in kept])
    _tell_attention_types(config)
    for name in INDICES:
        value = _own(config, name)
        if isinstance(value, list | tuple):
            setattr(config, name, [kept.index(i) for i in value if i in kept])
    for name in FIRST:
        value = getattr(config, name, None)
        if isinstance(value, int) and not isinstance(value, bool):
            setattr(config, name, sum(i < value for i in kept))
    for name in LAST:
        value = getattr(config, name, None)
        if isinstance(value, int) and value >= 0:
            setattr(config, name, sum(i <= value for i in kept) - 1)
    own = _take_own_settings(config)
    config.num_hidden_layers = len(kept)
    if own is not None:
        config.per_layer_config = {kept.index(i): settings for i, settings in own.items() if i in kept}


def _take_own_settings(config: PretrainedConfig) -> dict[int, dict[str, Any]] | None:
    """Settings of single layers by their numbers, taken out of the configuration; None if it holds no such."""
    own = getattr(vars(config).get("_heterogeneity_spec"), "per_layer_overrides", None)
    if own is None:
        return None
    config.per_layer_config = None
    return dict(own)


def _tell_attention_types(config: PretrainedConfig) -> None:
    """Let GPT-Neo's pairs say the same as its list of layers, which is made from them."""
    layers = _own(config, "attention_layers")
    if isinstance(_own(config, "attention_types"), list) and isinstance(layers, list):
        config.attention_types = [[list(layers), 1]]


def _own(config: PretrainedConfig, name: str) -> Any:
    """A field that is stored; others follow from those."""
    return vars(config).get(name)


def _keep_experts(config: PretrainedConfig, kept: Sequence[int]) -> None:
    """Say of Qwen's layers one by one which have no experts, where a step says it of every second or third."""
    step = getattr(config, "decoder_sparse_step", None)
    dense = getattr(config, "mlp_only_layers", None)
    if not isinstance(step, int) or step <= 1 or not isinstance(dense, list | tuple):
        return
    total = range(int(config.num_hidden_layers))
    config.mlp_only_layers = [i for i in total if i in dense or (i + 1) % step]
    config.decoder_sparse_step = 1


def _keeps_period(kept: Sequence[int], period: int) -> bool:
    """See whether each layer keeps its place in the period."""
    return all(old % period == new % period for new, old in enumerate(kept))


def resize_layers(config: PretrainedConfig, num_layers: int, *, given: Collection[str] = ()) -> None:
    """Let a configuration have another number of layers: the first ones, or more of the same pattern.

    Args:
        config: Of the text model.
        num_layers: The number to have.
        given: Fields that are set otherwise.

    Raises:
        RecipeError: its lists have no pattern to go on with, or layers cannot be taken out.
    """
    total = int(config.num_hidden_layers)
    if 1 <= num_layers <= total:
        keep_in_config(config, range(num_layers), key="student.overrides.num_hidden_layers")
        return
    for name in PER_LAYER:
        value = _own(config, name)
        if isinstance(value, list | tuple) and name not in given:
            period = _period_of(value)
            if period is None:
                raise RecipeError(
                    f"student.overrides.num_hidden_layers: `{name}` in config.json has no pattern that "
                    f"{num_layers} layers could go on with; give `{name}` in student.overrides too, as a list"
                )
            setattr(config, name, [value[i % period] for i in range(num_layers)])
    _tell_attention_types(config)
    if _take_own_settings(config) is not None:
        raise RecipeError(
            "student.overrides.num_hidden_layers: config.json has settings of single layers (`per_layer_config`), "
            f"so it cannot have more than {total} layers; give a smaller number, or another model"
        )
    config.num_hidden_layers = num_layers


def _period_of(values: Sequence[Any]) -> int | None:
    """Length of the shortest piece that the values repeat at least once; None if they do not."""
    for period in range(1, len(values) // 2 + 1):
        if all(values[i] == values[i - period] for i in range(period, len(values))):
            return period
    return None

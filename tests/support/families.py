"""Tiny models of every family that transformers calls a causal language model, made from configurations alone."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING


NUM_LAYERS = 4

SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embed_dim", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("embedding_size", "input_embedding_size"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "n_inner", "d_inner"), 48),
    **dict.fromkeys(("decoder_ffn_dim", "encoder_ffn_dim", "intermediate_size_mlp"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), NUM_LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"), 128),
    **dict.fromkeys(("initializer_range", "init_std"), 0.3),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 16),
    "vocab_size": 96,
    "encoder_layers": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "num_experts_per_tok": 2,
    "sliding_window": 16,
    "is_decoder": True,
}
"""Fields by the names that families give them; those that a configuration has are set."""

LATENT = {
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "n_group": 1,
    "topk_group": 1,
    "head_dim": None,
    "num_key_value_heads": 4,
}
"""Fields of latent attention, as in DeepSeek's models."""

STATES = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}

OWN: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"n_group": 1, "topk_group": 1},
    "bamba": STATES,
    "beam": {"n_group": 1, "topk_group": 1},
    "codegen": {"rotary_dim": 4},
    "gemma3n_text": {
        "num_kv_shared_layers": 0,
        "activation_sparsity_pattern": [0.0] * NUM_LAYERS,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "vocab_size_per_layer_input": 96,
        "hidden_size_per_layer_input": 8,
        "laurel_rank": 4,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 16},
    "gptj": {"rotary_dim": 4},
    "granitemoehybrid": STATES,
    "kimi_linear": {"num_experts_per_token": 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    "longcat_flash": {"head_dim": 8},
    "mamba2": {"num_heads": 8, "head_dim": 8, "expand": 2, "n_groups": 1, "state_size": 8},
    "reformer": {"axial_pos_embds": False},
    "dots1": {"n_shared_experts": 1, "layer_types": None},
    "whisper": {"max_target_positions": 128, "max_source_positions": 64},
    "zaya": {"num_experts_per_tok": 1},
}
"""Fields of single families, in place of the above; None leaves a field as it is by default."""


def tiny_config(family: str) -> PretrainedConfig:
    """A configuration of a family, with the smallest sizes that show all of its kinds of layers."""
    return _small(CONFIG_MAPPING[family], OWN.get(family, {}))


def _small(kind: type[PretrainedConfig], own: dict[str, Any]) -> PretrainedConfig:
    default = kind()
    fields = vars(default)
    sizes = SIZES | (LATENT if "kv_lora_rank" in fields else {}) | own
    given = {name: value for name, value in sizes.items() if (name in fields or name in own) and value is not None}
    for name in ("layer_types", "mlp_layer_types", "layers_block_type"):
        if isinstance(fields.get(name), list) and name not in own:
            given[name] = fields[name][:NUM_LAYERS]
    for name, inner in kind.sub_configs.items():
        if isinstance(inner, type) and isinstance(getattr(default, name, None), PretrainedConfig):
            given[name] = _small(type(getattr(default, name)), own.get(name, {})).to_dict()
    return kind(**given)


def tiny_model(family: str, *, seed: int = 0) -> PreTrainedModel:
    """A model of that configuration, in float32."""
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(tiny_config(family))
    return model.float().eval()

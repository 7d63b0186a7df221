"""Settings of layers follow the layers that stay, by meaning; what cannot follow is refused by name."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from collegium.base.errors import DataError, RecipeError
from collegium.models.layer_settings import keep_in_config, resize_layers
from collegium.models.pretrained import load_model, model_from_config
from collegium.models.student import keep_layers


TOKENS = torch.arange(40)[None] % 90
SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": [2, 3, 4, 5],
    "initializer_range": 0.3,
    "max_position_embeddings": 64,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}

FAMILIES = {
    "qwen2 with windows": lambda: Qwen2ForCausalLM(
        Qwen2Config(**SMALL, use_sliding_window=True, sliding_window=4, max_window_layers=2)
    ),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SMALL, head_dim=8)),
    "gemma3": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(
            **SMALL,
            head_dim=8,
            sliding_window=4,
            layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        )
    ),
    "smollm3": lambda: SmolLM3ForCausalLM(SmolLM3Config(**SMALL, no_rope_layers=[1, 0, 1, 1])),
    "qwen3 moe, first dense": lambda: Qwen3MoeForCausalLM(
        Qwen3MoeConfig(**SMALL, **EXPERTS, head_dim=8, mlp_only_layers=[0])
    ),
    "qwen3 moe, every second": lambda: Qwen3MoeForCausalLM(
        Qwen3MoeConfig(**SMALL, **EXPERTS, head_dim=8, decoder_sparse_step=2)
    ),
    "qwen2 moe": lambda: Qwen2MoeForCausalLM(
        Qwen2MoeConfig(**SMALL, **EXPERTS, shared_expert_intermediate_size=16, mlp_only_layers=[2])
    ),
    "deepseek": lambda: DeepseekV3ForCausalLM(
        DeepseekV3Config(
            **SMALL | {"num_key_value_heads": 4},
            first_k_dense_replace=2,
            n_routed_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=16,
            n_group=1,
            topk_group=1,
            q_lora_rank=8,
            kv_lora_rank=8,
            qk_nope_head_dim=8,
            qk_rope_head_dim=8,
            v_head_dim=8,
        )
    ),
}


@pytest.mark.parametrize("kept", [[0, 1], [1, 2, 3], [0, 3], [2]])
@pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES)
@torch.no_grad()
def test_a_model_of_some_layers_is_the_same_when_it_is_read_back(make, kept, tmp_path):
    torch.manual_seed(0)
    student = keep_layers(make().eval(), kept)
    assert student.config.eos_token_id == [2, 3, 4, 5]
    student.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path), dtype=torch.float32)
    assert torch.equal(loaded(TOKENS).logits, student(TOKENS).logits)
    assert loaded.config.num_hidden_layers == len(kept)


@pytest.mark.parametrize("number", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES)
def test_a_configuration_makes_a_model_of_another_number_of_layers(make, number, tmp_path):
    make().config.save_pretrained(tmp_path)
    if number == 8 and make in (FAMILIES["smollm3"], FAMILIES["qwen2 with windows"]):
        with pytest.raises(RecipeError, match=r"overrides.num_hidden_layers: `\w+` in config.json has no pattern"):
            _made(tmp_path, number)
        lists = {"layer_types": ["full_attention"] * 8}
        if make is FAMILIES["smollm3"]:
            lists["no_rope_layers"] = [1, 1, 1, 0] * 2
    else:
        lists = {}
    model = _made(tmp_path, number, **lists)
    assert len(model.model.layers) == number
    assert model.config.eos_token_id == [2, 3, 4, 5]
    model.save_pretrained(tmp_path / "made")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "made").config.num_hidden_layers == number


def _made(folder, number, **lists):
    overrides = {"num_hidden_layers": number, **lists}
    return model_from_config(str(folder), overrides=overrides, dtype=torch.float32, seed=0)


def test_what_only_has_the_length_of_a_list_of_layers_stays():
    config = LlamaConfig(**SMALL, something=[1, 2, 3, 4])
    keep_in_config(config, [0, 2])
    assert config.something == [1, 2, 3, 4] and config.eos_token_id == [2, 3, 4, 5]


def test_numbers_of_layers_follow():
    config = LlamaConfig(
        **SMALL | {"num_hidden_layers": 6},
        mlp_only_layers=[0, 3, 5],
        first_k_dense_replace=3,
        moe_layer_start_index=2,
        moe_layer_end_index=4,
        moe_layer_freq=[0, 1, 1, 0, 1, 1],
    )
    keep_in_config(config, [0, 2, 4, 5])
    assert config.mlp_only_layers == [0, 3]
    assert config.first_k_dense_replace == 2
    assert (config.moe_layer_start_index, config.moe_layer_end_index) == (1, 2)
    assert config.moe_layer_freq == [0, 1, 1, 1]


@pytest.mark.parametrize(
    ("fields", "kept", "reason"),
    [
        ({"moe_layer_freq": 2}, [1, 2], "`moe_layer_freq: 2` .*one of every 2 layers"),
        ({"attn_layer_period": 4}, [0, 1, 3], "attn_layer_period"),
        ({"num_kv_shared_layers": 2}, [0, 1], "its last layers read keys and values of earlier ones"),
        ({"layer_types": ["full_attention"] * 4, "mlp_layer_types": ["dense"]}, [0, 1], "1 entries for 4 layers"),
    ],
)
def test_what_cannot_follow_is_refused(fields, kept, reason):
    config = LlamaConfig(**SMALL)
    for name, value in fields.items():
        setattr(config, name, value)
    with pytest.raises(RecipeError, match=reason):
        keep_in_config(config, kept)


def test_layers_that_keep_their_place_in_a_period():
    config = LlamaConfig(**SMALL, moe_layer_freq=2)
    keep_in_config(config, [0, 1])
    resize_layers(config, 4)
    assert config.num_hidden_layers == 4


def test_a_model_that_knows_the_number_of_its_layers_is_refused():
    config = GPT2Config(n_layer=4, n_embd=16, n_head=2, vocab_size=96, scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(RecipeError, match="divides scores by the number of the layer"):
        keep_layers(GPT2LMHeadModel(config), [0, 2])


def test_a_setting_that_no_table_names_is_found_in_the_result():
    model = Qwen3ForCausalLM(Qwen3Config(**SMALL, head_dim=8))
    model.model.layers[2].self_attn.scaling = 3.0
    with pytest.raises(RecipeError, match=r"layer 1: self_attn.scaling is 3.0 here"):
        keep_layers(model, [0, 2])


def test_an_unknown_field_is_refused(tmp_path):
    LlamaConfig(**SMALL).save_pretrained(tmp_path)
    with pytest.raises(DataError, match="has no field 'num_layer'"):
        model_from_config(str(tmp_path), overrides={"num_layer": 2}, dtype=torch.float32, seed=0)

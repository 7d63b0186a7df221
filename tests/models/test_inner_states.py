"""What hooks read of models: against the models' own hidden states and attention weights."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from transformers.models import (
    bloom,
    codegen,
    falcon,
    gemma3,
    gpt2,
    gpt_neo,
    gpt_neox,
    llama,
    olmo2,
    opt,
    phi3,
    qwen3,
)

from collegium.base.errors import DataError
from collegium.models.inner_states import attention_of, attention_shape, decoder_layers, recording
from collegium.models.pretrained import trunk_of
from collegium.signals.inner_states import InnerLayers
from tests.support.pico import pico_llama


SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {**SIZES, "intermediate_size": 48, "max_position_embeddings": 64, "pad_token_id": 0}
GPT2 = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}

CONFIGS = {
    "llama": llama.LlamaConfig(**LLAMA, num_key_value_heads=4),
    "llama-grouped": llama.LlamaConfig(**LLAMA, num_key_value_heads=2),
    "qwen3": qwen3.Qwen3Config(**LLAMA, num_key_value_heads=2, head_dim=12),
    "gemma3": gemma3.Gemma3TextConfig(**LLAMA, num_key_value_heads=2, head_dim=8, query_pre_attn_scalar=5),
    "olmo2": olmo2.Olmo2Config(**LLAMA, num_key_value_heads=2),
    "phi3": phi3.Phi3Config(**LLAMA, num_key_value_heads=2),
    "gpt2": gpt2.GPT2Config(**GPT2),
    "gpt2-scaled": gpt2.GPT2Config(**GPT2, scale_attn_by_inverse_layer_idx=True),
    "gpt_neox": gpt_neox.GPTNeoXConfig(**SIZES, intermediate_size=48),
    "gpt_neo": gpt_neo.GPTNeoConfig(
        vocab_size=64, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global"], 2]]
    ),
    "opt": opt.OPTConfig(**SIZES, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=64),
    "falcon": falcon.FalconConfig(**SIZES, multi_query=True, alibi=False),
    "falcon-grouped": falcon.FalconConfig(**SIZES, new_decoder_architecture=True, num_kv_heads=2, alibi=False),
}
ALL = InnerLayers(frozenset({0, 1, 2}), frozenset({1, 2}))


def model_of(name, **options):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name], **options).eval()
    for parameter in model.parameters():  # norms and biases too, so that leaving one out shows
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return model


def recorded(model, layers=ALL, *, positions=None):
    tokens = torch.arange(18).reshape(2, 9) * 7 % 60
    positions = torch.zeros_like(tokens) if positions is None else positions
    with recording(model, layers) as record:
        output = trunk_of(model)(
            tokens, position_ids=positions, use_cache=False, output_hidden_states=True, output_attentions=True
        )
    return record.states(), output


@pytest.mark.parametrize("name", CONFIGS)
def test_scores_give_the_models_own_attention(name):
    """At position 0 rotary embedding is the identity; ones that are all 0 make no new document here."""
    model = model_of(name, attn_implementation="eager")
    tokens = torch.arange(18).reshape(2, 9) * 7 % 60
    with recording(model, ALL) as record:
        output = trunk_of(model)(
            tokens,
            position_ids=torch.zeros_like(tokens),
            attention_mask=torch.ones_like(tokens),
            use_cache=False,
            output_hidden_states=True,
            output_attentions=True,
        )
    states = record.states()
    shape = attention_shape(model)
    for layer in (1, 2):
        q, k, v = states.queries[layer], states.keys[layer], states.values[layer]
        assert q.shape == (2, shape.num_heads, 9, shape.head_dim)
        assert k.shape == v.shape == (2, shape.num_key_value_heads, 9, shape.head_dim)
        k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
        scores = q @ k.transpose(-1, -2) * states.scales[layer]
        scores = scores.masked_fill(torch.ones(9, 9).triu(1).bool(), -torch.inf)
        torch.testing.assert_close(scores.softmax(-1), output.attentions[layer - 1], rtol=1e-5, atol=1e-6)
    for layer in range(3):
        assert torch.equal(states.hidden_states[layer], output.hidden_states[layer])


@pytest.mark.parametrize("name", ["llama-grouped", "gpt2", "phi3", "gpt_neox", "falcon-grouped"])
def test_values_are_what_attention_mixes(name):
    """The output projection's input is the attention weights' mean of the values."""
    model = model_of(name, attn_implementation="eager")
    attention = attention_of(model, 1).module
    out = next(c for n, c in attention.named_children() if n in ("o_proj", "c_proj", "dense"))
    seen = []
    handle = out.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    states, output = recorded(model, InnerLayers(frozenset(), frozenset({1})))
    handle.remove()
    weights = output.attentions[0]
    values = states.values[1].repeat_interleave(weights.shape[1] // states.values[1].shape[1], 1)
    mixed = (weights @ values).transpose(1, 2).flatten(2)
    torch.testing.assert_close(mixed, seen[0], rtol=1e-5, atol=1e-6)


def test_bloom_is_read_in_its_order():
    config = bloom.BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4)
    model = AutoModelForCausalLM.from_config(config).eval()
    states, _ = recorded_without_positions(model)
    attention = attention_of(model, 1).module
    hidden = decoder_layers(model)[2][0].input_layernorm(states.hidden_states[0])
    expected = attention._reshape(attention.query_key_value(hidden))
    for found, tensor in zip((states.queries, states.keys, states.values), expected, strict=True):
        torch.testing.assert_close(found[1], tensor)


def recorded_without_positions(model):
    with recording(model, ALL) as record:
        output = trunk_of(model)(torch.arange(18).reshape(2, 9), use_cache=False)
    return record.states(), output


def test_before_norm_is_the_residual_stream():
    model = model_of("llama")
    states, output = recorded(model)
    assert list(states.before_norm) == [2]
    assert torch.equal(model.model.norm(states.before_norm[2]), output.last_hidden_state)


def test_only_what_is_asked_for_is_held():
    states, _ = recorded(pico_llama(0, layers=3), InnerLayers(frozenset({1}), frozenset({3})))
    assert list(states.hidden_states) == [1] and not states.before_norm
    assert list(states.queries) == list(states.keys) == list(states.values) == [3]


def test_hooks_are_gone_afterwards():
    model = pico_llama(0)
    with pytest.raises(RuntimeError, match="stop"), recording(model, ALL):
        raise RuntimeError("stop")
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())


def gradients(model, layers=ALL):
    model.train()
    states, _ = recorded(model, layers, positions=torch.arange(9).expand(2, 9))
    tensors = [*states.hidden_states.values(), *states.queries.values(), *states.keys.values()]
    sum((tensor.float() ** 2).sum() for tensor in tensors).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ["qwen3", "gpt2"])
def test_gradients_are_the_same_when_activations_are_recomputed(name):
    if name == "gpt2":
        CONFIGS[name].resid_pdrop = CONFIGS[name].embd_pdrop = CONFIGS[name].attn_pdrop = 0.0
    expected = gradients(model_of(name))
    model = model_of(name)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    found = gradients(model)
    assert found.keys() == expected.keys() and any("c_attn" in n or "k_norm" in n for n in found)
    for parameter, gradient in expected.items():
        torch.testing.assert_close(found[parameter], gradient)


def test_reentrant_checkpointing_is_refused():
    model = pico_llama(0)
    model.gradient_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(DataError, match="use_reentrant=True, under which inner states have no gradient"):
        gradients(model)


@pytest.mark.parametrize("name", ["llama-grouped", "gpt2", "phi3"])
def test_adapters_are_part_of_what_is_read(name):
    model = model_of(name)
    fused = {"gpt2": "c_attn", "phi3": "qkv_proj"}
    tuned = get_peft_model(
        model, LoraConfig(target_modules=[fused.get(name, "q_proj")], init_lora_weights=False, r=2)
    )
    states, _ = recorded(tuned)
    with tuned.disable_adapter():
        plain, _ = recorded(tuned)
    assert attention_shape(tuned) == attention_shape(model)
    assert not torch.allclose(states.queries[1], plain.queries[1])
    assert torch.equal(states.hidden_states[0], plain.hidden_states[0])


def test_an_attention_that_is_not_known_is_named():
    config = codegen.CodeGenConfig(vocab_size=64, n_embd=32, n_layer=1, n_head=4, rotary_dim=4)
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(DataError, match=r"CodeGenForCausalLM \(model_type 'codegen'\): layer 1 has no queries"):
        attention_shape(model)


def test_a_layer_that_is_not_there():
    with (
        pytest.raises(DataError, match="layer 5 are asked for, but the model has 2 layers"),
        recording(pico_llama(0), InnerLayers(frozenset({5}))),
    ):
        pass

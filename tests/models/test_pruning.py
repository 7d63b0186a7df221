"""Models cut out of a larger one: what is measured, what is chosen, and that the cut is exact."""

import copy
import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from collegium.base.errors import RecipeError
from collegium.losses.importance import block_influence, block_means, head_importance, top_heads, top_indices
from collegium.models.pruning.calibration import measure_importance
from collegium.models.pruning.choice import Kept, choose_kept
from collegium.models.pruning.layout import ARCHITECTURES, Sizes, target_sizes
from collegium.models.pruning.surgery import prune
from collegium.signals.contracts import Batch
from tests.support.pico import pico_llama


SIZES = {
    "vocab_size": 64,
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 8,
    "initializer_range": 0.3,
    "rms_norm_eps": 1e-12,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TARGET = {"hidden_size": 16, "intermediate_size": 12, "num_heads": 2, "num_key_value_heads": 2, "num_layers": 2}
CONFIGS = {
    "llama": LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True, tie_word_embeddings=False),
    "tied": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "mistral": MistralConfig(**SIZES, sliding_window=4),
    "qwen2": Qwen2Config(**{**SIZES, "head_dim": 4}),
    "qwen3": Qwen3Config(**SIZES),
    "smollm3": SmolLM3Config(**SIZES, no_rope_layer_interval=2),
    "gemma": GemmaConfig(**SIZES),
    "gemma2": Gemma2Config(**SIZES, sliding_window=4),
    "gemma3": Gemma3TextConfig(**SIZES, sliding_window=4, sliding_window_pattern=2),
}


def model_of(name, dtype=torch.float32):
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[name]))
    for parameter in model.parameters():  # biases and norms start at constants
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.to(dtype).eval()


def batch_of(size=4, length=12, *, seed=0, vocab_size=64):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, vocab_size, (size, length), generator=generator)
    mask = torch.ones(size, length, dtype=torch.bool)
    mask[1, 9:] = False
    positions = torch.arange(length).repeat(size, 1)
    positions[:, 5:] -= 5
    positions[1, 9:] = torch.arange(length - 9)
    labels = ids.masked_fill(~mask | (positions == 0), -100)
    return Batch(ids, mask, labels, positions, torch.arange(size))


def split(batch):
    rows = range(len(batch.input_ids))
    names = [
        field.name for field in dataclasses.fields(Batch) if isinstance(getattr(batch, field.name), torch.Tensor)
    ]
    return [Batch(**{name: getattr(batch, name)[i : i + 1] for name in names}) for i in rows]


def logits_of(model, batch):
    with torch.no_grad():
        return model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits


def everything(sizes):
    return Kept(
        layers=list(range(sizes.num_layers)),
        channels=list(range(sizes.hidden_size)),
        key_value_heads=[list(range(sizes.num_key_value_heads))] * sizes.num_layers,
        heads=[list(range(sizes.num_heads))] * sizes.num_layers,
        neurons=[list(range(sizes.intermediate_size))] * sizes.num_layers,
    )


# ---- scores


def test_block_means_are_those_of_the_text():
    torch.manual_seed(0)
    activations = torch.randn(2, 4, 3, dtype=torch.float64)
    mask = torch.tensor([[True, True, True, False], [False, False, False, False]])
    means = block_means(activations, mask)
    for channel in range(3):
        expected = sum(abs(float(activations[0, s, channel])) for s in range(3)) / 3
        assert float(means[0, channel]) == pytest.approx(expected, abs=1e-12)
    assert torch.equal(means[1], torch.zeros(3, dtype=torch.float64))


def test_block_influence_is_one_minus_the_cosine():
    torch.manual_seed(0)
    before, after = torch.randn(2, 2, 3, 5, dtype=torch.float64)
    mask = torch.tensor([[True, False, True], [True, True, True]])
    expected = sum(
        1 - float(x @ y) / (float(x @ x) * float(y @ y)) ** 0.5
        for x, y in zip(before[mask], after[mask], strict=True)
    )
    assert float(block_influence(before, after, mask)) == pytest.approx(expected, abs=1e-10)
    assert float(block_influence(before, 3 * before, mask)) == pytest.approx(0, abs=1e-10)


def test_head_importance_is_the_norm_over_its_dimensions():
    scores = torch.tensor([3.0, 4.0, 0.0, 1.0])
    assert head_importance(scores, 2).tolist() == [5.0, 1.0]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.integers(1, 12))
def test_top_indices(values, count):
    count = min(count, len(values))
    kept = top_indices(torch.tensor(values, dtype=torch.float64), count).tolist()
    ranked = sorted(range(len(values)), key=lambda i: (-values[i], i))
    assert kept == sorted(ranked[:count])


def test_heads_are_chosen_group_by_group():
    scores = torch.tensor([1.0, 9, 5, 2, 3, 4, 0, 8, 7.0])  # of three groups of three
    groups, heads = top_heads(scores, num_groups=3, kept_groups=2, kept_heads=4)
    assert (groups.tolist(), heads.tolist()) == ([0, 2], [1, 2, 7, 8])
    groups, heads = top_heads(scores, num_groups=3, kept_groups=3, kept_heads=3)
    assert (groups.tolist(), heads.tolist()) == ([0, 1, 2], [1, 5, 7])


def test_importance_is_that_of_the_official_formula():
    """mean over sequence, squares summed over batch, root; read from the activations of a plain forward pass."""
    model, batch = model_of("llama", torch.float64), batch_of()
    seen = {}

    def keep(name):
        return lambda module, arguments, output: seen.update({name: (arguments[0], output)})

    for i, layer in enumerate(model.model.layers):
        layer.self_attn.o_proj.register_forward_hook(keep(f"heads{i}"))
        layer.mlp.down_proj.register_forward_hook(keep(f"neurons{i}"))
        layer.input_layernorm.register_forward_hook(keep(f"attention norm{i}"))
        layer.post_attention_layernorm.register_forward_hook(keep(f"mlp norm{i}"))
        layer.register_forward_hook(keep(f"layer{i}"))
    logits_of(model, batch)

    def score(activations):
        rows = [row[mask].abs().mean(0) for row, mask in zip(activations, batch.attention_mask, strict=True)]
        return torch.stack(rows).pow(2).sum(0).sqrt()

    importance = measure_importance(model, [batch])
    channels = 0
    for i in range(3):
        heads = score(seen[f"heads{i}"][0]).view(6, 8).norm(dim=1)
        torch.testing.assert_close(importance.heads[i], heads, rtol=1e-10, atol=0)
        torch.testing.assert_close(importance.neurons[i], score(seen[f"neurons{i}"][0]), rtol=1e-10, atol=0)
        channels = channels + score(seen[f"attention norm{i}"][1]) + score(seen[f"mlp norm{i}"][1])
        before, after = (states[batch.attention_mask] for states in seen[f"layer{i}"])
        influence = 1 - torch.nn.functional.cosine_similarity(before, after).mean()
        torch.testing.assert_close(importance.influence[i], influence, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(importance.channels, channels, rtol=1e-10, atol=0)


def test_importance_does_not_depend_on_how_blocks_are_batched():
    model, batch = model_of("tied", torch.float64), batch_of()
    one, many = measure_importance(model, [batch]), measure_importance(model, split(batch))
    for name in ("channels", "influence"):
        torch.testing.assert_close(getattr(one, name), getattr(many, name), rtol=1e-10, atol=1e-12)
    for name in ("heads", "neurons"):
        for a, b in zip(getattr(one, name), getattr(many, name), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_no_hook_stays():
    model = model_of("tied")
    measure_importance(model, [batch_of()])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


# ---- the cut


def test_every_architecture_has_a_model_here():
    assert {type(model_of(name)).__name__ for name in CONFIGS} == set(ARCHITECTURES)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cutting_nothing_changes_no_bit(name, dtype):
    model, batch = model_of(name, dtype), batch_of()
    pruned = prune(model, everything(Sizes.of(model)))
    assert torch.equal(logits_of(pruned, batch), logits_of(model, batch))
    for (a, one), (b, other) in zip(model.named_parameters(), pruned.named_parameters(), strict=True):
        assert a == b and torch.equal(one, other) and one.dtype == other.dtype


def without(model, kept):
    """The larger model with everything that is cut held at 0, by hooks and zeros; written without `prune`."""
    model = copy.deepcopy(model)
    sizes = Sizes.of(model)
    cut = torch.ones(sizes.hidden_size, dtype=torch.bool)
    cut[kept.channels] = False

    def hold(module, arguments, output):
        return output.masked_fill(cut, 0.0)

    model.model.embed_tokens.register_forward_hook(hold)
    for place, layer in enumerate(kept.layers):
        block = model.model.layers[layer]
        heads = torch.zeros(sizes.num_heads, model.config.head_dim, dtype=torch.bool)
        heads[kept.heads[place]] = True
        neurons = torch.zeros(sizes.intermediate_size, dtype=torch.bool)
        neurons[kept.neurons[place]] = True
        for module, alive in ((block.self_attn.o_proj, heads.flatten()), (block.mlp.down_proj, neurons)):
            module.weight.data[:, ~alive] = 0.0
            module.register_forward_hook(hold)
    for layer in set(range(sizes.num_layers)) - set(kept.layers):
        model.model.layers[layer].forward = lambda hidden_states, **_: hidden_states
    return model


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_left_computes_what_the_model_would_without_the_rest(name, tmp_path):
    model, batch = model_of(name, torch.float64), batch_of()
    model.config.head_dim = SIZES["head_dim"] if name != "qwen2" else 4
    kept = choose_kept(model, target_sizes(model, **TARGET), split(batch), depth_criterion="block_influence")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    pruned = prune(model, kept)
    assert Sizes.of(pruned) == Sizes(**TARGET)
    expected = logits_of(without(model, kept), batch)
    torch.testing.assert_close(logits_of(pruned, batch), expected, rtol=0, atol=1e-5)  # norms are in float32
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    single = pruned.float()
    single.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits_of(loaded, batch), logits_of(single, batch))
    # Generation uses the key-value cache, which layers address by their number.
    prompt = batch.input_ids[:1]
    expected = logits_of(loaded, Batch(prompt, *[None] * 2, torch.arange(12)[None], None)).argmax(-1)[:, -1]
    assert torch.equal(loaded.generate(prompt, max_new_tokens=2, do_sample=False)[:, 12], expected)


def test_dead_parts_leave_logits_as_they_are():
    model, batch = model_of("llama", torch.float64), batch_of()
    dead = {"channels": [2, 5, 20], "neurons": [0, 7], "heads": [1, 3, 4]}
    with torch.no_grad():
        model.model.embed_tokens.weight[:, dead["channels"]] = 0
        for layer in model.model.layers:
            for module in (layer.self_attn.o_proj, layer.mlp.down_proj):
                module.weight[dead["channels"]] = 0
                module.bias[dead["channels"]] = 0
            for module in (layer.mlp.up_proj, layer.mlp.gate_proj):
                module.weight[dead["neurons"]] = 0
                module.bias[dead["neurons"]] = 0
            rows = [4 * 2 * head + i for head in (0, 1, 2) for i in range(8)]
            assert len(rows) == 24
            columns = [8 * head + i for head in dead["heads"] for i in range(8)]
            layer.self_attn.o_proj.weight[:, columns] = 0
    sizes = Sizes.of(model)
    kept = dataclasses.replace(
        everything(sizes),
        channels=[i for i in range(24) if i not in dead["channels"]],
        neurons=[[i for i in range(20) if i not in dead["neurons"]]] * 3,
        heads=[[0, 2, 5]] * 3,
    )
    torch.testing.assert_close(logits_of(prune(model, kept), batch), logits_of(model, batch), rtol=0, atol=2e-6)


def test_dead_parts_are_the_ones_that_go():
    model = model_of("tied", torch.float64)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.up_proj.weight[[0, 7]] = 0
            layer.self_attn.v_proj.weight[8:16] = 0  # all heads of the second group
            layer.input_layernorm.weight[[3, 11]] = 0
            layer.post_attention_layernorm.weight[[3, 11]] = 0
    target = target_sizes(model, hidden_size=20, intermediate_size=18, num_key_value_heads=2)
    assert target.num_heads == 4
    kept = choose_kept(model, target, [batch_of()])
    assert kept.layers == [0, 1, 2]
    assert not {3, 11} & set(kept.channels)
    assert all(not {0, 7} & set(neurons) for neurons in kept.neurons)
    assert kept.key_value_heads == [[0, 2]] * 3 and kept.heads == [[0, 1, 4, 5]] * 3


def test_kept_weights_are_the_models_own_in_their_order():
    model = model_of("tied")
    kept = choose_kept(model, target_sizes(model, intermediate_size=5, num_heads=3), [batch_of()])
    pruned = prune(model, kept)
    for i, layer in enumerate(pruned.model.layers):
        whole = model.model.layers[i]
        assert torch.equal(layer.mlp.up_proj.weight, whole.mlp.up_proj.weight[kept.neurons[i]])
        assert torch.equal(layer.mlp.down_proj.weight, whole.mlp.down_proj.weight[:, kept.neurons[i]])
        for place, head in enumerate(kept.heads[i]):
            rows = slice(8 * place, 8 * place + 8), slice(8 * head, 8 * head + 8)
            assert torch.equal(layer.self_attn.q_proj.weight[rows[0]], whole.self_attn.q_proj.weight[rows[1]])


@pytest.mark.parametrize("tied", [True, False])
def test_tied_embeddings_stay_tied(tied, tmp_path):
    model = model_of("tied" if tied else "llama")
    pruned = prune(model, choose_kept(model, target_sizes(model, hidden_size=18), [batch_of()]))
    pruned.save_pretrained(tmp_path)
    for one in (pruned, AutoModelForCausalLM.from_pretrained(tmp_path)):
        assert (one.lm_head.weight is one.model.embed_tokens.weight) == tied
        assert one.config.tie_word_embeddings == tied


def test_pruned_model_learns():
    model, batch = model_of("tied"), batch_of()
    pruned = prune(model, choose_kept(model, target_sizes(model, **TARGET), [batch]))
    loss = pruned(input_ids=batch.input_ids, labels=batch.labels, position_ids=batch.position_ids).loss
    loss.backward()
    assert all(parameter.grad is not None for parameter in pruned.parameters())


def test_random_state_is_left_alone():
    model = model_of("tied")
    kept = everything(Sizes.of(model))
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    prune(model, kept)
    assert torch.equal(torch.rand(3), expected)


# ---- what is written and what is refused


def test_choice_is_read_as_it_was_written():
    kept = everything(Sizes.of(model_of("tied")))
    assert Kept.parsed(kept.dumped()) == kept


@pytest.mark.parametrize("text", ["{", "[1]", '{"layers": [0]}', "null"])
def test_what_is_no_choice_is_refused(text):
    with pytest.raises(ValueError):
        Kept.parsed(text)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"hidden_size": 30}, "student.hidden_size is 30, but the model has 24"),
        ({"num_layers": 4}, "student.num_layers is 4, but the model has 3"),
        ({"num_heads": 4}, "student.num_heads is 4 for 3 key-value heads"),
        ({"num_heads": 6, "num_key_value_heads": 2}, "student.num_heads is 6 for 2 key-value heads"),
        ({"hidden_size": 16}, "student.hidden_size 16 is not a multiple of the 6 heads"),
    ],
)
def test_impossible_sizes_are_refused(sizes, message):
    with pytest.raises(RecipeError, match=message):
        target_sizes(model_of("tied"), **sizes)


def test_other_architectures_are_refused_by_name():
    sizes = {key: value for key, value in SIZES.items() if key not in ("head_dim", "rms_norm_eps")}
    model = CohereForCausalLM(CohereConfig(**sizes))
    for call in (Sizes.of, lambda m: measure_importance(m, [batch_of()])):
        with pytest.raises(RecipeError, match="CohereForCausalLM cannot be pruned in width.*LlamaForCausalLM"):
            call(model)


def test_unknown_parameters_are_refused():
    model = pico_llama()
    model.model.layers[0].mlp.router = torch.nn.Linear(2, 2)
    with pytest.raises(RecipeError, match="LlamaForCausalLM with model.layers.0.mlp.router.weight cannot"):
        Sizes.of(model)


def test_quantised_and_wrapped_layers_are_refused():
    class Wrapped(torch.nn.Linear):
        pass

    model = pico_llama()
    model.model.layers[0].mlp.up_proj = Wrapped(32, 64, bias=False)
    with pytest.raises(RecipeError, match="with a Wrapped as model.layers.0.mlp.up_proj"):
        Sizes.of(model)

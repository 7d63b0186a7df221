"""Students made of some layers of a model."""

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM

from collegium.models.student import choose_layers, keep_layers, mean_nll
from collegium.signals.contracts import Batch
from tests.support.pico import pico_llama


def batch_of(vocab_size: int = 260, *, size: int = 2, length: int = 24) -> Batch:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, vocab_size, (size, length), generator=generator)
    return Batch(
        input_ids=ids,
        attention_mask=torch.ones_like(ids, dtype=torch.bool),
        labels=ids,
        position_ids=torch.arange(length).expand(size, -1),
        sample_ids=torch.arange(size),
    )


def test_kept_layers_are_the_ones_asked_for(tmp_path):
    model = pico_llama(layers=4)
    wanted = [model.model.layers[i].mlp.up_proj.weight.clone() for i in (0, 3)]
    student = keep_layers(model, [0, 3])
    assert student.config.num_hidden_layers == 2
    for layer, weight in zip(student.model.layers, wanted, strict=True):
        assert torch.equal(layer.mlp.up_proj.weight, weight)
    student.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = batch_of().input_ids
    assert torch.equal(loaded(ids).logits, student(ids).logits)
    # Generation uses the key-value cache, which layers address by their new number.
    generated = loaded.generate(ids[:1], max_new_tokens=4, do_sample=False)
    assert torch.equal(generated, student.generate(ids[:1], max_new_tokens=4, do_sample=False))


def test_per_layer_configuration_follows():
    config = Gemma2Config(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        sliding_window=4,
    )
    model = Gemma2ForCausalLM(config)
    types = list(model.config.layer_types)
    keep_layers(model, [1, 2, 3])
    assert model.config.layer_types == types[1:]
    assert model(batch_of(64).input_ids).logits.isfinite().all()


@pytest.mark.parametrize("kept", [[], [1, 0], [0, 0], [0, 4], [-1, 2]])
def test_impossible_layers_are_refused(kept):
    with pytest.raises(ValueError, match="keep_layers must increase from 0 to at most 3"):
        keep_layers(pico_llama(layers=4), kept)


def test_greedy_choice_drops_the_cheapest_layer_each_time():
    model, batches = pico_llama(layers=4, seed=1), [batch_of()]
    losses = {}
    for dropped in range(4):
        copy = pico_llama(layers=4, seed=1)
        losses[dropped] = mean_nll(keep_layers(copy, [i for i in range(4) if i != dropped]), batches)
    before = mean_nll(model, batches)
    kept = choose_layers(model, 3, batches)
    assert kept == [i for i in range(4) if i != min(losses, key=losses.get)]
    assert mean_nll(model, batches) == before, "the model is left as it was"
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == [0, 1, 2, 3]


def test_mean_nll_is_the_models_own_loss():
    model, batch = pico_llama(), batch_of()
    expected = model(batch.input_ids, labels=batch.labels).loss
    assert mean_nll(model, [batch]) == pytest.approx(float(expected), rel=1e-5)


def test_more_layers_than_there_are():
    with pytest.raises(ValueError, match="num_layers is 5, but the model has 2 layers"):
        choose_layers(pico_llama(), 5, [batch_of()])

"""A student before training is told apart by every bit of it, and by nothing that does not decide its training."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from collegium.models.identity import module_fingerprint
from collegium.models.weight_digest import student_digest
from tests.support.pico import pico_llama


def flipped(name: str):
    model = pico_llama(0)
    tensor = dict(model.named_parameters())[name].data.view(-1)
    tensor.view(torch.int32)[7] ^= 1
    return model


def with_buffer(value: float):
    model = pico_llama(0)
    model.register_buffer("kept", torch.tensor([value]))
    return model


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pico_llama(0), pico_llama(1)),
        (pico_llama(0), flipped("model.layers.1.mlp.up_proj.weight")),
        (pico_llama(0), flipped("model.norm.weight")),
        (pico_llama(0), pico_llama(0, dropout=0.1)),
        (pico_llama(0), pico_llama(0, dtype=torch.bfloat16)),
        (with_buffer(1.0), with_buffer(2.0)),
    ],
    ids=["weights", "a bit", "a bit of a norm", "dropout", "type", "buffer"],
)
def test_what_decides_is_told_apart(one, other):
    assert student_digest(one) != student_digest(other)


def test_what_decides_nothing_is_not():
    model = pico_llama(0)
    digest = student_digest(model)
    assert student_digest(pico_llama(0)) == digest
    model.config.use_cache = False
    model.train()
    model.model.layers[0].requires_grad_(False)
    assert student_digest(model) == digest


def test_adapters_are_left_out_and_their_base_is_not():
    def tuned(base: int, seed: int, modules: list[str]):
        model = pico_llama(base)
        torch.manual_seed(seed)
        return get_peft_model(model, LoraConfig(r=2, target_modules=modules))

    digest = student_digest(tuned(0, 1, ["q_proj"]), without="lora_")
    assert student_digest(tuned(0, 2, ["q_proj", "down_proj"]), without="lora_") == digest
    assert student_digest(tuned(3, 1, ["q_proj"]), without="lora_") != digest


def test_a_quantised_teacher_has_an_identity():
    quantization = pytest.importorskip("torchao.quantization")

    def quantised(seed: int):
        model = pico_llama(seed)
        quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
        return model

    assert module_fingerprint(quantised(1)) == module_fingerprint(quantised(1))
    assert module_fingerprint(quantised(1)) != module_fingerprint(quantised(2))

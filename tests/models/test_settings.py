"""Settings in a model's files: all that decide numbers, none that do not."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from collegium.base.errors import DataError
from collegium.models.identity import module_fingerprint, with_settings
from collegium.models.settings import adapter_settings, decisive, model_settings, teacher_settings
from tests.support.pico import pico_llama


@pytest.fixture
def folder(tmp_path):
    pico_llama(0).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change(path, **changes):
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **changes}))


DECISIVE = {
    "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
    "rope_scaling": {"type": "dynamic", "factor": 2.0},
    "rms_norm_eps": 1e-3,
    "hidden_act": "gelu",
    "sliding_window": 4,
    "attn_implementation": "eager",
    "final_logit_softcapping": 30.0,
    "quantization_config": {"quant_method": "gptq", "bits": 4},
    "dtype": "float16",
    "a_key_of_tomorrow": 1,
    "token_drop_policy": "probs",
}
NEUTRAL = {
    "_name_or_path": "elsewhere",
    "transformers_version": "99",
    "torchscript": True,
    "eos_token_id": [1, 2],
    "use_cache": False,
    "attention_dropout": 0.5,
    "resid_pdrop": 0.1,
    "hidden_dropout_prob": 0.1,
    "temperature": 0.3,
    "id2label": {"0": "a"},
    "initializer_range": 1.0,
}


@pytest.mark.parametrize("key", DECISIVE)
def test_what_decides_numbers_is_seen(folder, key):
    before = model_settings(str(folder))
    change(folder / "config.json", **{key: DECISIVE[key]})
    assert model_settings(str(folder)) != before


@pytest.mark.parametrize("key", NEUTRAL)
def test_what_decides_none_is_not(folder, key):
    before = model_settings(str(folder))
    change(folder / "config.json", **{key: NEUTRAL[key]})
    assert model_settings(str(folder)) == before


def test_inner_configurations_are_looked_at_alike():
    before = {"text_config": {"rope_theta": 1e4, "eos_token_id": 2}}
    assert decisive(before) == {"text_config": {"rope_theta": 1e4}}


def test_the_old_name_of_the_type_is_the_same_key():
    assert decisive({"torch_dtype": "float16"}) == decisive({"dtype": "float16"})


def test_code_counts_where_it_is_run(folder):
    (folder / "modeling_own.py").write_text("SCALE = 1")
    plain = model_settings(str(folder))
    before = model_settings(str(folder), runs_code=True)
    (folder / "modeling_own.py").write_text("SCALE = 2")
    assert model_settings(str(folder)) == plain
    assert model_settings(str(folder), runs_code=True) != before


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("r", 8),
        ("lora_alpha", 8),
        ("use_rslora", True),
        ("alpha_pattern", {"q_proj": 1}),
        ("target_modules", ["a"]),
    ],
)
def test_settings_of_adapters(tmp_path, key, value):
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["q", "v"]}))
    before = adapter_settings(str(tmp_path))
    change(path, target_modules=["v", "q"], inference_mode=False, lora_dropout=0.3)
    assert adapter_settings(str(tmp_path)) == before
    change(path, **{key: value})
    assert adapter_settings(str(tmp_path)) != before


def test_an_adapter_on_the_hub_is_known_by_its_commit(tmp_path, monkeypatch, folder):
    commits = iter("ab")

    def fetched(reference, name, *, revision):
        assert (reference, name, revision) == ("a/b", "adapter_config.json", "main")
        return str(tmp_path / "snapshots" / (next(commits) * 40) / name)

    monkeypatch.setattr("collegium.models.settings.hf_hub_download", fetched)
    first, second = (teacher_settings(str(folder), adapter="a/b", adapter_revision="main") for _ in range(2))
    assert first["adapter"] == {"commit": "a" * 40}
    assert with_settings("x", first) != with_settings("x", second)


def test_a_damaged_config_is_named(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(DataError, match=r"model: config.json cannot be read \(JSONDecodeError"):
        model_settings(str(folder))


def test_identity_of_a_model_in_memory(folder):
    model = pico_llama(0)
    before = module_fingerprint(model)
    assert module_fingerprint(pico_llama(0)) == before == module_fingerprint(pico_llama(0).train())
    assert module_fingerprint(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)) == before
    assert module_fingerprint(pico_llama(1)) != before
    assert module_fingerprint(pico_llama(0).to(torch.bfloat16)) != before
    for harm in (
        lambda m: setattr(m.config, "rms_norm_eps", 1e-2),
        lambda m: setattr(m.model.layers[0].self_attn, "scaling", 0.5),
        lambda m: m.model.rotary_emb.inv_freq.mul_(2),
        lambda m: m.model.layers[0].mlp.up_proj.weight.data[0].neg_(),
    ):
        other = pico_llama(0)
        harm(other)
        assert module_fingerprint(other) != before

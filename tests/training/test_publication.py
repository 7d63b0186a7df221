"""A student that is published is the one that was trained: adapters, special tokens, and what is read back."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaForCausalLM

from collegium.base.errors import DataError, RecipeError
from collegium.models.pretrained import load_model
from collegium.models.special_tokens import follow_tokenizer
from collegium.training.trainer import DistillationTrainer
from tests.support.pico import byte_tokenizer, pico_llama
from tests.support.runs import arguments, packed, trainer_of


IDS = torch.arange(40)[None]


def lora_trainer(folder: Path, **options) -> DistillationTrainer:
    trainer = DistillationTrainer(
        pico_llama(0),
        teachers=[pico_llama(1)],
        args=arguments(folder, learning_rate=5e-2, max_steps=6),
        train_dataset=packed(),
        processing_class=byte_tokenizer(),
        peft_config=LoraConfig(r=4, task_type="CAUSAL_LM", **options),
    )
    trainer.train()
    return trainer


KINDS = {
    "head": ({"target_modules": ["q_proj", "lm_head"]}, False),
    "embeddings": ({"target_modules": ["embed_tokens"]}, False),
    "both": ({"target_modules": ["lm_head", "embed_tokens"]}, False),
    "both, tied": ({"target_modules": ["lm_head", "embed_tokens"], "ensure_weight_tying": True}, True),
    "a head of its own": ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, False),
    "some tokens": ({"target_modules": ["q_proj"], "trainable_token_indices": [1, 2]}, True),
    "biases": ({"target_modules": "all-linear", "bias": "all"}, True),
}


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_on_tied_embeddings_are_merged_rightly(tmp_path, kind):
    options, stays_tied = KINDS[kind]
    trainer = lora_trainer(tmp_path / "run", **options)
    trainer.save_model(str(tmp_path / "student"))
    live = trainer.distillation_model.causal_lm.eval()(IDS).logits
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path / "student", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.allclose(loaded(IDS).logits, live, atol=1e-4)
    assert loaded.config.tie_word_embeddings is stays_tied


def test_the_adapter_is_saved_too_and_is_the_student(tmp_path):
    trainer = lora_trainer(tmp_path / "run", target_modules="all-linear")
    trainer.save_model(str(tmp_path / "student"))
    live = trainer.distillation_model.causal_lm.eval()(IDS).logits
    adapted = PeftModel.from_pretrained(pico_llama(0), str(tmp_path / "student" / "adapter"))
    assert torch.allclose(adapted.eval()(IDS).logits, live, atol=1e-5)
    assert torch.allclose(load_model(str(tmp_path / "student"), dtype=torch.float32)(IDS).logits, live, atol=1e-4)


def test_adapters_that_cannot_be_merged_are_refused_before_training(tmp_path):
    with pytest.raises(RecipeError, match="PROMPT_TUNING cannot be merged.*use LoraConfig"):
        DistillationTrainer(
            pico_llama(0),
            args=arguments(tmp_path),
            train_dataset=packed(),
            processing_class=byte_tokenizer(),
            peft_config=PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
        )


def edit_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


SPOILT = {
    "rope": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "norm": {"rms_norm_eps": 0.5},
    "tie": {"tie_word_embeddings": False},
}


@pytest.mark.parametrize("kind", [*SPOILT, "weights"])
def test_a_student_that_was_written_wrongly_is_not_published(tmp_path, monkeypatch, kind):
    written = LlamaForCausalLM.save_pretrained

    def wrongly(self, folder, **options):
        written(self, folder, **options)
        if kind == "weights":
            other = pico_llama(0)
            other.load_state_dict(self.state_dict())
            other.model.layers[1].mlp.up_proj.weight.data[0, 0] += 1e-6
            written(other, folder)
        else:
            edit_config(Path(folder), **SPOILT[kind])

    trainer = trainer_of(tmp_path / "run", save_strategy="steps", save_steps=3)
    trainer.train()
    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", wrongly)
    with pytest.raises(DataError, match="not the one that was trained.*the last checkpoint is kept"):
        trainer.save_model(str(tmp_path / "student"))
    assert not list((tmp_path / "student").iterdir())
    assert trainer.checkpoints.newest_whole() is not None
    monkeypatch.undo()
    trainer.save_model(str(tmp_path / "student"))
    assert (tmp_path / "student" / "digests.json").exists()


def other_family(**changes) -> LlamaForCausalLM:
    model = pico_llama(0)
    for config in (model.config, model.generation_config):
        config.bos_token_id, config.eos_token_id, config.pad_token_id = 1, 2, 0
        for name, value in changes.items():
            setattr(config, name, value)
    return model


def test_special_tokens_are_the_tokenizers_and_generation_ends(tmp_path):
    trainer = trainer_of(tmp_path / "run", student=other_family())
    trainer.save_model(str(tmp_path / "student"))
    for name in ("config.json", "generation_config.json"):
        content = json.loads((tmp_path / "student" / name).read_text())
        found = [content[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")]
        assert found == [256, 257, 258], name
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "student")
    forward = model.forward

    def always_ends(*args, **options):
        output = forward(*args, **options)
        output.logits[:] = 0
        output.logits[..., tokenizer.eos_token_id] = 100
        return output

    model.forward = always_ends
    written = model.generate(torch.tensor([[1, 5, 9]]), max_new_tokens=20, do_sample=False)
    assert written[0, 3:].tolist() == [257]


@pytest.mark.parametrize(
    ("given", "expected"),
    [([257, 259], [257, 259]), ([1, 257], 257), ([1, 2], 257), (None, 257), ([257], 257), (257, 257)],
)
def test_further_ends_stay_where_they_are_the_tokenizers(given, expected):
    model = other_family(eos_token_id=given)
    follow_tokenizer(model, byte_tokenizer())
    assert model.config.eos_token_id == model.generation_config.eos_token_id == expected


def test_a_tokenizer_without_special_tokens_takes_away_those_of_another():
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = tokenizer.pad_token = None
    model = other_family()
    follow_tokenizer(model, tokenizer)
    assert model.config.pad_token_id is None and model.generation_config.pad_token_id is None


def test_padding_beyond_the_embeddings_is_no_padding(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<beyond>"})
    model = pico_llama(0)
    follow_tokenizer(model, tokenizer)
    assert tokenizer.pad_token_id == 260
    assert model.config.pad_token_id is None


def test_generation_settings_that_transformers_refuses_to_save_do_not_lose_a_run(tmp_path):
    model = pico_llama(0)
    model.generation_config = GenerationConfig(temperature=0.6, top_p=0.9, do_sample=False, suppress_tokens=[3])
    trainer = trainer_of(tmp_path / "run", student=model)
    trainer.save_model(str(tmp_path / "student"))
    content = json.loads((tmp_path / "student" / "generation_config.json").read_text())
    assert content["temperature"] == 0.6 and content["do_sample"] is True


def test_saving_again_replaces_what_was_there(tmp_path):
    trainer = lora_trainer(tmp_path / "run", target_modules=["q_proj"])
    for _ in range(2):
        trainer.save_model(str(tmp_path / "student"))
        load_model(str(tmp_path / "student"), dtype=torch.float32)
    assert not list((tmp_path / "student").glob(".writing*"))

"""Names that people bring from other programs lead to the right key of a recipe."""

import re

import pytest

from collegium.base.errors import RecipeError
from collegium.recipe.file import _sections_in, validated
from collegium.recipe.foreign_names import FOREIGN, WITHOUT_KEY, known_elsewhere
from collegium.recipe.recipe import Recipe


CONTENT = {
    "name": "x",
    "student": {"kind": "pretrained", "model": "m", "lora": {"rank": 4}},
    "data": {"sources": [{"kind": "files", "name": "a", "path": "a.txt"}]},
    "training": {"max_steps": 1},
    "objective": {"kd_weight": 0.0},
}


def exists(key):
    sections = [Recipe]
    for part in key.split("."):
        fields = [section.model_fields[part] for section in sections if part in section.model_fields]
        if not fields:
            return False
        sections = [section for field in fields for section in _sections_in(field.annotation)]
    return True


@pytest.mark.parametrize("key", sorted(set(FOREIGN.values())))
def test_each_key_that_is_suggested_exists(key):
    assert exists(key)


def test_keys_in_sentences_exist_too():
    keys = {key for text in WITHOUT_KEY.values() for key in re.findall(r"`([a-z_.]+)`", text)}
    assert keys
    assert all(exists(key) for key in keys)


def placed(dotted, value):
    """The recipe with one more key."""
    content = {**CONTENT, "training": dict(CONTENT["training"]), "student": {**CONTENT["student"]}}
    content["student"]["lora"] = dict(CONTENT["student"]["lora"])
    *parents, last = dotted.split(".")
    place = content
    for parent in parents:
        place = place.setdefault(parent, {})
    place[last] = value
    return content


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("lr", "training.learning_rate"),
        ("training.lr", "training.learning_rate"),
        ("learning_rate", "training.learning_rate"),
        ("training.bf16", "training.precision"),
        ("model_name_or_path", "student.model"),
        ("student.model_name_or_path", "student.model"),
        ("base_model", "student.model"),
        ("per_device_train_batch_size", "training.batch_size"),
        ("training.per_device_train_batch_size", "training.batch_size"),
        ("training.num_train_epochs", "training.num_epochs"),
        ("training.gradient_accumulation_steps", "training.gradient_accumulation"),
        ("sequence_len", "data.block_size"),
        ("micro_batch_size", "training.batch_size"),
        ("datasets", "data.sources"),
        ("lora.r", "student.lora"),
        ("student.lora.r", "student.lora.rank"),
        ("lora_r", "student.lora.rank"),
        ("training.output_dir", "output_dir"),
        ("training.seed", "seed"),
        ("training.save-steps", "training.save_every"),
        ("objective.temperature", "objective.kd_temperature"),
        ("objective.alpha", "objective.kd_weight"),
    ],
)
def test_an_unknown_key_leads_to_ours(given, meant):
    with pytest.raises(RecipeError) as caught:
        validated(placed(given, 1), "r.yaml")
    assert f"unknown key; did you mean `{meant}`?" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"), [("optim", "the optimizer is AdamW"), ("push_to_hub", "collegium push")]
)
def test_names_without_a_key_are_explained(name, words):
    with pytest.raises(RecipeError, match=f"training.{name}: unknown key; .*{words}"):
        validated(placed(f"training.{name}", 1), "r.yaml")


def test_a_misspelt_key_of_ours_is_found_by_its_letters():
    with pytest.raises(RecipeError, match="training.learnin_rate: unknown key; did you mean `learning_rate`"):
        validated(placed("training.learnin_rate", 1), "r.yaml")
    assert known_elsewhere(["training", "learning_rate"]) is None

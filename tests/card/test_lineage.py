"""What a run was made from stands in its evaluation, without a path of this machine; licences decide nothing."""

import json
from pathlib import Path

import pytest
from runs import write_recipe
from test_command_line import run

from collegium.build.ingredients import text_directory
from collegium.build.model_lineage import stored_parameters
from collegium.errors import RecipeError
from collegium.recipe_file import load_recipe


LICENCES = [
    "teachers.0.licence=Apache-2.0",
    "student.licence=MIT",
    "data.sources.0.licence=ODC-BY",
    "data.sources.0.language=en",
]


@pytest.fixture
def recipe(tmp_path, model_folder, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLLEGIUM_CACHE", str(tmp_path / "cache"))
    return write_recipe(tmp_path / "files", model_folder)


def test_licences_and_languages_decide_nothing(recipe, tokenizer):
    plain, told = (
        load_recipe(recipe, ["data.directory=null"]),
        load_recipe(recipe, ["data.directory=null", *LICENCES]),
    )
    assert told.teachers[0].licence == "Apache-2.0" and told.data.sources[0].language == "en"
    assert told.fingerprint == plain.fingerprint
    assert not any(key in json.dumps(plain.deciding) for key in ('"licence"', '"language"'))
    assert text_directory(told, tokenizer, []) == text_directory(plain, tokenizer, [])


def test_licences_are_one_line(recipe):
    for bad in ('"a\\nb"', '""', '"' + "x" * 101 + '"', "[mit]"):
        with pytest.raises(RecipeError, match=r"teachers\.0\.licence"):
            load_recipe(recipe, [f"teachers.0.licence={bad}"])
    with pytest.raises(RecipeError, match=r"data\.sources\.0\.language"):
        load_recipe(recipe, ["data.sources.0.language=English"])


def test_lineage_of_a_run(recipe, tmp_path, monkeypatch, capsys):
    two = Path(load_recipe(recipe).teachers[1].model)
    (two / "README.md").write_text("---\nlicense: gemma\n---\n", encoding="utf-8")
    changes = [*LICENCES, "student.lora={rank: 2}", "teachers.1.domains=[dogs]"]
    code, out, err = run(["train", str(recipe), *changes, "--json"], monkeypatch, capsys)
    assert code == 0, err
    result = json.loads(out)
    lineage = result["lineage"]
    assert json.loads(Path("runs/pico/evaluation.json").read_text())["lineage"] == lineage
    assert str(tmp_path.parent) not in json.dumps(lineage), "a path of this machine"
    assert lineage["recipe"] == load_recipe(recipe, changes).fingerprint == result["recipe"]

    one, other = lineage["teachers"]
    assert (one["name"], one["model"], one["origin"]) == ("one", "one", "local")
    assert (one["licence"], one["licence_from"]) == ("Apache-2.0", "recipe")
    assert (other["licence"], other["licence_from"]) == ("gemma", "model card")
    assert (one["domains"], other["domains"]) == (["cats", "dogs"], ["dogs"])
    assert one["parameters"] == stored_parameters(two) and one["vocab_size"] == 260 and one["cached"] is False
    assert one["fingerprint"].startswith("one@")
    assert 0 < other["weight"]["mean"] < one["weight"]["mean"] < 1

    student = lineage["student"]
    assert (student["kind"], student["licence"], student["parameters"]) == ("pretrained", "MIT", one["parameters"])
    assert 0 < student["trained_parameters"] < student["parameters"]

    cats, dogs = lineage["data"]
    assert (cats["path"], cats["licence"], cats["language"]) == ("cats.txt", "ODC-BY", "en")
    assert (dogs["licence"], dogs["licence_from"], dogs["held_out_documents"]) == (None, None, 4)
    training = lineage["training"]
    assert (training["steps"], training["kd_weight"], training["seed"]) == (4, 0.5, 0)
    assert training["tokens"] == round(training["epochs"] * (cats["train_tokens"] + dogs["train_tokens"]))
    assert (training["fusion"], training["weighting"]["kind"]) == ("mixture", "entropy")
    assert set(lineage["versions"]) == {"collegium", "torch", "transformers"}


def test_what_cannot_be_counted_is_not_told(tmp_path):
    assert stored_parameters(tmp_path) is None
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 16)
    assert stored_parameters(tmp_path) is None
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert stored_parameters(tmp_path) is None

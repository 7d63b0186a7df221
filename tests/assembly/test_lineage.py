"""What a run was made from stands in its evaluation, without a path of this machine; licences decide nothing."""

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from collegium.assembly.corpus import text_directory
from collegium.assembly.model_lineage import stored_parameters
from collegium.assembly.run import Run
from collegium.base.errors import RecipeError
from collegium.recipe.file import load_recipe, read_mapping, validated
from collegium.report.card.licences import obstacles
from collegium.report.evaluation_file import read_evaluation
from collegium.report.words import summary
from tests.support.command import run
from tests.support.runs import write_recipe


ROOT = Path(__file__).parents[2]

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
    plain, described = (
        load_recipe(recipe, ["data.directory=null"]),
        load_recipe(recipe, ["data.directory=null", *LICENCES]),
    )
    assert described.teachers[0].licence == "Apache-2.0" and described.data.sources[0].language == "en"
    assert described.fingerprint == plain.fingerprint
    assert not any(key in json.dumps(plain.deciding) for key in ('"licence"', '"language"'))
    assert text_directory(described, tokenizer, []) == text_directory(plain, tokenizer, [])


SHIPPED = [*ROOT.glob("recipes/**/*.yaml"), *ROOT.glob("src/collegium/demo/**/*.yaml")]


def without(content, keys):
    if isinstance(content, dict):
        return {key: without(value, keys) for key, value in content.items() if key not in keys}
    return [without(item, keys) for item in content] if isinstance(content, list) else content


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_licences_of_shipped_recipes_decide_nothing(path):
    bare = validated(without(read_mapping(path), {"licence", "language"}), path)
    assert bare.fingerprint == load_recipe(path).fingerprint


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
    text = Run.from_folder(Path("runs/pico")).text.train
    per_step = load_recipe(recipe, changes).training.batch_size
    assert training["blocks"] == 4 * per_step == round(training["epochs"] * len(text))
    assert (
        training["blocks"] <= training["predicted"] < training["tokens"] <= 4 * per_step * training["block_size"]
    )
    assert set(training["domains"]) == {"cats", "dogs"}
    for part in ("blocks", "tokens", "predicted"):
        assert sum(counts[part] for counts in training["domains"].values()) == training[part]
    card = Path("runs/pico/student/README.md").read_text()
    assert f"4 steps and {training['tokens']:,} tokens" in card
    page = summary(load_recipe(recipe, changes), read_evaluation(Path("runs/pico")))
    assert f"on {training['tokens']:,} tokens ({training['predicted']:,} of them predicted)" in page
    assert (training["fusion"], training["weighting"]["kind"]) == ("mixture", "entropy")
    assert set(lineage["versions"]) == {"collegium", "torch", "transformers"}


def test_the_card_is_written_after_training_and_after_each_measurement(recipe, tmp_path, monkeypatch, capsys):
    code, _, err = run(["train", str(recipe), *LICENCES, "--json"], monkeypatch, capsys)
    assert code == 0, err
    card = Path("runs/pico/student/README.md")
    written = card.read_bytes()
    assert ModelCard(written.decode()).data.language == ["en"]
    assert str(tmp_path.parent).encode() not in written, "a path of this machine"
    assert b"learning_rate: 0.01" in written and b"max_steps: 4" in written
    card.unlink()
    assert run(["evaluate", "runs/pico", "--json"], monkeypatch, capsys)[0] == 0
    assert card.read_bytes() == written
    absolute = Path("runs/pico").resolve()
    assert run(["evaluate", str(absolute), "--json"], monkeypatch, capsys)[0] == 0
    assert str(tmp_path) not in Path("runs/pico/evaluation.json").read_text() and card.read_bytes() == written
    code, out, _ = run(["train", str(recipe), *LICENCES, "--json"], monkeypatch, capsys)  # finished already
    assert code == 0 and json.loads(out)["lineage"]["name"] == "pico"
    code, out, err = run(["push", "runs/pico", "someone/pico", "--dry-run", "--json"], monkeypatch, capsys)
    assert code == 0 and json.loads(out)["card"].encode() == written, err
    student = ["evaluate", "runs/pico/student", "--recipe", str(recipe), "--output", "other", "--json"]
    code, out, err = run(student, monkeypatch, capsys)
    assert code == 0 and "lineage" not in json.loads(out), err


def test_lineage_of_layers_caches_and_of_a_run_that_goes_on(recipe, tmp_path, monkeypatch, capsys):
    model = load_recipe(recipe).student.model
    first = [
        "name=first",
        f"student={{kind: layer_drop, model: {model}, num_layers: 1, calibration_blocks: 1}}",
        f"teachers=[{{name: one, model: {model}, cached: true, licence: gemma}}]",
        f"cache.directory={tmp_path / 'caches'}",
        "training.max_steps=1",
    ]
    for command in ("cache", "train"):
        code, out, err = run([command, str(recipe), *first, "--json"], monkeypatch, capsys)
        assert code == 0, err
    before = json.loads(out)["lineage"]
    kept = json.loads(Path("runs/first/kept_layers.json").read_text())["layers"]
    assert len(kept) == 1 and before["student"]["layers_kept"] == kept
    assert (
        before["student"]["parameters"] < before["teachers"][0]["parameters"] and before["teachers"][0]["cached"]
    )

    second = [
        "name=second",
        "student={kind: continued, run: runs/first}",
        f"teachers=[{{name: stored, kind: cached, path: {tmp_path / 'caches' / 'one'}, licence: mit}}]",
        "training.max_steps=1",
    ]
    code, out, err = run(["train", str(recipe), *second, "--json"], monkeypatch, capsys)
    assert code == 0, err
    lineage = json.loads(out)["lineage"]
    assert str(tmp_path.parent) not in json.dumps(lineage), "a path of this machine"
    stored, student = lineage["teachers"][0], lineage["student"]
    assert (stored["kind"], stored["model"], stored["cached"]) == ("cached", "student", True)
    assert stored["parameters"] is None and stored["vocab_size"] == 260
    assert (student["kind"], student["model"], student["earlier"]) == ("continued", "first", before)
    assert (student["licence"], student["licence_from"]) == ("see-model-card", "model card")
    assert any("gemma" in line for line in obstacles(lineage)), "what an earlier teacher's licence asks for"


def test_what_cannot_be_counted_is_not_told(tmp_path):
    assert stored_parameters(tmp_path) is None
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 16)
    assert stored_parameters(tmp_path) is None
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert stored_parameters(tmp_path) is None

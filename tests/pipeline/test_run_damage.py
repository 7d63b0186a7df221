"""Damage to any file of a finished run that decides numbers: nothing damaged is silently used."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from collegium.assembly.run import Run
from collegium.base.errors import UserError
from collegium.export.student_folder import load_student
from collegium.models.adapter_config import read_adapter_config
from collegium.models.pretrained import load_model, load_tokenizer
from collegium.pipeline.evaluate import evaluate_run
from collegium.pipeline.push import plan_upload
from collegium.report.evaluation_file import read_evaluation
from tests.support.command import run
from tests.support.damage import damages
from tests.support.runs import write_recipe


FIT = ("teachers.0.weight_temperature=fit", "objective.weighting=entropy")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run with a LoRA student on a tied head, chosen layers and a fitted temperature."""
    from tests.support.pico import byte_tokenizer, pico_llama

    folder = tmp_path_factory.mktemp("damage")

    def saved(name: str, seed: int, *, layers: int = 2) -> Path:
        pico_llama(seed, layers=layers).save_pretrained(folder / name)
        byte_tokenizer().save_pretrained(folder / name)
        return folder / name

    lora = "lora: {rank: 4, target_modules: [q_proj, lm_head]}"
    recipe = write_recipe(folder / "files", saved)
    student = f"student={{kind: layer_drop, model: {saved('big', 5, layers=3)}, num_layers: 2, {lora}}}"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("COLLEGIUM_CACHE", str(folder / "cache"))
        overrides = (student, "training.learning_rate=5e-2", "training.precision=float32", *FIT)
        from collegium.pipeline.train import train
        from collegium.recipe.file import load_recipe

        train(load_recipe(recipe, overrides))
    return folder / "runs" / "pico"


def refused(function, *args) -> bool:
    try:
        function(*args)
    except UserError:
        return True
    return False


@pytest.fixture
def copied(trained, tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(trained.parent.parent)
    monkeypatch.setenv("COLLEGIUM_CACHE", str(trained.parent.parent / "cache"))
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_evaluate_says_what_train_said(copied):
    before = read_evaluation(copied)
    after = evaluate_run(copied)
    for name, domain in before.domains.items():
        assert after.domains[name].figures.nll.value == pytest.approx(domain.figures.nll.value, rel=1e-5)
    config = json.loads((copied / "student" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    assert "embeddings and head, one matrix before, are two" in (copied / "student" / "README.md").read_text()


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"],
)
def test_no_damaged_student_is_evaluated_exported_or_pushed(copied, name):
    path = copied / "student" / name
    for damage in damages(path):
        assert refused(evaluate_run, copied), damage
        assert refused(load_student, copied / "student", "x"), damage
        with pytest.raises(UserError):
            plan_upload(copied, "a/b", private=True)
        assert refused(load_tokenizer if "token" in name else _weights, str(copied / "student")), damage


def _weights(folder: str) -> None:
    load_model(folder, dtype=torch.float32)


def test_no_damaged_adapter_is_whole(copied):
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        for damage in damages(copied / "adapter" / name):
            assert refused(read_adapter_config, str(copied / "adapter")), damage


@pytest.mark.parametrize("name", ["recipe.yaml", "temperatures.json", "kept_layers.json", "evaluation.json"])
def test_no_damaged_file_of_a_run_decides_a_number(copied, name):
    reads = {
        "recipe.yaml": lambda: Run.from_folder(copied).recipe.model_dump(mode="json"),
        "temperatures.json": lambda: repr(Run.from_folder(copied).temperatures),
        "kept_layers.json": lambda: kept_of(Run.from_folder(copied)),
        "evaluation.json": lambda: repr(read_evaluation(copied)),
    }
    whole = reads[name]()
    for damage in damages(copied / name):
        try:
            found = reads[name]()
        except UserError:
            continue
        assert found == whole, f"{damage}: and another value is used"


def kept_of(run: Run) -> list[str]:
    return [str(tensor.sum()) for tensor in run.student.state_dict().values()]


def test_a_damaged_run_says_so_in_a_sentence(copied, monkeypatch, capsys):
    path = copied / "student" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    for command in (["evaluate", str(copied)], ["export", str(copied), "--to", "safetensors-int8"]):
        code, _, err = run(command, monkeypatch, capsys)
        assert code == 65, err
        assert "model.safetensors: is not as it was written (its digest differs)" in err
    code, _, err = run(["push", str(copied), "a/b", "--dry-run"], monkeypatch, capsys)
    assert code == 65, err

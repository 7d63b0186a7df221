"""`collegium preflight` as a user meets it, and its estimate of disk against the run over pico models."""

import json
import sys
from pathlib import Path

import pytest

from collegium.cli.app import main
from collegium.evaluation.cost import folder_bytes
from collegium.pipeline.preflight.estimate.trial import num_steps_of
from collegium.recipe.file import load_recipe
from tests.support.runs import write_recipe


@pytest.fixture
def recipe(tmp_path, model_folder, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLLEGIUM_CACHE", str(tmp_path / "cache"))
    return write_recipe(tmp_path / "files", model_folder)


@pytest.fixture
def run(monkeypatch, capsys):
    def call(*arguments) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["collegium", *map(str, arguments)])
        code = main()
        captured = capsys.readouterr()
        assert code == 0, captured.err
        return captured.out, captured.err

    return call


def entries(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


LONGER = ["training.max_steps=60", "training.save_every=10", "training.log_every=5", "training.evaluate_every=20"]


@pytest.mark.parametrize("changes", [[], LONGER, ["student.lora={rank: 2}"]], ids=["short", "long", "lora"])
def test_disk_is_what_the_run_takes_and_nothing_remains_of_the_trial(recipe, tmp_path, run, changes):
    run("prepare", recipe)
    before = entries(tmp_path)
    out, _ = run("preflight", recipe, *changes, "--json")
    left = {name for name in entries(tmp_path) - before if not name.startswith("cache")}
    assert left == {"runs", "runs/pico", "runs/pico/preflight.json"}
    assert (
        json.loads((tmp_path / "runs/pico/preflight.json").read_text())["estimate"] == json.loads(out)["estimate"]
    )
    estimate = json.loads(out)["estimate"]
    run("train", recipe, *changes)
    run_dir = tmp_path / "runs" / "pico"
    (run_dir / "preflight.json").unlink()
    actual = {
        "text": folder_bytes(tmp_path / "files" / "prepared"),
        "checkpoints": folder_bytes(run_dir / "checkpoints"),
        "student": folder_bytes(run_dir / "student") + folder_bytes(run_dir / "adapter"),
        "logs": folder_bytes(run_dir),
    }
    actual["logs"] -= actual["checkpoints"] + actual["student"]
    assert estimate["total_disk_bytes"] == pytest.approx(sum(actual.values()), rel=0.1)
    for part in ("text", "checkpoints", "student"):
        assert estimate["disk_bytes"][part] == pytest.approx(actual[part], rel=0.1), part
    loaded = load_recipe(recipe, changes)
    assert estimate["num_steps"] == loaded.training.max_steps
    one = actual["checkpoints"] / loaded.training.keep_checkpoints
    assert estimate["passing_bytes"] == pytest.approx(one if changes == LONGER else 0, rel=0.1)
    assert estimate["memory_bytes"] > 10**7 and estimate["total_seconds"] > 0
    assert sum(estimate["seconds"].values()) == pytest.approx(estimate["total_seconds"])


@pytest.mark.parametrize("mode", ["top_k", "hidden_states", "sampled"])
def test_caches_that_are_not_there_are_tried(recipe, tmp_path, run, mode):
    cached = [
        "teachers.0.cached=true",
        f"cache.mode={mode}",
        "cache.directory=caches",
        "teachers.0.domains=[cats]",
    ]
    out, _ = run("preflight", recipe, *cached, "--json")
    report = json.loads(out)
    assert not (tmp_path / "caches").exists() and entries(tmp_path / "runs") == {"pico", "pico/preflight.json"}
    estimated = report["estimate"]["disk_bytes"]["cache of one"]
    assert report["estimate"]["seconds"]["cache of one"] > 0
    assert any("one" in note and "not built" in note for note in report["estimate"]["notes"])
    run("cache", recipe, *cached)
    assert estimated == pytest.approx(folder_bytes(tmp_path / "caches" / "one"), rel=0.2)
    out, _ = run("preflight", recipe, *cached, "--json")
    again = json.loads(out)
    assert again["estimate"]["disk_bytes"]["cache of one"] == folder_bytes(tmp_path / "caches" / "one")
    assert "cache of one" not in again["estimate"]["seconds"] and again["estimate"]["notes"] == []
    assert ("one" in again["ece"]) == (mode != "sampled")


def test_a_temperature_can_be_fitted_before_there_is_a_cache(recipe, run):
    fit = ["teachers.0.cached=true", "cache.mode=hidden_states", "teachers.0.weight_temperature=fit"]
    report = json.loads(run("preflight", recipe, *fit, "--json")[0])
    assert report["temperatures"]["one"]["weight_temperature"]["temperature"] > 0
    assert report["estimate"]["seconds"]["cache of one"] > 0


def test_no_estimate(recipe, tmp_path, run):
    out, err = run("preflight", recipe, "--no-estimate", "--json")
    report = json.loads(out)
    assert report["estimate"] is None and "trying the run" not in err
    assert not any("of disk" in line for line in report["verdict"])


def test_what_people_see(recipe, run):
    out, _ = run("preflight", recipe, "evaluation.generation={prompts: 1, prompt_tokens: 4, new_tokens: 4}")
    for title in (
        "Loss on held-out text",
        "Gain over the best single teacher",
        "Among the teachers",
        "Jensen-Shannon divergence of each pair",
        "What the run takes on this machine (4 steps of",
        "time: continuations",
    ):
        assert title in out
    assert "with hindsight: of each token" in out and "least uncertain is best, window:32" in out
    assert out.rstrip().splitlines()[-1].startswith("- On this machine the run takes about")


def test_a_run_that_would_fail_is_told_and_the_figures_stand(recipe, run):
    wrong = ["teachers.0.domains=[cats]", "objective.feature_weight=0.1"]
    report = json.loads(run("preflight", recipe, *wrong, "--json")[0])
    assert report["estimate"] is None
    assert report["verdict"][-1].startswith("The run itself would end in an error: ")
    assert "feature_weight" in report["verdict"][-1]


def test_mixed_domains_and_a_run_by_epochs(recipe, run):
    changes = [
        "data.mixing={kind: ddk, every: 2, blocks: 1}",
        "training.max_steps=null",
        "training.num_epochs=1.5",
    ]
    report = json.loads(run("preflight", recipe, *changes, "--json")[0])
    assert report["estimate"]["seconds"]["mixing of domains"] > 0
    blocks = 32
    assert report["estimate"]["num_steps"] == num_steps_of(load_recipe(recipe, changes), blocks, 1) == 24

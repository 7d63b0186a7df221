"""A finished run goes on with new teachers and domains: what is reported, what is replayed, what is refused."""

import json
from pathlib import Path

import pytest
import yaml

from tests.support.command import run
from tests.support.pico import TEXTS
from tests.support.runs import write_recipe


@pytest.fixture
def recipe(tmp_path, model_folder, monkeypatch) -> Path:
    """A recipe over cats and dogs; there is text of birds too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLLEGIUM_CACHE", str(tmp_path / "cache"))
    path = write_recipe(tmp_path / "files", model_folder)
    lines = [f"birds sing {text[::-1]}, number {i}" for i, text in enumerate(TEXTS)]
    (tmp_path / "files" / "birds.txt").write_text("\n".join(lines), encoding="utf-8")
    return path


def continued(recipe: Path, model_folder, teachers, name="second", run_="runs/pico") -> str:
    tree = yaml.safe_load(recipe.read_text())
    birds = {"kind": "files", "name": "birds", "path": str(recipe.parent / "birds.txt")}
    tree |= {"name": name, "student": {"kind": "continued", "run": run_}, "teachers": teachers}
    tree["data"] |= {"directory": str(recipe.parent / f"prepared-{name}")}
    tree["data"]["sources"] = [*tree["data"]["sources"], birds]
    path = recipe.parent / f"{name}.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return str(path)


def test_a_run_goes_on_and_tells_what_it_forgot(recipe, model_folder, tmp_path, monkeypatch, capsys):
    first = ["training.max_steps=20", "teachers.0.cached=true", "cache.directory=caches"]
    assert run(["cache", str(recipe), *first], monkeypatch, capsys)[0] == 0
    assert run(["train", str(recipe), *first], monkeypatch, capsys)[0] == 0
    teachers = [
        {"kind": "cached", "name": "one", "path": "caches/one", "domains": ["cats", "dogs"]},
        {"name": "three", "model": str(model_folder("three", 3)), "domains": ["birds"]},
        {"name": "previous", "model": "runs/pico/student", "domains": ["birds"]},
    ]
    second = continued(recipe, model_folder, teachers)
    code, out, err = run(["train", second, "--json"], monkeypatch, capsys)
    assert code == 0, err
    result = json.loads(out)
    continual = result["continual"]
    assert continual["runs"] == ["runs/pico"]
    assert set(continual["domains"]) == {"cats", "dogs", "birds"}
    before = json.loads((tmp_path / "runs" / "pico" / "evaluation.json").read_text())["domains"]
    for name in ("cats", "dogs"):
        figures = continual["domains"][name]
        final = result["domains"][name]["figures"]["nll"]["value"]
        assert figures["final"] == final
        assert figures["best_past"] == pytest.approx(before[name]["figures"]["nll"]["value"], rel=1e-4)
        assert figures["forgetting"]["value"] == pytest.approx(final - figures["best_past"])
        assert figures["forgetting"]["low"] <= figures["forgetting"]["value"] <= figures["forgetting"]["high"]
    birds = continual["domains"]["birds"]
    assert birds["learning"]["value"] == pytest.approx(birds["before"] - birds["final"])
    assert birds["forward_transfer"]["value"] == pytest.approx(birds["reference"] - birds["before"])
    assert "forgetting" not in birds and birds["learning"]["value"] > 0
    assert continual["mean"]["forgetting"] == pytest.approx(
        sum(continual["domains"][name]["forgetting"]["value"] for name in ("cats", "dogs")) / 2
    )

    code, out, err = run(["train", second], monkeypatch, capsys)
    assert code == 0 and "forward transfer" in out
    code, out, err = run(["evaluate", "runs/second", "--json"], monkeypatch, capsys)
    assert code == 0, err
    assert json.loads(out)["continual"]["mean"] == pytest.approx(continual["mean"], rel=1e-3)

    # A third run is measured against both that came before.
    third = continued(recipe, model_folder, teachers[1:2], name="third", run_="runs/second")
    code, out, err = run(["train", third, "--json"], monkeypatch, capsys)
    assert code == 0, err
    continual = json.loads(out)["continual"]
    assert continual["runs"] == ["runs/second", "runs/pico"]
    assert "forgetting" in continual["domains"]["birds"] and continual["mean"]["learning"] is None


def test_mistakes_are_told(recipe, model_folder, monkeypatch, capsys):
    teachers = [{"name": "three", "model": str(model_folder("three", 3))}]
    second = continued(recipe, model_folder, teachers)
    code, _, err = run(["train", second], monkeypatch, capsys)
    assert code == 65
    assert "student.run: runs/pico holds no finished run" in err

    # A cache that was made of other text is no use, even for a domain of the same name.
    cached = ["teachers.0.cached=true", "cache.directory=caches", "training.max_steps=1"]
    assert run(["cache", str(recipe), *cached], monkeypatch, capsys)[0] == 0
    assert run(["train", str(recipe), *cached], monkeypatch, capsys)[0] == 0
    teachers = [{"kind": "cached", "name": "one", "path": "caches/one", "domains": ["cats", "birds"]}]
    code, _, err = run(["train", continued(recipe, model_folder, teachers)], monkeypatch, capsys)
    assert code == 65
    assert "its cache lacks text of domain 'birds'" in err

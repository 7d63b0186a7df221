"""Tasks in a recipe: what is trained on, what is measured, and what is refused."""

import json
from pathlib import Path

import pytest

from collegium.base.errors import RecipeError
from collegium.recipe.file import load_recipe
from tests.support.command import run
from tests.support.runs import write_recipe


SOURCES = """
  add_eos: true
  sources:
    - {{kind: task, name: cats, task: sentiment, path: {reviews}}}
    - {{kind: task, name: dogs, task: summarization, path: {talks}}}
"""


@pytest.fixture
def recipe(tmp_path, model_folder, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLLEGIUM_CACHE", str(tmp_path / "cache"))
    reviews, talks = tmp_path / "reviews.txt", tmp_path / "talks.jsonl"
    reviews.write_text("\n".join(f"{i % 2} film number {i}" for i in range(60)))
    rows = [{"dialogue": f"Ann: it is {i}.\nBob: no.", "summary": f"They talk of {i}."} for i in range(60)]
    talks.write_text("\n".join(map(json.dumps, rows)))
    path = write_recipe(tmp_path / "files", model_folder)
    head, rest = path.read_text().split("  sources:\n")
    tail = rest[rest.index("objective:") :]
    tail = tail.replace("{bootstrap_samples: 100}", "{bootstrap_samples: 100, tasks: [%s, %s]}")
    wanted = f"max_items: 6, max_new_tokens: 3, path: {reviews}", f"max_items: 5, max_new_tokens: 3, path: {talks}"
    tail %= (f"{{task: sentiment, {wanted[0]}}}", f"{{task: summarization, name: talks, {wanted[1]}}}")
    path.write_text(head.rstrip() + SOURCES.format(reviews=reviews, talks=talks) + tail)
    return path


def test_trained_and_measured(recipe, monkeypatch, capsys):
    code, out, err = run(["train", str(recipe), "--json"], monkeypatch, capsys)
    assert code == 0, err
    tasks = json.loads(out)["tasks"]
    assert {name: (task["task"], task["items"]) for name, task in tasks.items()} == {
        "sentiment": ("sentiment", 6),
        "talks": ("summarization", 5),
    }
    for task in tasks.values():
        assert set(task["teachers"]) == {"one", "two"}
        assert task["figures"].keys() == task["teachers"]["one"].keys()
        assert len(task["per_item"]) == task["items"]
    assert tasks["talks"]["baselines"] == {"random": 0.25}
    assert tasks["sentiment"]["sample"]["prompt"].startswith("Review: film number ")

    code, out, err = run(["evaluate", "runs/pico"], monkeypatch, capsys)
    assert code == 0, err
    assert "sentiment (6) accuracy *" in out and "talks (5) rouge_l" in out and "majority" in out
    assert json.loads(Path("runs/pico/evaluation.json").read_text())["tasks"] == tasks


def test_prompts_that_are_learnt_are_not_measured(recipe, monkeypatch, capsys):
    found = {}
    for name in ("false", "true"):
        changes = [f"training.learn_prompts={name}", f"output_dir=runs/{name}", "training.max_steps=2"]
        code, out, err = run(
            ["train", str(recipe), "evaluation.tasks=[]", *changes, "--json"], monkeypatch, capsys
        )
        assert code == 0, err
        found[name] = json.loads(out)
    given, learnt = ({d: row["tokens"] for d, row in of["domains"].items()} for of in found.values())
    assert given == learnt
    losses = [Path(f"runs/{name}/metrics.jsonl").read_text().splitlines()[0] for name in found]
    first, other = (json.loads(line)["train/cross_entropy"] for line in losses)
    assert first != other, "the first step has seen the same student and the same blocks"


def test_teachers_left_out_or_read_from_a_cache(recipe, monkeypatch, capsys):
    small = ["training.max_steps=1", "--json"]
    code, out, err = run(["train", str(recipe), "evaluation.task_teachers=false", *small], monkeypatch, capsys)
    assert code == 0, err
    alone = json.loads(out)["tasks"]
    assert {len(task["teachers"]) for task in alone.values()} == {0}
    cached = ["teachers.0.cached=true", "output_dir=runs/cached", "cache.mode=hidden_states"]
    code, _, err = run(["cache", str(recipe), *cached], monkeypatch, capsys)
    assert code == 0, err
    code, out, err = run(["train", str(recipe), *cached, *small], monkeypatch, capsys)
    assert code == 0, err
    assert {tuple(task["teachers"]) for task in json.loads(out)["tasks"].values()} == {("one", "two")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("evaluation.tasks.0.part=all", "reads what data.sources trains on"),
        ("data.sources.0.part=all", "reads what data.sources trains on"),
        ("evaluation.tasks.0.evaluation_share=0.5", "with one evaluation_share"),
        ("evaluation.tasks.1.name=sentiment", "sentiment is there twice"),
        ("evaluation.tasks.0.dataset=a/b", "either `dataset`"),
        ("data.sources.0.split=test", "leave them out with `path`"),
    ],
)
def test_refused(recipe, change, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(recipe, [change])


def test_a_part_without_items_is_refused_before_training(recipe, monkeypatch, capsys):
    changes = ["evaluation.tasks.0.evaluation_share=0.0", "data.sources.0.evaluation_share=0.0"]
    code, _, err = run(["train", str(recipe), *changes], monkeypatch, capsys)
    assert code == 65
    assert "has no item of part evaluation" in err and not Path("runs/pico/checkpoints").exists()

"""Teachers may be called anything: from the recipe to the page, every figure is its own teacher's."""

import json

import pytest

from collegium.report.evaluation_file import read_evaluation
from tests.support.command import command
from tests.support.runs import write_recipe


SHORT = (
    "training.max_steps=1",
    "data.held_out_documents=2",
    "evaluation.max_blocks=1",
    "evaluation.samples={passage_tokens: 6, prompt_tokens: 6, new_tokens: 3}",
)

NAMES = ("own", "all", "common", "fused", "student", "before", "mean")


@pytest.fixture
def folder(tmp_path, model_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLLEGIUM_CACHE", str(tmp_path / "cache"))
    write_recipe(tmp_path / "files", model_folder)
    return tmp_path


@pytest.fixture
def run(monkeypatch, capsys):
    return command(monkeypatch, capsys)


def test_figures_follow_the_teacher_and_not_its_name(folder, model_folder, run):
    models = [str(model_folder(f"teacher-{seed}", seed)) for seed in range(1, len(NAMES) + 1)]
    measured = {}
    for case, names in {"plain": [f"t{seed}" for seed in range(len(NAMES))], "taken": NAMES}.items():
        teachers = [{"name": name, "model": model} for name, model in zip(names, models, strict=True)]
        options = [f"teachers={json.dumps(teachers)}", f"output_dir=runs/{case}", *SHORT]
        code, _, err = run("train", "files/recipe.yaml", *options)
        assert code == 0, err
        measured[case] = read_evaluation(folder / "runs" / case)
    plain, taken = measured["plain"], measured["taken"]
    assert taken.mean.kl_own == plain.mean.kl_own and taken.mean.kl_common == plain.mean.kl_common
    assert len({taken.mean.teacher(name).kl for name in NAMES} | {taken.mean.kl_own, taken.mean.kl_common}) == 9
    for place, name in enumerate(NAMES):
        other = f"t{place}"
        for domain in taken.domains:
            ours, theirs = (found.domains[domain].figures for found in (taken, plain))
            assert ours.teacher(name) == theirs.teacher(other) != ours.teacher(NAMES[place - 1])
            assert taken.passages[domain].teachers[name] == plain.passages[domain].teachers[other]
            assert taken.continuations[domain].teachers[name] == plain.continuations[domain].teachers[other]
        assert taken.teachers.mean.teacher(name) == plain.teachers.mean.teacher(other)
        assert taken.differences.teachers[name] == plain.differences.teachers[other]
        assert taken.curves[f"train/teacher/{name}/weight"] == plain.curves[f"train/teacher/{other}/weight"]

    code, out, err = run("train", "files/recipe.yaml", *options)  # it is finished, so its figures are shown
    assert code == 0, err
    assert "teacher/own/kl (not for ranking)" in out and "kl/own (not for ranking)" in out
    code, _, err = run("report", "runs/taken")
    assert code == 0, err
    page = (folder / "runs/taken/report.html").read_text(encoding="utf-8")
    for name in NAMES:
        kl = taken.mean.teacher(name).kl
        assert f"KL from {name} to the student" in page and f"<td>{kl:.3f}</td>" in page
        assert f"teacher {name}" in page

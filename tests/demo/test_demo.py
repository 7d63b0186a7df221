"""The demo's recipe assembles, and the demo runs, with pico models in place of those that come in packages."""

import json
from pathlib import Path

import pytest

from collegium.assembly.run import Run
from collegium.base.references import resolve_reference
from collegium.demo import run as demo
from collegium.demo.run import demo_recipe, run_demo
from collegium.teachers.local import LocalTeacher
from tests.support.pico import TEXTS


STUDENTS = ("student before", "student, cross-entropy only", "student, distilled")


@pytest.fixture
def overrides(tmp_path, model_folder, monkeypatch) -> list[str]:
    """The recipe as it ships, with three layers in place of thirty, and a little text."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLLEGIUM_CACHE", str(tmp_path / "cache"))
    changes = [f"student.model={model_folder('base', 0, layers=3)}", "student.keep_layers=[0, 2]"]
    for i, source in enumerate(demo_recipe(tmp_path, name="fused").data.sources):
        path = tmp_path / f"{source.name}.txt"
        lines = [f"{source.name} {number}: {line}" for number, line in enumerate(TEXTS)]
        path.write_text("\n".join(lines), encoding="utf-8")
        changes.append(f"data.sources.{i}={{kind: files, name: {source.name}, path: {path}}}")
        changes.append(f"teachers.{i}.model={model_folder(source.name, i + 1, layers=3)}")
        changes.append(f"teachers.{i}.adapter=null")
    return [
        *changes,
        *("data.block_size=32", "data.held_out_documents=4"),
        *("training.max_steps=2", "training.save_every=1", "training.warmup_steps=0"),
        *("evaluation.max_blocks=2", "evaluation.bootstrap_samples=100"),
    ]


def test_the_recipe_as_it_ships(tmp_path):
    recipe = demo_recipe(tmp_path, name="fused")
    assert recipe.run_dir == tmp_path / "fused"
    assert [teacher.name for teacher in recipe.teachers] == ["web", "code", "stories"]
    assert list(recipe.domains) == ["code", "stories", "web"]
    for teacher in recipe.teachers:
        adapter = Path(resolve_reference(teacher.adapter))
        assert (adapter / "adapter_config.json").is_file() and (adapter / "adapter_model.safetensors").is_file()
        assert teacher.model == recipe.student.model
    plain = demo_recipe(tmp_path, name="plain", overrides=["objective.kd_weight=0", "teachers=[]"])
    assert plain.data == recipe.data and plain.training == recipe.training and plain.student == recipe.student


def test_the_recipe_assembles(tmp_path, overrides):
    run = Run(demo_recipe(tmp_path, name="fused", overrides=overrides), folder=tmp_path / "fused")
    assert all(isinstance(teacher, LocalTeacher) for teacher in run.teachers)
    assert sorted(run.held_out.domains) == ["code", "stories", "web"]
    assert run.student.config.num_hidden_layers == 2
    assert run.trainer.objective.teacher_names == ("web", "code", "stories")


def test_the_demo_runs_and_goes_on_where_it_was_stopped(tmp_path, overrides, monkeypatch, capsys):
    def small(output, *, name, overrides=(), changes=tuple(overrides)):
        return demo_recipe(output, name=name, overrides=[*changes, *overrides])

    monkeypatch.setattr(demo, "demo_recipe", small)
    run_demo(tmp_path / "out", as_json=True)
    first = json.loads(capsys.readouterr().out)
    assert set(STUDENTS) < set(first["nll"])
    assert first["nll"]["student, distilled"] != first["nll"]["student, cross-entropy only"]
    assert (tmp_path / "out" / "report.html").is_file()
    for name in ("fused", "cross-entropy"):
        assert (tmp_path / "out" / name / "student" / "README.md").is_file()
    monkeypatch.setattr(demo, "train_student", lambda *_: pytest.fail("trained again"))
    run_demo(tmp_path / "out", as_json=True)
    again = json.loads(capsys.readouterr().out)
    assert {**again, "seconds": 0} == {**first, "seconds": 0}

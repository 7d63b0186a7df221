"""Figure 3: teachers of one task each, local copies of the hub's sets, and what is read of finished runs."""

import json

import pytest

from collegium.base.errors import RecipeError
from collegium.paper.command import specification_path
from collegium.paper.experiment import plan
from collegium.paper.figure3 import figure3, task_sections
from collegium.paper.specification import in_folder, load_specification, with_local_files
from collegium.recipe.recipe import Recipe


SMALL = load_specification(specification_path("small", "figure3"))


def test_every_teacher_is_an_adapter_over_one_base_and_asked_in_its_own_task():
    experiment = figure3(SMALL)
    (run,) = [run for run in plan(experiment, SMALL, lambda run: 1.0).all_runs if run.row == "ours"]
    recipe = Recipe.model_validate(run.recipe)
    assert {teacher.name for teacher in recipe.teachers} == set(SMALL.experts)
    assert all(teacher.domains == (teacher.name,) for teacher in recipe.teachers)
    assert len({teacher.model for teacher in recipe.teachers}) == 1
    assert len({teacher.adapter for teacher in recipe.teachers}) == 5


def test_both_rows_differ_in_what_teaches_alone():
    runs = {run.row: run for run in plan(figure3(SMALL), SMALL, lambda run: 1.0).all_runs}
    ours, alone = (dict(runs[name].recipe) for name in ("ours", "ce"))
    assert {key for key in ours if ours.get(key) != alone.get(key)} == {"teachers", "objective"}


def test_items_that_measure_are_of_the_part_that_nothing_is_trained_on():
    judge = Recipe.model_validate(figure3(SMALL).judges["experts"])
    assert [task.label for task in judge.evaluation.tasks] == list(SMALL.sources)
    assert all(task.part == "evaluation" for task in judge.evaluation.tasks)
    assert all(source.part == "train" for source in judge.data.sources)


def test_local_copies_stand_for_the_hub_wherever_they_are(tmp_path):
    folder = tmp_path / "copies"
    folder.mkdir()
    found = [with_local_files(SMALL, folder, tmp_path / name) for name in ("one", "two")]
    assert found[0] == found[1]  # so keys of runs are the same
    for name, source in found[0].sources.items():
        assert "dataset" not in source and "split" not in source
        assert source["path"] in (SMALL.local_files[name], f"OUTPUT/local/{SMALL.local_files[name]}")
    assert (tmp_path / "one/local").resolve() == folder.resolve()
    sections = in_folder(task_sections(found[0]), tmp_path / "one")
    assert sections[0]["path"].startswith(str(tmp_path / "one/local/"))


def test_what_local_cannot_mean_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="not a folder"):
        with_local_files(SMALL, tmp_path / "absent", tmp_path)
    with pytest.raises(RecipeError, match="names no local_files"):
        with_local_files(load_specification(specification_path("small")), tmp_path, tmp_path)


def test_the_specification_is_the_same_as_json(tmp_path):
    again = type(SMALL).model_validate(json.loads(SMALL.model_dump_json()))
    assert again == SMALL

"""Tasks in an experiment: scores of a student and of the specialists on the same items.

A specialist answers only its own tasks, those named like a domain in which it teaches. It is not meant for the
others, and they would cost four times as much again.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from collegium.assembly.run import Run
from collegium.assembly.tasks import answer_tasks, student_sheet, teacher_sheets
from collegium.base.digests import write_sealed
from collegium.evaluation.tasks import TaskResult, baselines
from collegium.paper.specification import in_folder
from collegium.recipe.recipe import Recipe


def student_tasks(model: PreTrainedModel, judge: Run) -> dict[str, Any] | None:
    """Score a student: the primary figure of each task with every item's part in it; None without tasks."""
    if not judge.tasks:
        return None
    sheet = student_sheet(judge, model)
    return {result.items.name: _as_numbers(result) for result in answer_tasks(sheet, judge.tasks)}


def measure_specialists(content: Mapping[str, Any], output: Path, path: Path) -> None:
    """Write the scores of each teacher on its tasks, those of answers that read no prompt, and teachers' sizes."""
    run = Run(Recipe.model_validate(in_folder(content, output)))
    run.make("text", "tasks", "teachers")
    found: dict[str, Any] = {
        task.name: {
            "task": task.task,
            "primary": task.primary,
            "items": len(task.items),
            "baselines": baselines(task),
            "teachers": {},
        }
        for task in run.tasks
    }
    sizes = {}
    for section, sheet in zip(run.recipe.teachers, teacher_sheets(run), strict=True):
        own = [task for task in run.tasks if section.domains is None or task.name in section.domains]
        for result in answer_tasks(sheet, own):
            found[result.items.name]["teachers"][section.name] = _as_numbers(result)
        model = sheet.model.underlying_model
        assert model is not None, "teachers that do tasks run here"
        sizes[section.name] = model.num_parameters
    write_sealed(path, {"tasks": found, "parameters": sizes})


def num_parameters(model: PreTrainedModel) -> int:
    """Count the parameters of a model, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def _as_numbers(result: TaskResult) -> dict[str, Any]:
    statistics = result.figures[result.items.primary].statistics
    return {"value": result.value, "per_item": [[round(float(v), 6) for v in row] for row in statistics]}

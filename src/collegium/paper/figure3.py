"""Figure 3: five teachers, each good at one task, and one student that should be good at all.

Each teacher is asked only in its own task, so one of five teachers runs at a time, and none has to be certain
about tasks that it never saw. The student that they teach is compared with one that reads the same text without
teachers. Students and teachers are measured on the same items. No torch here.
"""

from collections.abc import Sequence
from typing import Any

from collegium.paper.experiment import Best, Experiment, Row, judge_recipe, teacher_sections
from collegium.paper.specification import Specification


def figure3(specification: Specification) -> Experiment:
    """Build the figure at a scale."""
    experts = specification.experts
    judge = judge_recipe(specification, experts)
    judge["evaluation"] = {**judge.get("evaluation", {}), "tasks": task_sections(specification)}

    def rows(best: Best) -> Sequence[Row]:
        group = "Students"
        return [
            Row("ours", "Taught by the five", group, taught(specification, 0.9), headline=True),
            Row("ce", "Without teachers", group, {"method": "ce"}, headline=True),
        ]

    title = "Figure 3: one student for five tasks"
    return Experiment("figure3", title, rows, experts, judges={"experts": judge}, has_tasks=True)


def task_sections(specification: Specification) -> list[dict[str, Any]]:
    """Build the evaluation section of each source that is a task, under the source's name."""
    read = ("task", "dataset", "path", "config", "split", "revision", "evaluation_share", "max_characters")
    return [
        {
            "name": name,
            "max_items": specification.task_items,
            **{key: source[key] for key in read if key in source},
        }
        for name, source in specification.sources.items()
        if source["kind"] == "task" and specification.task_items is not None
    ]


def taught(specification: Specification, kd_weight: float) -> dict[str, Any]:
    """Build the changes of a row that learns from each teacher on its task, and a little from the text."""
    return {
        "teachers": teacher_sections(specification, specification.experts),
        "objective": {"kd_weight": kd_weight, "weighting": "uniform"},
    }

"""Figure 3: five teachers, each good at one task, and one student that is to be good at all.

Each teacher is asked in its own task only, so of five teachers one runs at a time, and its certainty about
tasks that it never saw is not asked for. Beside the student that they teach stands one that learns the
answers alone. Students and teachers are measured by the same items. No torch here.
"""

from collections.abc import Sequence
from typing import Any

from collegium.reproduce.experiment import Best, Experiment, Row, student_recipe, teacher_sections
from collegium.reproduce.specification import Specification


def figure3(specification: Specification) -> Experiment:
    """The figure at a scale."""
    experts = specification.experts
    judge = {**student_recipe(specification), "teachers": teacher_sections(specification, experts, cached=False)}
    judge["evaluation"] = {**judge.get("evaluation", {}), "tasks": list(specification.tasks)}

    def rows(best: Best) -> Sequence[Row]:
        group = "Students"
        return [
            Row("ours", "Taught by the five", group, taught(specification, 0.9), headline=True),
            Row("ce", "Answers alone", group, {"method": "ce"}, headline=True),
        ]

    return Experiment("figure3", "Figure 3: one student for five tasks", rows, experts, judges={"experts": judge})


def taught(specification: Specification, kd_weight: float) -> dict[str, Any]:
    """Changes of a row that learns from each teacher on its task, and a little from the answers."""
    return {
        "teachers": teacher_sections(specification, specification.experts),
        "objective": {"kd_weight": kd_weight, "weighting": "uniform"},
    }

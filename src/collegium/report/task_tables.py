"""Tasks: the student beside guesses that read no prompt and beside its teachers, and what lm-eval said."""

from collections.abc import Iterator, Mapping
from typing import Any

from collegium.base.visible import visible
from collegium.report.cells import UNKNOWN, Cell, Table, with_interval
from collegium.report.records import Figure


GUESSES = ("random", "majority")


def task_tables(evaluation: Mapping[str, Any]) -> Iterator[Table]:
    """One table of the recipe's tasks, and one of lm-eval's, if there are some."""
    if tasks := evaluation.get("tasks"):
        teachers = list(dict.fromkeys(name for task in tasks.values() for name in task["teachers"]))
        rows = [row for name, task in tasks.items() for row in _rows(name, task, teachers)]
        columns = ["", "student", *GUESSES, *(f"teacher {visible(name)}" for name in teachers)]
        yield Table("Tasks (* is the figure that stands for the task)", columns, rows)
    if found := evaluation.get("lm_eval"):
        figures = [
            [Cell(f"{visible(task)} {visible(name)}"), Cell(f"{value:.4f}")]
            for task, values in found["results"].items()
            for name, value in values.items()
            if isinstance(value, float)
        ]
        yield Table(f"Tasks of lm-eval {visible(found['lm_eval_version'])}", ["", "student"], figures)


def _rows(name: str, task: Mapping[str, Any], teachers: list[str]) -> Iterator[list[Cell]]:
    for figure, content in task["figures"].items():
        is_primary = figure == task["primary"]
        guesses = [task["baselines"].get(guess) if is_primary else None for guess in GUESSES]
        yield [
            Cell(f"{visible(name)}: {visible(figure)}{' *' if is_primary else ''}", f"{task['items']:,} items"),
            with_interval(Figure.of(content), 3),
            *(Cell(UNKNOWN if guess is None else f"{guess:.3f}") for guess in guesses),
            *(with_interval(Figure.of(task["teachers"].get(who, {}).get(figure)), 3) for who in teachers),
        ]

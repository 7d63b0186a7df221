"""Tasks: the student beside guesses that read no prompt and beside its teachers, and what lm-eval said."""

from collections.abc import Iterator, Sequence

from collegium.base.visible import visible
from collegium.report.cells import Cell, Table, mean_cell, with_interval
from collegium.report.evaluation import Evaluation
from collegium.report.samples import TaskScores


GUESSES = ("random", "majority")


def task_tables(evaluation: Evaluation) -> Iterator[Table]:
    """One table of the recipe's tasks, and one of lm-eval's, if there are some."""
    if tasks := evaluation.tasks:
        teachers = list(dict.fromkeys(name for task in tasks.values() for name in task.teachers))
        rows = [row for name, task in tasks.items() for row in _rows(name, task, teachers)]
        columns = ["", "student", *GUESSES, *(f"teacher {visible(name)}" for name in teachers)]
        yield Table("Tasks (* is the figure that stands for the task)", columns, rows)
    if (found := evaluation.lm_eval) is not None:
        figures = [
            [Cell(f"{visible(task)} {visible(name)}"), Cell(f"{value:.4f}")]
            for task, values in found.results.items()
            for name, value in values.items()
            if isinstance(value, float)
        ]
        yield Table(f"Tasks of lm-eval {visible(found.lm_eval_version)}", ["", "student"], figures)


def _rows(name: str, task: TaskScores, teachers: Sequence[str]) -> Iterator[list[Cell]]:
    for figure, content in task.figures.items():
        is_primary = figure == task.primary
        mark = " *" if is_primary else ""
        yield [
            Cell(f"{visible(name)}: {visible(figure)}{mark}", f"{task.items:,} items"),
            with_interval(content, 3),
            *(mean_cell(task.baselines.get(guess) if is_primary else None, 3) for guess in GUESSES),
            *(with_interval(task.teachers.get(who, {}).get(figure), 3) for who in teachers),
        ]

"""Scores on tasks as markdown: answers that read no prompt, specialists, students. No torch here."""

from collections.abc import Mapping

from collegium.paper.markdown import NOTHING, number, probability, table, with_interval
from collegium.paper.measured import Measured, MeasuredRow, Score, Task
from collegium.paper.spread import Spread


def task_tables(results: Measured) -> list[str]:
    """Scores in each task, and how far students are from its specialist."""
    tasks = results.tasks
    items = ", ".join(f"{task.num_items} of {name}" for name, task in tasks.items())
    about = (
        f"On the same items for all: {items}. Answers that read no prompt are single values. Intervals are over"
        " items, for students with several seeds over these too. Kept is a student's mean as a share of that of"
        " the specialists, each in its own task.\n"
    )
    apart = (
        "A student's score minus that of the task's specialist, in points, drawn on the same items; p is corrected"
        " by Holm's method over this table.\n"
    )
    titles = ["model", *(f"{name}, {task.primary}, %" for name, task in tasks.items()), "mean, %", "kept, %"]
    scores = [*_fixed_scores(tasks), *(_student_scores(row, tasks) for row in results.rows)]
    differences = [[row.label, *(_above_specialist(row.score(name)) for name in tasks)] for row in results.rows]
    parts = ["### Scores\n", about, table([*titles, "seeds"], scores) + "\n"]
    return [*parts, apart, table(["student", *tasks], differences) + "\n"]


def _fixed_scores(tasks: Mapping[str, Task]) -> list[list[str]]:
    """Lines of answers that read no prompt, and of teachers."""
    lines = []
    for answers in dict.fromkeys(name for task in tasks.values() for name in task.baselines):
        scores = [task.baselines.get(answers) for task in tasks.values()]
        cells = [number(None if score is None else 100.0 * score, 1) for score in scores]
        lines.append([f"{answers} answers", *cells, "", "", ""])
    for teacher in dict.fromkeys(name for task in tasks.values() for name in task.teachers):
        cells = [_percent(task.teachers.get(teacher)) for task in tasks.values()]
        lines.append([f"teacher {teacher}", *cells, "", "", ""])
    return lines


def _percent(share: Spread | None) -> str:
    return with_interval(None if share is None else share.times(100.0), 1)


def _student_scores(row: MeasuredRow, tasks: Mapping[str, Task]) -> list[str]:
    shares = [*(row.score(name).spread for name in tasks), row.tasks_mean, row.kept]
    return [row.label, *map(_percent, shares), str(len(row.seeds))]


def _above_specialist(score: Score) -> str:
    if score.above_specialist is None:
        return NOTHING
    points = with_interval(score.above_specialist.times(100.0), 1, "+")
    return f"{points}, p {probability(score.p_holm)}"

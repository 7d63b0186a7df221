"""Scores on tasks as markdown: answers that read no prompt, specialists, students. No torch here."""

from collections.abc import Mapping

from collegium.paper.markdown import number, probability, table, with_interval
from collegium.paper.measured import Content, Measured, Spread


def task_tables(content: Content, results: Measured) -> list[str]:
    """Scores in each task, and how far students are from its specialist; see `collegium.paper.task_scores`."""
    tasks = content["tasks"]
    items = ", ".join(f"{task['items']} of {name}" for name, task in tasks.items())
    about = (
        f"On the same items for all: {items}. Answers that read no prompt are single values. Intervals are over"
        " items, for students with several seeds over these too. Kept is a student's mean as a share of that of"
        " the specialists, each in its own task.\n"
    )
    apart = (
        "A student's score minus that of the task's specialist, in points, drawn on the same items; p is corrected"
        " by Holm's method over this table.\n"
    )
    titles = ["model", *(f"{name}, {task['primary']}, %" for name, task in tasks.items()), "mean, %", "kept, %"]
    scores = [*_fixed_scores(tasks), *(_student_scores(row, tasks) for row in results.rows)]
    differences = [[row["label"], *(_to_specialist(row["tasks"][name]) for name in tasks)] for row in results.rows]
    parts = ["### Scores\n", about, table([*titles, "seeds"], scores) + "\n"]
    return [*parts, apart, table(["student", *tasks], differences) + "\n"]


def _fixed_scores(tasks: Content) -> list[list[str]]:
    """Lines of answers that read no prompt, and of teachers."""
    lines = []
    for kind, title in (("baselines", "{} answers"), ("teachers", "teacher {}")):
        for name in dict.fromkeys(name for task in tasks.values() for name in task[kind]):
            scores = [task[kind].get(name) for task in tasks.values()]
            lines.append([title.format(name), *map(_score, scores), "", "", ""])
    return lines


def _score(score: Content | float | None) -> str:
    if isinstance(score, Mapping):
        return with_interval(Spread.covering(score["value"], score).times(100.0), 1)
    return number(None if score is None else 100.0 * score, 1)


def _student_scores(row: Content, tasks: Content) -> list[str]:
    figures = [*(row["tasks"].get(task) for task in tasks), row["tasks_mean"], row["kept"]]
    spreads = [Spread.of(figure, 100.0) for figure in figures]
    return [row["label"], *(with_interval(spread, 1) for spread in spreads), str(len(row["seeds"]))]


def _to_specialist(score: Content) -> str:
    test = score["to_specialist"]
    if test is None:
        return number(None, 1)
    points = with_interval(Spread.covering(test["value"], test).times(100.0), 1, "+")
    return f"{points}, p {probability(test['p_holm'])}"

"""Scores on tasks in the results: students beside the specialist of each task, on the same items.

As with losses, a difference could be due to chance in two ways, the seeds and the items. Intervals over items
resample the items, the same for a student and its specialist, and keep the seeds; so they exist for one seed
too, and say nothing about another.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from collegium.evaluation.resampling import CorpusFigure, Floats
from collegium.evaluation.statistics import bootstrap_figure, holm, paired_figure_difference
from collegium.evaluation.stratified import stratified_figure_difference, stratified_figure_ratio
from collegium.evaluation.student_t import paired_t_test
from collegium.paper.numbers import BOOTSTRAP, CONFIDENCE, rounded, rounded_fields, seeds_summary
from collegium.paper.run_result import RunResult
from collegium.report.interval import Difference


Figures = Mapping[str, CorpusFigure]
"""Figures by task."""


def described(specialists: Mapping[str, Any], student: RunResult) -> dict[str, Any]:
    """Describe the tasks, the scores of teachers and of answers that read no prompt, and the models' sizes.

    The specialist of a task is the teacher of its name.

    Args:
        specialists: See `collegium.paper.task_work.measure_specialists`.
        student: Any of the runs, since all students are of one size.
    """
    tasks = {
        name: {
            **task,
            "teachers": {teacher: _scored(_figure([score])) for teacher, score in task["teachers"].items()},
            "specialist": name if name in task["teachers"] else None,
        }
        for name, task in specialists["tasks"].items()
    }
    sizes = {"student": student.num_parameters, "specialist": max(specialists["parameters"].values())}
    return {"tasks": tasks, "parameters": sizes}


def task_scores(
    measured: Mapping[str, Sequence[RunResult]], baseline: str, specialists: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Score the students of each row.

    Each row has `tasks`, the score in each over seeds with an interval over `items` and the difference
    `to_specialist`, None if it has none; `tasks_mean`, the plain mean over tasks; `kept`, that mean as a share of
    the specialists', None if a task has none; and `tasks_against_baseline`, the difference of that mean from the
    baseline's, None for the baseline. Holm's correction of `to_specialist` is over all rows and tasks.

    Args:
        measured: Runs of each row, one per seed.
        baseline: Name of the row that others are compared with.
        specialists: See `described`.
    """
    tasks = specialists["tasks"].items()
    best = {name: _figure([task["teachers"][name]]) for name, task in tasks if name in task["teachers"]}
    figures = {row: _figures(results) for row, results in measured.items()}
    rows = {row: _row(measured[row], figures[row], best) for row in measured}
    scores = [score for row in rows.values() for score in row["tasks"].values()]
    tests = [score["to_specialist"] for score in scores if score["to_specialist"]]
    for test, adjusted in zip(tests, holm([t["p_value"] for t in tests]).tolist(), strict=True):
        test["p_holm"] = rounded(adjusted)
    for name, row in rows.items():
        row["tasks_against_baseline"] = None
        if name != baseline:
            over_items = stratified_figure_difference(figures[name], figures[baseline], **BOOTSTRAP)
            row["tasks_against_baseline"] = {
                "over_seeds": rounded_fields(_over_seeds(measured[name], measured[baseline])),
                "over_items": rounded_fields(over_items),
            }
    return rows


def _row(results: Sequence[RunResult], figures: Figures, best: Figures) -> dict[str, Any]:
    means = [_mean(result) for result in results]
    return {
        "tasks": {
            name: {
                **seeds_summary([result.tasks[name]["value"] for result in results]),
                "items": _scored(figure),
                "to_specialist": _apart(figure, best[name]) if name in best else None,
            }
            for name, figure in figures.items()
        },
        "tasks_mean": seeds_summary(means),
        "kept": _kept(means, figures, best) if set(best) == set(figures) else None,
    }


def _kept(means: Sequence[float], figures: Figures, best: Figures) -> dict[str, Any]:
    reference = sum(figure.value for figure in best.values()) / len(best)
    over_items = stratified_figure_ratio(figures, best, **BOOTSTRAP)
    return {**seeds_summary([mean / reference for mean in means]), "items": rounded_fields(over_items)}


def _apart(figure: CorpusFigure, specialist: CorpusFigure) -> dict[str, float | None]:
    return rounded_fields(paired_figure_difference(figure, specialist, **BOOTSTRAP))


def _over_seeds(results: Sequence[RunResult], baseline: Sequence[RunResult]) -> Difference:
    differences = [_mean(a) - _mean(b) for a, b in zip(results, baseline, strict=False)]
    return paired_t_test(differences, confidence=CONFIDENCE)


def _mean(result: RunResult) -> float:
    values = [task["value"] for task in result.tasks.values()]
    return float(sum(values) / len(values))


def _figures(results: Sequence[RunResult]) -> dict[str, CorpusFigure]:
    return {name: _figure([result.tasks[name] for result in results]) for name in results[0].tasks}


def _figure(scores: Sequence[Mapping[str, Any]]) -> CorpusFigure:
    """Mean over seeds of a ratio of sums over items."""
    return CorpusFigure(np.concatenate([score["per_item"] for score in scores], axis=1), _mean_of_ratios)


def _mean_of_ratios(sums: Floats) -> float:
    """Average over seeds, from [2 S] numerators and denominators; a ratio of nothing to nothing is 0."""
    pairs = sums.reshape(-1, 2)
    return float(np.mean([above / below if below else 0.0 for above, below in pairs]))


def _scored(figure: CorpusFigure) -> dict[str, float | None]:
    return rounded_fields(bootstrap_figure(figure, **BOOTSTRAP))

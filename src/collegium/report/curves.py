"""What was logged in training, thinned out to what a plot can show.

Up to `MAX_POINTS` points are kept of each series. Where there are more, a point is the mean of the logged values
that it stands for, at the step of the last one: single steps are too noisy to be read, and dropping them hides
what happened.
"""

from collections.abc import Mapping, Sequence
from typing import Any


MAX_POINTS = 200

_NOT_A_COURSE = (
    "train_runtime",
    "samples_per_second",
    "steps_per_second",
    "total_flos",
    "train/train_loss",
    "epoch",
)
"""Figures of the whole training, or of the clock."""


def curves_of(records: Sequence[Mapping[str, Any]], *, max_points: int = MAX_POINTS) -> dict[str, Any]:
    """Series by name, each with its `step` and `value` lists.

    Args:
        records: Lines of `metrics.jsonl`, in order; each has `step`.
        max_points: Of each series.
    """
    series: dict[str, list[tuple[int, float]]] = {}
    for record in records:
        for name, value in record.items():
            if _is_course(name) and isinstance(value, int | float) and not isinstance(value, bool):
                series.setdefault(name, []).append((int(record["step"]), float(value)))
    return {name: _thinned(points, max_points) for name, points in series.items()}


def _is_course(name: str) -> bool:
    return name != "step" and not name.endswith(_NOT_A_COURSE)


def _thinned(points: Sequence[tuple[int, float]], max_points: int) -> dict[str, list[float]]:
    size = -(-len(points) // max_points)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return {
        "step": [group[-1][0] for group in groups],
        "value": [float(f"{sum(value for _, value in group) / len(group):.6g}") for group in groups],
    }

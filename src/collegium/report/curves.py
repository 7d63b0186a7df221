"""Series that were logged in training, thinned out to what a plot can show.

Up to `MAX_POINTS` points are kept of each series. Where there are more, a point is the mean of the logged values
that it stands for, at the step of the last one: single steps are too noisy to be read, and dropping them hides
what happened.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from collegium.report.evaluation import Curve
from collegium.report.metric_names import OF_THE_WHOLE_TRAINING, STEP, is_read


MAX_POINTS = 200


def curves_of(records: Sequence[Mapping[str, Any]], *, max_points: int = MAX_POINTS) -> dict[str, Curve]:
    """Series by metric.

    Args:
        records: Lines of `metrics.jsonl`, in order; each has its step.
        max_points: Of each series.
    """
    series: dict[str, list[tuple[int, float]]] = {}
    for record in records:
        for name, value in record.items():
            if _is_drawn(name) and isinstance(value, int | float) and not isinstance(value, bool):
                series.setdefault(name, []).append((int(record[STEP]), float(value)))
    return {name: _thinned(points, max_points) for name, points in series.items()}


def _is_drawn(name: str) -> bool:
    return name != STEP and not name.endswith(OF_THE_WHOLE_TRAINING) and not is_read(name)


def _thinned(points: Sequence[tuple[int, float]], max_points: int) -> Curve:
    size = -(-len(points) // max_points)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return Curve(
        step=tuple(group[-1][0] for group in groups),
        value=tuple(float(f"{sum(value for _, value in group) / len(group):.6g}") for group in groups),
    )

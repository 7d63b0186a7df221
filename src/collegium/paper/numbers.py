"""Numbers as the results' JSON holds them: six digits, and None in place of NaN and Inf."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

from collegium.evaluation.student_t import paired_t_test
from collegium.report.interval import Difference, Interval


CONFIDENCE: Final = 0.95
"""Confidence of all intervals."""

BOOTSTRAP: Final[dict[str, Any]] = {"confidence": CONFIDENCE, "num_samples": 2000, "seed": 0}
"""Settings of the bootstrap over documents and items."""


def rounded(value: float) -> float | None:
    """Round to six significant digits; None for NaN and Inf, which JSON cannot hold."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def rounded_fields(interval: Interval) -> dict[str, float | None]:
    """Round an interval, or a difference with its p-value, which too few documents do not have."""
    found = asdict(interval)
    if isinstance(interval, Difference) and not interval.has_enough:
        found["p_value"] = math.nan
    return {key: rounded(value) for key, value in found.items() if key != "documents"}


def seeds_summary(values: Sequence[float]) -> dict[str, Any]:
    """Return mean, standard deviation, Student's interval and the values, one per seed."""
    interval = paired_t_test(values, confidence=CONFIDENCE)
    spread = math.nan
    if len(values) > 1:
        spread = math.sqrt(sum((v - interval.value) ** 2 for v in values) / (len(values) - 1))
    numbers = {"mean": interval.value, "sd": spread, "low": interval.low, "high": interval.high}
    return {**{key: rounded(value) for key, value in numbers.items()}, "values": [rounded(v) for v in values]}

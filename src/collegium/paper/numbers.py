"""Numbers as the results' JSON holds them: six digits, and None for what is no number."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

from collegium.evaluation.resampling import Interval
from collegium.evaluation.student_t import paired_t_test


CONFIDENCE: Final = 0.95
"""Of all intervals."""

BOOTSTRAP: Final[dict[str, Any]] = {"confidence": CONFIDENCE, "num_samples": 2000, "seed": 0}
"""How documents and items are drawn anew."""


def rounded(value: float) -> float | None:
    """Six significant digits; None for NaN and Inf, which JSON cannot say."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def rounded_fields(interval: Interval) -> dict[str, float | None]:
    """An interval, or a difference with its p-value."""
    return {key: rounded(value) for key, value in asdict(interval).items()}


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation, Student's interval and the values, one a seed."""
    interval = paired_t_test(values, confidence=CONFIDENCE)
    spread = math.nan
    if len(values) > 1:
        spread = math.sqrt(sum((v - interval.value) ** 2 for v in values) / (len(values) - 1))
    numbers = {"mean": interval.value, "sd": spread, "low": interval.low, "high": interval.high}
    return {**{key: rounded(value) for key, value in numbers.items()}, "values": [rounded(v) for v in values]}

"""Student's t-test of paired differences, such as one for each seed.

Written out, since the distribution is all that would be needed of a statistics library.
"""

import math

import numpy as np
from numpy.typing import ArrayLike

from collegium.evaluation.resampling import check_confidence
from collegium.report.interval import Difference


def paired_t_test(differences: ArrayLike, *, confidence: float) -> Difference:
    """Mean of paired differences, such as one a seed, with Student's interval and two-sided p-value.

    Raises:
        ValueError: A difference that is NaN or Inf, or none; a confidence that is no share.
    """
    check_confidence(confidence)
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise ValueError(f"differences must be one list of finite numbers, got {values.tolist()}")
    mean = float(values.mean())
    freedom = len(values) - 1
    if freedom == 0:
        return Difference(mean, math.nan, math.nan, math.nan)
    error = float(values.std(ddof=1)) / math.sqrt(len(values))
    if error == 0.0:
        return Difference(mean, mean, mean, float(mean == 0.0))
    half = error * _t_quantile(1.0 - confidence, freedom)
    return Difference(mean, mean - half, mean + half, t_tail(abs(mean) / error, freedom))


def t_tail(t: float, freedom: int) -> float:
    """P(|T| >= |t|) of Student's distribution with integer degrees of freedom: the finite sums of its integral.

    Abramowitz and Stegun, 26.7.3 and 26.7.4. Exact to about 1e-15, so that smaller tails come out as 0.
    """
    return min(1.0, max(0.0, 1.0 - _share_within(abs(t), freedom)))


def _share_within(t: float, freedom: int) -> float:
    angle = math.atan2(t, math.sqrt(freedom))
    sine = math.sin(angle)
    cosine = math.cos(angle)
    if freedom % 2:
        factors = [2 * k / (2 * k + 1) for k in range(1, (freedom - 1) // 2)]
        first = cosine if freedom > 1 else 0.0
        series = _series(first, factors, cosine * cosine)
        return 2.0 / math.pi * (angle + sine * series)
    factors = [(2 * k - 1) / (2 * k) for k in range(1, freedom // 2)]
    return sine * _series(1.0, factors, cosine * cosine)


def _series(first: float, factors: list[float], power: float) -> float:
    term = total = first
    for factor in factors:
        term *= factor * power
        total += term
    return total


def _t_quantile(tail: float, freedom: int) -> float:
    low = 0.0
    high = 1.0
    while t_tail(high, freedom) > tail:
        high *= 2.0
    for _ in range(100):
        middle = (low + high) / 2.0
        low, high = (middle, high) if t_tail(middle, freedom) > tail else (low, middle)
    return high

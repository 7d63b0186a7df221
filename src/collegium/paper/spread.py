"""Means and estimates with what is known of chance, as the results' JSON holds them. No torch here."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from collegium.evaluation.student_t import paired_t_test
from collegium.paper.numbers import CONFIDENCE


Content = Mapping[str, Any]
"""A part of the results' JSON."""


@dataclass(frozen=True)
class Estimate:
    """A value with the interval and the test of one source of chance: seeds, documents or items.

    Attributes:
        value: The value itself.
        low: Lower end of its 95 % interval; None if not known, as over seeds with one seed.
        high: Upper end; None likewise.
        p_value: Of the test that it is 0; None if there is none.
    """

    value: float
    low: float | None
    high: float | None
    p_value: float | None = None

    @classmethod
    def read(cls, content: Content, *, key: str = "value") -> "Estimate":
        """Read an estimate from the results' JSON; `key` names its value there."""
        low, high, p_value = (finite(content.get(name)) for name in ("low", "high", "p_value"))
        return cls(content[key], low, high, p_value)


@dataclass(frozen=True)
class Spread:
    """A mean with one interval.

    Attributes:
        mean: The mean over seeds.
        low: Lower end of its 95 % interval, Student's over seeds if not said otherwise; None if not known, as
            with one seed.
        high: Upper end; None likewise.
    """

    mean: float
    low: float | None
    high: float | None

    @classmethod
    def read(cls, figure: Content | None) -> "Spread | None":
        """Read a row's figure from the results' JSON; None if it was not measured.

        Its interval covers that over `items`, if there is one.
        """
        if figure is None or (mean := finite(figure["mean"])) is None:
            return None
        estimates = [Estimate.read(figure, key="mean")]
        if "items" in figure:
            estimates.append(Estimate.read(figure["items"]))
        return cls.covering(mean, *estimates)

    @classmethod
    def covering(cls, mean: float, *estimates: Estimate) -> "Spread":
        """Span from the lowest to the highest known end of these estimates' intervals."""
        lows = [estimate.low for estimate in estimates if estimate.low is not None]
        highs = [estimate.high for estimate in estimates if estimate.high is not None]
        return cls(mean, min(lows, default=None), max(highs, default=None))

    def times(self, factor: float) -> "Spread":
        """Multiply the mean and the interval by a factor."""
        low, high = (None if end is None else factor * end for end in (self.low, self.high))
        return Spread(factor * self.mean, *((low, high) if factor >= 0.0 else (high, low)))


def over_seeds(values: Sequence[float]) -> Spread:
    """Mean and interval of one value per seed."""
    interval = paired_t_test(values, confidence=CONFIDENCE)
    return Spread(interval.value, finite(interval.low), finite(interval.high))


def finite(value: float | None) -> float | None:
    """The value; None where it is NaN or Inf."""
    return value if value is not None and math.isfinite(value) else None

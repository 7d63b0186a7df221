"""A number that changes over the course of training, as a function of how much of it is done."""

import math
from dataclasses import dataclass
from typing import Literal


ScheduleShape = Literal["constant", "linear", "cosine", "step"]


@dataclass(frozen=True)
class Schedule:
    """From `initial` to `final` between two moments; flat before and after.

    Attributes:
        shape: `linear`, `cosine` (slow at both ends), `step` (at `begin`) or `constant` (`initial` for good).
        initial: Value up to `begin`.
        final: Value from `end` on.
        begin: Share of the training at which it begins to change.
        end: Share of the training at which it has changed.
    """

    shape: ScheduleShape
    initial: float
    final: float
    begin: float = 0.0
    end: float = 1.0

    def at(self, progress: float) -> float:
        """Value when this share of the training is done."""
        if self.shape == "constant":
            return self.initial
        if self.shape == "step":
            return self.final if progress >= self.begin else self.initial
        if progress >= self.end:
            return self.final
        done = max(0.0, (progress - self.begin) / (self.end - self.begin))
        if self.shape == "cosine":
            done = 0.5 - 0.5 * math.cos(math.pi * done)
        return self.initial + (self.final - self.initial) * done

    @property
    def largest(self) -> float:
        """Largest value it takes."""
        return self.initial if self.shape == "constant" else max(self.initial, self.final)

    @property
    def smallest(self) -> float:
        """Smallest value it takes."""
        return self.initial if self.shape == "constant" else min(self.initial, self.final)


def value_at(value: float | Schedule, progress: float) -> float:
    """A number, or a schedule's at this progress."""
    return value.at(progress) if isinstance(value, Schedule) else value


def largest(value: float | Schedule) -> float:
    """A number, or the largest that a schedule takes."""
    return value.largest if isinstance(value, Schedule) else value


def smallest(value: float | Schedule) -> float:
    """A number, or the smallest that a schedule takes."""
    return value.smallest if isinstance(value, Schedule) else value

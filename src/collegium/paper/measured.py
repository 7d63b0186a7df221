"""Results read back from JSON: what the page, its claims and its figures have in common. No torch here."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from collegium.evaluation.student_t import paired_t_test
from collegium.paper.numbers import CONFIDENCE


EXPERIMENTS = ("table1", "figure2", "figure3", "conditions")
"""In the order of the page."""

Content = Mapping[str, Any]


@dataclass(frozen=True)
class Spread:
    """A mean over seeds.

    Attributes:
        mean: Of all values.
        low: Lower end of its 95 % interval, Student's over seeds if not said otherwise; None if not known, as
            with one seed.
        high: Upper end; None likewise.
    """

    mean: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, figure: Content | None, factor: float = 1.0) -> "Spread | None":
        """A figure of a row, multiplied by a factor; None if it was not measured.

        Its interval covers that over `items`, if there is one.
        """
        if figure is None or (mean := finite(figure["mean"])) is None:
            return None
        return cls.covering(mean, figure, *([figure["items"]] if "items" in figure else [])).times(factor)

    @classmethod
    def covering(cls, mean: float, *intervals: Content) -> "Spread":
        """From the lowest to the highest end of these intervals, each a `low` and a `high`, as far as known."""
        ends = [[end for i in intervals if (end := finite(i[side])) is not None] for side in ("low", "high")]
        return cls(mean, min(ends[0], default=None), max(ends[1], default=None))

    def times(self, factor: float) -> "Spread":
        """All of it, multiplied by a factor."""
        low, high = (None if end is None else factor * end for end in (self.low, self.high))
        return Spread(factor * self.mean, *((low, high) if factor >= 0.0 else (high, low)))


@dataclass(frozen=True)
class Measured:
    """The results of one experiment.

    Attributes:
        content: Its JSON, see `collegium.paper.results.collect`.
    """

    content: Content

    @property
    def rows(self) -> list[Content]:
        """In the order of the JSON."""
        return list(self.content["rows"])

    @property
    def groups(self) -> list[str]:
        """Names of groups of rows, in the order of their first row."""
        return list(dict.fromkeys(row["group"] for row in self.rows))

    def row(self, name: str) -> Content | None:
        """A row by its name; None if it was not made."""
        return next((row for row in self.rows if row["name"] == name), None)

    def named(self, names: Sequence[str]) -> list[Content]:
        """Those of these rows that are there, in this order."""
        return [row for name in names if (row := self.row(name)) is not None]

    def in_group(self, group: str) -> list[Content]:
        """Rows of a group."""
        return [row for row in self.rows if row["group"] == group]

    def numbered(self, prefix: str) -> dict[int, Content]:
        """Rows `PREFIX_NUMBER` by their number, in its order."""
        found = {}
        for row in self.rows:
            start, _, number = row["name"].rpartition("_")
            if start == prefix and number.isdigit():
                found[int(number)] = row
        return dict(sorted(found.items()))

    def change(self, figure: str, name: str, reference: str) -> Spread | None:
        """How far a row's figure is above another's, as a share of it, paired by seed; None if not known."""
        row, other = self.row(name), self.row(reference)
        pairs = [] if row is None or other is None else _paired(row, other, figure)
        return over_seeds([a / b - 1.0 for a, b in pairs]) if pairs and all(b for _, b in pairs) else None


def _paired(row: Content, other: Content, figure: str) -> list[tuple[float, float]]:
    """Values of the seeds that both rows have."""
    values, others = (
        dict(zip(r["seeds"], r["figures"].get(figure, {}).get("values", []), strict=False)) for r in (row, other)
    )
    return [(v, others[seed]) for seed, v in values.items() if v is not None and others.get(seed) is not None]


def over_seeds(values: Sequence[float]) -> Spread:
    """Mean and interval of one value a seed."""
    interval = paired_t_test(values, confidence=CONFIDENCE)
    return Spread(interval.value, finite(interval.low), finite(interval.high))


def spread_of(row: Content, figure: str) -> Spread | None:
    """A row's figure; None if it was not measured."""
    return Spread.of(row["figures"].get(figure))


def finite(value: float | None) -> float | None:
    """The value; None where it is NaN or Inf."""
    return value if value is not None and math.isfinite(value) else None


def read_results(folder: Path) -> dict[str, Measured]:
    """Experiments whose results are in a folder, by name."""
    paths = {name: folder / f"{name}.json" for name in EXPERIMENTS}
    return {
        name: Measured(json.loads(path.read_text(encoding="utf-8")))
        for name, path in paths.items()
        if path.exists()
    }

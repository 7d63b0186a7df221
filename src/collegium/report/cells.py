"""Cells and tables of the page."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from collegium.report.interval import Interval


UNKNOWN = "-"


@dataclass(frozen=True)
class Cell:
    """A text in a table, and a smaller one beneath it."""

    text: str
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table; the first column names its rows."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    is_text: bool = False


def with_interval(figure: Interval | None, digits: int) -> Cell:
    """A figure over its interval."""
    if figure is None or not figure.is_known:
        return Cell(UNKNOWN)
    return Cell(figure.shown(digits), figure.ends(digits, between=" to ") if figure.has_ends else "")


def mean_cell(value: float | None, digits: int) -> Cell:
    """A mean, whose interval is not known."""
    return Cell(UNKNOWN if value is None or not math.isfinite(value) else f"{value:.{digits}f}")

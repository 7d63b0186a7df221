"""What tables of the page are made of."""

from collections.abc import Sequence
from dataclasses import dataclass

from collegium.report.records import Figure


UNKNOWN = "-"


@dataclass(frozen=True)
class Cell:
    """What stands in a place of a table, and smaller beneath it."""

    text: str
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table; the first column names its rows."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    is_text: bool = False


def with_interval(figure: Figure | None, digits: int) -> Cell:
    """A figure over its interval."""
    if figure is None:
        return Cell(UNKNOWN)
    text = f"{figure.value:.{digits}f}"
    if figure.low is None or figure.high is None:
        return Cell(text)
    return Cell(text, f"{figure.low:.{digits}f} to {figure.high:.{digits}f}")

"""What people see: lines, progress and tables; rich on a terminal, plain text elsewhere.

Only the first rank speaks. Progress goes to stderr and results to stdout, so that results can be
piped.
"""

import math
import os
import sys
import time
from collections.abc import Mapping, Sequence


PLAIN_INTERVAL = 10.0
"""Seconds between progress lines where there is no terminal to rewrite one on."""


def is_main_rank() -> bool:
    """Whether this process is the one that speaks."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str) -> None:
    """A line of progress."""
    if is_main_rank():
        print(text, file=sys.stderr, flush=True)


class ProgressLine:
    """One line that is rewritten on a terminal, and repeated now and then elsewhere."""

    def __init__(self) -> None:
        self._last = 0.0
        self._is_terminal = sys.stderr.isatty()
        self._width = 0

    def update(self, text: str) -> None:
        """Show `text` if it is time to."""
        now = time.monotonic()
        if not is_main_rank() or now - self._last < (0.2 if self._is_terminal else PLAIN_INTERVAL):
            return
        self._last = now
        if self._is_terminal:
            sys.stderr.write("\r" + text.ljust(self._width))
            sys.stderr.flush()
            self._width = len(text)
        else:
            say(text)

    def finish(self, text: str) -> None:
        """End the line with a last text."""
        if not is_main_rank():
            return
        if self._is_terminal and self._width:
            sys.stderr.write("\r" + " " * self._width + "\r")
        say(text)


def show_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    highlight: frozenset[int] = frozenset(),
) -> None:
    """A table on stdout: the first column to the left, the others to the right."""
    if not is_main_rank():
        return
    if sys.stdout.isatty():
        _show_rich(title, columns, rows, highlight)
    else:
        print(plain_table(title, columns, rows), flush=True)


def plain_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same table as text."""
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    lines = [title, ""]
    for row in [columns, *rows]:
        cells = [
            row[0].ljust(widths[0]),
            *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True)),
        ]
        lines.append("  ".join(cells).rstrip())
        if row is columns:
            lines.append("  ".join("-" * width for width in widths))
    return "\n".join(lines) + "\n"


def _show_rich(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], highlight: frozenset[int]
) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", title_style="bold")
    for i, column in enumerate(columns):
        table.add_column(Text(column), justify="left" if i == 0 else "right", no_wrap=True)
    for i, row in enumerate(rows):
        table.add_row(*(Text(cell) for cell in row), style="bold green" if i in highlight else None)
    Console().print(table)


def rate_and_eta(done: float, total: float | None, seconds: float, unit: str) -> str:
    """Such as `1,250 tokens/s, 2m10s left`, or `5.9 s/step, 40s left` where one takes longer than a second."""
    rate = done / seconds if seconds > 0 else 0.0
    text = f"{1 / rate:.1f} s/{unit.removesuffix('s')}" if 0 < rate < 1 else f"{rate:,.0f} {unit}/s"
    if total and rate > 0:
        text += f", {duration(max(total - done, 0.0) / rate)} left"
    return text


def duration(seconds: float) -> str:
    """Such as `1h05m`, `2m10s` or `7s`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 60}m{whole % 60:02d}s" if whole >= 60 else f"{whole}s"


def size(num_bytes: float) -> str:
    """Such as `1.3 GB`, `40 MB` or `8 kB`, of 1000 each, with three digits."""
    unit, name = next(
        ((unit, name) for unit, name in ((1e9, "GB"), (1e6, "MB")) if num_bytes >= unit), (1e3, "kB")
    )
    return f"{num_bytes / unit:.3g} {name}"


def number_row(name: str, values: Mapping[str, float], columns: Sequence[str], *, digits: int = 3) -> list[str]:
    """A table row of figures; `-` for one that is not known."""
    cells = (values[column] for column in columns)
    return [name, *("-" if math.isnan(value) else f"{value:.{digits}f}" for value in cells)]

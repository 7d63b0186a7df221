"""Output for people: lines, a bar and tables; rich on a terminal, plain text elsewhere.

Only the first rank prints. Progress goes to stderr and results to stdout, so that results can be
piped. NO_COLOR and TERM=dumb are honoured. rich is imported only where there is a terminal to draw on, as
that costs a tenth of a second.
"""

import atexit
import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TextIO

from collegium.base.secrets import redacted
from collegium.base.streams import perhaps_unread
from collegium.base.visible import visible


if TYPE_CHECKING:
    from rich.progress import Progress

DRAWN_INTERVAL = 0.2
"""Seconds between drawings on a terminal."""

BAR_WIDTH = 16
"""Columns of the bar."""


def is_main_rank() -> bool:
    """True in the process that prints."""
    return os.environ.get("RANK", "0") == "0"


def presentable(text: object) -> str:
    """Text for people: without control characters that a terminal would obey, and without credentials."""
    return visible(redacted(str(text)))


def show(text: str) -> None:
    """A result for people, on stdout."""
    if is_main_rank():
        with perhaps_unread(1):
            print(presentable(text), flush=True)


def say(text: str, *, on_every_rank: bool = False) -> None:
    """A line of progress, which costs nobody a run if there is no one left to read it."""
    if on_every_rank or is_main_rank():
        with perhaps_unread(2):
            print(presentable(text), file=sys.stderr, flush=True)


def is_terminal(stream: TextIO) -> bool:
    """True if lines of this stream can be redrawn; not where TERM says that it is dumb."""
    return stream.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")


class Bar:
    """One line with a bar, which is redrawn on a terminal; see `base/progress.py` for what it shows."""

    def __init__(self) -> None:
        self._last = -math.inf
        self._drawn: Progress | None = None

    def draw(self, text: str, *, pace: str = "", done: float | None = None, total: float | None = None) -> None:
        """Show `text` if it is time to.

        Args:
            text: What is going on; cut where the terminal is narrow.
            pace: Rate and time left; never cut.
            done: How far it is, of `total`.
            total: Where it ends; without it the bar only shows that something moves.
        """
        now = time.monotonic()
        if not is_main_rank() or now - self._last < DRAWN_INTERVAL:
            return
        self._last = now
        with perhaps_unread(2):
            self._draw(text, pace, done or 0.0, total)

    def _draw(self, text: str, pace: str, done: float, total: float | None) -> None:
        bar = self._drawn or _new_bar()
        bar.tasks[0].total = total  # `update` takes None for what it was before
        shown = presentable(text).replace("\n", " ")
        bar.update(bar.task_ids[0], description=shown, pace=pace, completed=done, refresh=True)
        if self._drawn is None:
            self._drawn = bar
            bar.start()
            atexit.register(bar.stop)  # the cursor is hidden until then

    def clear(self) -> None:
        """Take the line away."""
        if self._drawn is not None:
            with perhaps_unread(2):
                self._drawn.stop()
            atexit.unregister(self._drawn.stop)
            self._drawn = None
            self._last = -math.inf


def _new_bar() -> "Progress":
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
    from rich.table import Column

    rest = Column(ratio=1, no_wrap=True, overflow="ellipsis")
    bar = Progress(
        BarColumn(bar_width=BAR_WIDTH),
        TaskProgressColumn(),
        TextColumn("{task.description}", markup=False, table_column=rest),
        TextColumn("{task.fields[pace]}", markup=False, table_column=Column(no_wrap=True)),
        console=Console(stderr=True),
        transient=True,
        expand=True,
        auto_refresh=False,
        redirect_stdout=False,  # results stay results
    )
    bar.add_task("", total=None, pace="")
    return bar


def restore_cursor() -> None:
    """Leave the terminal as it was where a process ends without printing more."""
    if is_terminal(sys.stderr):
        with perhaps_unread(2):
            os.write(2, b"\r\x1b[K\x1b[?25h")


@contextlib.contextmanager
def only_json(asked: bool) -> Iterator[None]:
    """Keep stdout for the one document of `show_json`, if asked: whatever else is printed goes to stderr."""
    if not asked:
        yield
        return
    token = _documents.set(sys.stdout)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        _documents.reset(token)


_documents: ContextVar[TextIO | None] = ContextVar("documents", default=None)


def show_json(content: Mapping[str, Any], *, indent: int | None = None) -> None:
    """A result for programs, on one line of stdout unless it is to be indented."""
    if is_main_rank():
        with perhaps_unread(1):
            print(redacted(json.dumps(content, indent=indent)), file=_documents.get() or sys.stdout, flush=True)


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
    title = presentable(title)
    columns = [presentable(column) for column in columns]
    rows = [[presentable(cell) for cell in row] for row in rows]
    if is_terminal(sys.stdout):
        _show_rich(title, columns, rows, highlight)
    else:
        show(plain_table(title, columns, rows))


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
    """Rate and time left, such as `1,250 tokens/s, 2m10s left`; `5.9 s/step` where one takes over a second."""
    rate = done / seconds if seconds > 0 else 0.0
    text = f"{1 / rate:.1f} s/{unit.removesuffix('s')}" if 0 < rate < 1 else f"{rate:,.0f} {unit}/s"
    if total and rate > 0:
        text += f", {duration(max(total - done, 0.0) / rate)} left"
    return text


def duration(seconds: float) -> str:
    """A time, such as `1h05m`, `2m10s` or `7s`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 60}m{whole % 60:02d}s" if whole >= 60 else f"{whole}s"


def size(num_bytes: float) -> str:
    """A size, such as `1.3 GB`, `40 MB` or `8 kB`, of 1000 each, with three digits."""
    unit, name = next(
        ((unit, name) for unit, name in ((1e9, "GB"), (1e6, "MB")) if num_bytes >= unit), (1e3, "kB")
    )
    return f"{num_bytes / unit:.3g} {name}"


def number_row(name: str, values: Mapping[str, float], columns: Sequence[str]) -> list[str]:
    """A table row of figures; `-` for one that is not known."""
    cells = (values[column] for column in columns)
    return [name, *("-" if math.isnan(value) else f"{value:.3f}" for value in cells)]

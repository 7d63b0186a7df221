"""Phases: what is going on, how far it is and how long it took, for whoever waits. No torch here.

Whatever may take more than a moment runs in a `Phase`, be it a model that is loaded or intervals that are drawn:

    with Phase("choosing layers", total=250, unit="passes") as phase:
        for dropped in candidates:
            ...
            phase.advance()

On a terminal one line is redrawn; elsewhere a phase is a line when it begins, one now and then, and one when it
ends. A phase within another is shown with its name: `measuring the student, held-out text of web: 3 of 8 blocks`.
Short ones leave no line where they lie in another one: a checkpoint after every step is no news.

What a library does in one call cannot be counted. So a thread, which lives as long as there is a phase, shows that
time passes: twice a second on a terminal, twice a minute elsewhere. It draws under a lock that is held while the
process forks, so no data loader inherits a half-held one.
"""

import os
import sys
import threading
from collections.abc import Iterable, Iterator
from time import monotonic
from types import TracebackType
from typing import Self, TypeVar

from collegium.base.terminal import Bar, duration, is_main_rank, is_terminal, rate_and_eta, say


Item = TypeVar("Item")

PLAIN_INTERVAL = 10.0
"""Seconds between lines of a phase that counts, where there is no terminal to redraw one on."""

BEAT = 0.5
"""Seconds between looks of the thread at what is to be shown."""

WORTH_SAYING = 1.0
"""Seconds that a phase takes at least for its end to be a line, and for its beginning if it lies in another."""

SILENCE = 30.0
"""Seconds after which a line says that a phase goes on, although nothing in it was counted meanwhile."""


class Phase:
    """Something that takes time, from `__enter__` to `__exit__`.

    Args:
        name: What is done, such as `loading teacher web`.
        total: Where the count ends; None if there is none, or it is not known.
        unit: Name of what is counted, in the plural.
        is_short: Whether it usually takes no time, so that it is no line before it has taken a second.
    """

    def __init__(self, name: str, *, total: float | None = None, unit: str = "", is_short: bool = False) -> None:
        self.name = name
        self.is_short = is_short
        self.total = total
        self.unit = unit
        self.done = 0.0
        self.note = ""
        self.rate: str | None = None
        self.is_announced = False
        self._first = 0.0
        self._start = monotonic()

    def __enter__(self) -> Self:
        self._start = monotonic()
        _shown.begin(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _shown.end(self, is_whole=kind is None)

    @property
    def seconds(self) -> float:
        """Time since it began."""
        return monotonic() - self._start

    def begin_at(self, done: float, total: float | None = None) -> None:
        """Set how far it is already, which says nothing about its rate."""
        self._first = self.done = done
        self.total = self.total if total is None else total

    def update(
        self, done: float, *, total: float | None = None, note: str | None = None, rate: str | None = None
    ) -> None:
        """Show how far it is.

        Args:
            done: Of the total.
            total: If it is another now.
            note: More to show, such as a loss.
            rate: Rate and time left, where they are not those of `done`.
        """
        self.done = done
        self.total = self.total if total is None else total
        self.note = self.note if note is None else note
        self.rate = self.rate if rate is None else rate
        _shown.moved()

    def advance(self, count: float = 1) -> None:
        """Count some more."""
        self.update(self.done + count)

    def counted(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield items, each of which is counted once it is done with."""
        for item in items:
            yield item
            self.advance()

    @property
    def count(self) -> str:
        """Such as `3 of 8 blocks`; empty where nothing is counted."""
        if not self.unit:
            return self.note
        of = "" if self.total is None else f" of {self.total:,.0f}"
        counted = f"{self.done:,.0f}{of} {self.unit}" if self.done or self.total is not None else ""
        return ", ".join(part for part in (counted, self.note) if part)

    @property
    def pace(self) -> str:
        """Rate and time left, as far as they are known; otherwise the time that it has taken."""
        if self.rate is not None:
            return self.rate
        done = self.done - self._first
        if not self.unit or done <= 0:
            return duration(self.seconds)
        return rate_and_eta(
            done, None if self.total is None else self.total - self._first, self.seconds, self.unit
        )


class _Shown:
    """The phases of this process that are under way, and the line that shows the innermost."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin without phases, as a forked process does."""
        self.lock = threading.RLock()
        self.phases: list[Phase] = []
        self._bar = Bar()
        self._spoke = 0.0
        self._rest: threading.Event | None = None

    def begin(self, phase: Phase) -> None:
        with self.lock:
            self.phases.append(phase)
            self._draw()
            if self._rest is None and is_main_rank():
                self._rest = threading.Event()
                threading.Thread(target=self._beat, args=(self._rest,), name="phases", daemon=True).start()

    def end(self, phase: Phase, *, is_whole: bool) -> None:
        with self.lock:
            if phase not in self.phases:
                return
            title = self._title(phase)
            del self.phases[self.phases.index(phase) :]
            if not self.phases:
                self._bar.clear()
                if self._rest is not None:
                    self._rest.set()
                    self._rest = None
            if is_whole and phase.seconds >= WORTH_SAYING:
                count = f"{phase.count}, " if phase.count else ""
                self._say(f"{title}: {count}took {duration(phase.seconds)}")
            self._draw()

    def moved(self) -> None:
        with self.lock:
            self._draw()

    def _beat(self, rest: threading.Event) -> None:
        while not rest.wait(BEAT):
            with self.lock:
                if rest is not self._rest:
                    return
                self._draw(every=SILENCE)

    def _draw(self, *, every: float = PLAIN_INTERVAL) -> None:
        """Show the innermost phase if it is time to."""
        if not self.phases:
            return
        phase = self.phases[-1]
        text = self._title() + (f": {phase.count}" if phase.count else "")
        if is_terminal(sys.stderr):
            self._bar.draw(text, pace=phase.pace, done=phase.done, total=phase.total)
        elif not phase.is_announced and (self._is_news(phase) or phase.seconds >= WORTH_SAYING):
            phase.is_announced = True
            self._say(text)
        elif monotonic() - self._spoke >= every:
            self._say(f"{text}; {phase.pace}")

    def _is_news(self, phase: Phase) -> bool:
        return len(self.phases) == 1 and not phase.is_short

    def _say(self, text: str) -> None:
        say(text)
        self._spoke = monotonic()

    def _title(self, phase: Phase | None = None) -> str:
        """Names of the phases, the outermost first, up to one of them."""
        last = len(self.phases) if phase is None else self.phases.index(phase) + 1
        return ", ".join(phase.name for phase in self.phases[:last])


_shown = _Shown()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=lambda: _shown.lock.acquire(),
        after_in_parent=lambda: _shown.lock.release(),
        after_in_child=_shown.reset,
    )


def phases() -> tuple[str, ...]:
    """Names of the phases that are under way, the outermost first."""
    return tuple(phase.name for phase in _shown.phases)

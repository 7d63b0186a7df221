"""Wishes that a process ends: signals, and the end of the launcher that started it as a rank. No torch here.

A terminal that closes (SIGHUP) asks for an orderly end as Ctrl-C (SIGINT) and SIGTERM do. Under `nohup` SIGHUP is
ignored from the start, and it stays so. A launcher that is killed can ask for nothing, and its ranks would go on,
or wait for each other for a day: so they look once a second whether it is still there.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from collegium.base.terminal import say


HANG_UP: int = getattr(signal, "SIGHUP", 0)
"""A terminal that closes; 0 where there is no such signal."""

GRACE = 100.0
"""Seconds for an orderly end after that of the launcher: with it, no rank outlives its launcher by two minutes."""

Handler = Callable[[int, FrameType | None], None]


@contextmanager
def stop_signals(handler: Handler) -> Iterator[None]:
    """Call `handler` on each signal that asks for an end, inside the block; for the main thread alone."""
    numbers = [int(signal.SIGINT), int(signal.SIGTERM)]
    if HANG_UP and signal.getsignal(HANG_UP) is not signal.SIG_IGN:
        numbers.append(HANG_UP)
    previous = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


def watch_launcher() -> None:
    """End this process soon after the launcher that started it as a rank, if one did.

    It gets a SIGTERM, and with that the end that any other SIGTERM would mean; after `GRACE` seconds it ends
    wherever it is, which may be in a collective call that nobody answers.
    """
    if _has_launcher():
        threading.Thread(target=_follow, args=(os.getppid(),), daemon=True).start()


def _has_launcher() -> bool:
    """Tell torchrun, accelerate and the like from a shell, which a run may outlive.

    Ranks that a script started by hand are tied to it unless SIGHUP is ignored, as `nohup` does.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ:
        return True
    outlives = bool(HANG_UP) and signal.getsignal(HANG_UP) is signal.SIG_IGN
    return os.environ.get("WORLD_SIZE", "1") != "1" and not outlives


def _follow(launcher: int) -> None:
    wait_for_end_of(launcher)
    say(f"the launcher (process {launcher}) has ended, so this run stops too", on_every_rank=True)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(128 + signal.SIGTERM)


def wait_for_end_of(parent: int) -> None:
    """Return within a second of the end of this process's parent; another parent from the start is none."""
    while os.getppid() == parent:
        time.sleep(1)

"""Whole commands in processes of their own, started in a moment; see `command_worker.py`."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


class ForkedCommand:
    """One command that runs.

    Attributes:
        pid: The process, which leads a process group; a launcher if there are several ranks.
        log: File with what it printed.
    """

    def __init__(self, worker: "CommandWorker", pid: int, log: Path) -> None:
        self._worker, self.pid, self.log = worker, pid, log
        self._code: int | None = None

    def wait(self) -> int:
        """Exit code; negative is a signal."""
        if self._code is None:
            self._code = self._worker.read()
        return self._code

    def signal(self, number: int) -> None:
        """Send a signal to its process group."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    @property
    def text(self) -> str:
        """What it printed, on either stream; nothing of a pipe."""
        return self.log.read_text(encoding="utf-8") if self.log.is_file() else ""

    @property
    def ranks(self) -> list[int]:
        """Pids of its ranks."""
        return [int(pid) for pid in self.log.with_name(f"{self.log.name}.ranks").read_text().split()]

    def worked(self) -> float | None:
        """Seconds that a core worked for it, or for its first rank; None once it has ended.

        Moments by this clock are spread evenly over its work, however busy the machine is.
        """
        ranks = self.log.with_name(f"{self.log.name}.ranks")
        pid = self.ranks[0] if ranks.exists() and ranks.read_text() else self.pid
        if group_of(self.pid) is None:
            return None
        with suppress(OSError):
            return time.clock_gettime((~pid << 3) | 2)  # the clock of another process
        return None

    def survivors(self) -> list[int]:
        """Pids of its process group."""
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if group_of(pid) == self.pid]

    def until(self, reached: Callable[[], Any], seconds: float = 120) -> None:
        """Wait for something to happen.

        Raises:
            AssertionError: it did not.
        """
        deadline = time.monotonic() + seconds
        while not reached():
            assert time.monotonic() < deadline, self.text
            time.sleep(0.01)


def group_of(pid: int) -> int | None:
    """Process group of a process that is alive."""
    with suppress(OSError):
        state, _, group = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:3]
        return None if state == "Z" else int(group)
    return None


class CommandWorker:
    """Starts commands, one after the other."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("command_worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def start(self, folder: Path, *words: object, log: Path, **order: Any) -> ForkedCommand:
        """Begin a command in a folder."""
        assert self._process.stdin is not None
        order |= {"words": [str(word) for word in words], "folder": str(folder), "log": str(log)}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return ForkedCommand(self, self.read(), log)

    def read(self) -> int:
        """The next answer."""
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())

    def close_terminal(self) -> None:
        """Close the terminal of what runs."""
        self._process.send_signal(signal.SIGUSR1)

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)


@contextmanager
def command_worker() -> Iterator[CommandWorker]:
    """A worker that ends with the block."""
    worker = CommandWorker()
    try:
        yield worker
    finally:
        worker.close()

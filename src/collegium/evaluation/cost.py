"""The cost of a run in time, memory and disk: an estimate, and what is measured to be compared with it."""

import contextlib
import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class RunCost:
    """Estimate for one run, from a trial on the machine that makes it.

    Attributes:
        seconds: Of each part, in order: caches that are to be built, then the run.
        memory_bytes: Most that is resident in this process at once; None where the system does not say.
        device_memory_bytes: Most that is reserved on the GPU; None without one.
        disk_bytes: Of each part, when all is done; text and caches that are there already count.
        passing_bytes: More than that while a checkpoint is replaced.
        needed_bytes: What is yet to be written.
        num_steps: Optimizer steps of the run.
        step_seconds: One of them: median of the trial's, the first left out.
        steps_tried: How many that were.
        memory_available: Bytes of memory in the machine that could be had now; None where it does not say.
        disk_free: Bytes free where the run folder will lie.
        notes: What was left out, or is an upper bound.
    """

    seconds: dict[str, float]
    memory_bytes: int | None
    device_memory_bytes: int | None
    disk_bytes: dict[str, int]
    passing_bytes: int
    needed_bytes: int
    num_steps: int
    step_seconds: float
    steps_tried: int
    memory_available: int | None
    disk_free: int
    notes: tuple[str, ...] = ()

    @property
    def total_seconds(self) -> float:
        """All of it, one command after the other."""
        return sum(self.seconds.values())

    @property
    def total_disk_bytes(self) -> int:
        """When all is done."""
        return sum(self.disk_bytes.values())


class Clock:
    """Seconds of named parts."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add what the block takes to the part `name`."""
        start = time.perf_counter()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def peak_bytes() -> int:
    """Largest resident set since the mark was reset, else since the process began."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if os.uname().sysname == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def folder_bytes(folder: Path) -> int:
    """Bytes of all files in it; 0 if it is not there."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

"""Peak memory of this process, as the kernel and the GPU's allocator count it."""

import contextlib
import ctypes
import gc
import os
from pathlib import Path

import torch

from collegium.evaluation.cost import peak_bytes


class PeakMemory:
    """The most that was resident since the last `restart`, kept over several stretches.

    Freed memory is given back to the system first, so that what an earlier stretch needed does not count. Where
    the kernel cannot forget its high-water mark (not Linux, or forbidden), the peak is that of the whole process.
    """

    def __init__(self) -> None:
        self._host: list[int] = []
        self._device: list[int] = []
        self.restart()

    def restart(self) -> None:
        """Forget what was."""
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def note(self) -> None:
        """Take the peak of this stretch into account."""
        self._host.append(peak_bytes())
        if torch.cuda.is_available():
            self._device.append(torch.cuda.max_memory_reserved())

    @property
    def host(self) -> int | None:
        """Largest of the stretches, in bytes."""
        return max(self._host, default=None)

    @property
    def device(self) -> int | None:
        """Likewise on this process's GPU; None without one."""
        return max(self._device, default=None)


def available_bytes() -> int | None:
    """Memory that could be had now, this process's own included; None where the system does not say."""
    with contextlib.suppress(OSError, ValueError):
        known = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return int(known["MemAvailable"].split()[0]) * 1024 + resident
    return None

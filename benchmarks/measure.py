"""Time and peak memory of calls that take turns in one process.

Turns (A B C A B C ...) let a machine that slows down slow every contestant alike; a ratio is the median
over the rounds of the ratio within a round. Peak memory is what the kernel counted: the high-water mark
of the resident set is reset before a call, after freed memory went back to the system, and read after
it. So it holds every buffer of every library, results included, and nothing that was there before. That
is done in the first round, whose times do not count: in a training run memory is not given back between
steps, and `keep_freed_memory`, as the command line has it, is on for every contestant.
"""

import ctypes
import gc
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from collegium.base.allocator import keep_freed_memory


MEBIBYTE = 2**20
_CHECK_BYTES = 256 * MEBIBYTE


@dataclass(frozen=True)
class Sample:
    """One call. `peak_bytes` is None where the system cannot tell."""

    seconds: float
    peak_bytes: int | None


Samples = dict[str, list[Sample]]


def measured(call: Callable[[], object], *, memory: bool = True) -> Sample:
    """Time of a call and, if asked, its peak memory over what was resident before."""
    gc.collect()
    before = _reset_peak() if memory else None
    start = time.perf_counter()
    call()
    seconds = time.perf_counter() - start
    return Sample(seconds, None if before is None else _peak_bytes() - before)


def take_turns(
    calls: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    before: Callable[[], None] = lambda: None,
    until: float = math.inf,
) -> Samples:
    """Measure every call once a round.

    Args:
        calls: What to measure, by name.
        rounds: Rounds, at most.
        before: Called before each call, unmeasured.
        until: Age of this process in seconds that no round but the first may be expected to exceed.
    """
    keep_freed_memory()
    samples: Samples = {name: [] for name in calls}
    longest = 0.0
    for index in range(rounds):
        start = process_age()
        if index > 0 and start + longest > until:
            break
        for name, call in calls.items():
            before()
            samples[name].append(measured(call, memory=index == 0))
        longest = max(longest, process_age() - start)
    before()
    return samples


def median_seconds(samples: Sequence[Sample]) -> float:
    """Median time."""
    return statistics.median(sample.seconds for sample in timed(samples))


def timed(samples: Sequence[Sample]) -> Sequence[Sample]:
    """Those whose time counts: the first round gave memory back to the system and had to ask for it again."""
    return samples[1:] or samples


def peak_mb(samples: Sequence[Sample]) -> float | None:
    """Largest peak of all rounds in MB (2**20 bytes)."""
    peaks = [sample.peak_bytes for sample in samples if sample.peak_bytes is not None]
    return max(peaks) / MEBIBYTE if peaks else None


def time_ratio(samples: Samples, name: str, base: str) -> float | None:
    """How many times longer `name` takes than `base`: median over rounds; None if either is missing."""
    if name not in samples or base not in samples:
        return None
    pairs = zip(timed(samples[name]), timed(samples[base]), strict=True)
    return statistics.median(a.seconds / b.seconds for a, b in pairs)


def peak_ratio(samples: Samples, name: str, base: str) -> float | None:
    """Peak of `name` as a share of the peak of `base`; None if either is unknown."""
    peaks = [peak_mb(samples[key]) if key in samples else None for key in (name, base)]
    return peaks[0] / peaks[1] if peaks[0] is not None and peaks[1] else None


def rounded(value: object, digits: int = 3) -> object:
    """A figure, or a tree of them, with so many significant digits, as JSON can hold it."""
    if isinstance(value, Mapping):
        return {key: rounded(item, digits) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item, digits) for item in value]
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value


def process_age() -> float:
    """Seconds since this process began, imports included."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


def describe_memory_check() -> str:
    """Measure a known allocation, so that a reader sees whether peaks can be believed."""
    sample = measured(lambda: torch.ones(_CHECK_BYTES // 4))
    if sample.peak_bytes is None:
        return "peak memory: not available on this system"
    return f"peak memory: an allocation of {_CHECK_BYTES / MEBIBYTE:.0f} MB was measured as {_mb(sample)} MB"


def _mb(sample: Sample) -> str:
    return "?" if sample.peak_bytes is None else f"{sample.peak_bytes / MEBIBYTE:.1f}"


def _reset_peak() -> int | None:
    """Give freed memory back and forget the peak; the resident bytes, or None if unsupported."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        return _peak_bytes()
    except (AttributeError, OSError):
        return None


def _peak_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no VmHWM")

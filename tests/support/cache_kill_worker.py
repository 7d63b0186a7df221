"""A process that has imported everything and forks a build of a cache for each line on stdin.

A line is JSON: `folder`; `mode`, `ranks` and `batch_size` of the build; `log`, a file that gets the key of each
block that is scored; `crash_at` if the build shall end like a power cut at its n-th file system call, with half
of the file lost that was to be synced; `hold`, a path: after the first batch the build makes that file and
waits until somebody removes it; `max_file_bytes`. The answer is the child's pid, then its exit status, a line
each. The child leads a process group, with its ranks in it. One thread, so that forking is safe.
"""

import json
import multiprocessing
import os
import resource
import signal
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from collegium.cache.builder import CacheProgress, Ranks
from collegium.cache.keys import keys_of
from collegium.signals.contracts import Batch
from tests.support.caches import CountingTeacher, builder_of, pico_teacher, plan_of


def build(order: dict[str, Any], ranks: Ranks) -> None:
    log = os.open(order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT) if "log" in order else None

    def note(batch: Batch) -> None:
        if log is not None:
            keys = keys_of(batch.input_ids.numpy(), batch.attention_mask.numpy(), batch.position_ids.numpy())
            os.write(log, "".join(f"{key}\n" for key in keys).encode())

    def hold(progress: CacheProgress) -> None:
        path = Path(order["hold"])
        if progress.rows <= order["batch_size"]:
            path.touch()
            while path.exists():
                time.sleep(0.005)

    builder_of(
        order["folder"],
        plan_of(order.get("mode", "top_k")),
        teacher=CountingTeacher(TEACHER, note),
        batch_size=order.get("batch_size", 2),
        ranks=ranks,
        on_progress=hold if "hold" in order else None,
    ).build()


def crash_at(number: int) -> None:
    """End the process at the n-th call that changes the file system."""
    calls, fsync = 0, os.fsync

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == number:
                if function is fsync and stat.S_ISREG(os.fstat(args[0]).st_mode):
                    os.ftruncate(args[0], os.fstat(args[0]).st_size // 2)
                os._exit(9)
            return function(*args, **kwargs)

        return call

    for name in ("fsync", "replace", "unlink", "remove"):
        setattr(os, name, counted(getattr(os, name)))


def in_child(action: Callable[[], None]) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        action()
    except OSError as error:
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(error.errno or 1)
    except BaseException as error:  # the answer must be an exit status, not a second copy of this loop
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def work(order: dict[str, Any]) -> None:
    if "crash_at" in order:
        crash_at(order["crash_at"])
    if "max_file_bytes" in order:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that the write fails, not the process
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["max_file_bytes"],) * 2)
    size = order.get("ranks", 1)
    if size == 1:
        return build(order, Ranks())
    barrier = multiprocessing.get_context("fork").Barrier(size)

    def rank(number: int) -> Ranks:
        return Ranks(number, size, lambda: (barrier.wait(60), None)[1])

    others = [in_child(lambda number=number: build(order, rank(number))) for number in range(1, size)]
    build(order, rank(0))
    for pid in others:
        assert os.waitpid(pid, 0)[1] == 0
    return None


def main() -> None:
    for line in sys.stdin:
        order = json.loads(line)
        pid = in_child(lambda order=order: (os.setpgid(0, 0), work(order))[1])
        os.setpgid(pid, pid)  # here too: whoever reads the pid may kill the group at once
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    TEACHER = pico_teacher()
    builder_of("memory://warm-up", teacher=CountingTeacher(TEACHER)).build()
    main()

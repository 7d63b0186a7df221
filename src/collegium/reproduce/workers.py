"""Runs shared out to processes: one a GPU, or one a core with one thread each.

Two processes of one thread do more than one of two: small models leave a second thread idle. A process whose
parent is gone ends at once, and what it had not finished is made again by the next call.
"""

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from typing import Any, TypeVar


T = TypeVar("T")


@contextmanager
def worker_pool(jobs: int, log_directory: Path, *, num_gpus: int) -> Iterator[ProcessPoolExecutor]:
    """Processes, each with its share of the machine; what they say goes to files in `log_directory`."""
    context = multiprocessing.get_context("spawn")
    log_directory.mkdir(parents=True, exist_ok=True)
    numbers: Any = context.Queue()
    for number in range(jobs):
        numbers.put(number)
    pool = ProcessPoolExecutor(
        jobs,
        mp_context=context,
        initializer=_begin,
        initargs=(numbers, jobs, num_gpus, os.getpid(), log_directory),
    )
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _begin(numbers: "Queue[int]", jobs: int, num_gpus: int, parent: int, log_directory: Path) -> None:
    number = numbers.get()
    if num_gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(number % num_gpus)
    import torch  # after the process has been told which devices there are

    if not num_gpus:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))
    log = (log_directory / f"worker-{number}.log").open("a", buffering=1)
    sys.stdout = sys.stderr = log
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def finished(
    pool: ProcessPoolExecutor,
    work: Callable[[T], None],
    items: Sequence[T],
    *,
    every: float,
    tick: Callable[[], None],
) -> Iterator[T]:
    """Each item as soon as its work is done; the first failure is raised.

    Args:
        pool: See `worker_pool`.
        work: Called in some process.
        items: What it is called with.
        every: Seconds between calls of `tick` while nothing finishes.
        tick: To show that time passes.
    """
    futures: dict[Future[None], T] = {pool.submit(work, item): item for item in items}
    try:
        while futures:
            done, _ = wait(futures, timeout=every, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
                yield futures.pop(future)
            tick()
    except BaseException:
        for future in futures:
            future.cancel()
        raise

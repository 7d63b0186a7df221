"""Processes that share the runs: one per GPU, or one per core with one thread each.

Two processes of one thread do more than one of two, since small models leave a second thread idle. A process
whose parent is gone ends at once, and the next call makes again what it had not finished.
"""

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from typing import Any, TypeVar

from collegium.base.errors import UserError
from collegium.base.interruption import wait_for_end_of


T = TypeVar("T")


@dataclass(frozen=True)
class Workers:
    """Processes that start when there is work for them.

    Attributes:
        pool: The pool that gives them work.
        jobs: Maximum number of processes.
    """

    pool: ProcessPoolExecutor
    jobs: int


@contextmanager
def worker_pool(jobs: int, log_directory: Path, *, num_gpus: int = 0) -> Iterator[Workers]:
    """Open a pool of processes, which are killed if the caller fails: the next call makes again what they lose.

    Args:
        jobs: Number of processes. Each has its share of the machine's cores even if there is work for fewer, since
            the number of threads decides the last digits of results.
        log_directory: Folder for files of what they print.
        num_gpus: Number of GPUs to share out among them.
    """
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
    others = set(multiprocessing.active_children())
    try:
        yield Workers(pool, jobs)
    except BaseException:
        for process in set(multiprocessing.active_children()) - others:
            process.kill()
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _begin(numbers: "Queue[int]", jobs: int, num_gpus: int, parent: int, log_directory: Path) -> None:
    number = numbers.get()
    if num_gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu_of(number, num_gpus, os.environ.get("CUDA_VISIBLE_DEVICES"))
    import torch  # only now does the process know its devices

    from collegium.fused.compiled import compile_for_many_runs

    compile_for_many_runs()
    if not num_gpus:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))
    log = (log_directory / f"worker-{number}.log").open("a", buffering=1)
    sys.stdout = sys.stderr = log
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def gpu_of(number: int, count: int, visible: str | None) -> str:
    """Choose the GPU of a worker among the visible ones: workers take turns."""
    names = visible.split(",") if visible else [str(index) for index in range(count)]
    return names[number % count].strip()


def _end_with(parent: int) -> None:
    wait_for_end_of(parent)
    os._exit(1)


def finished(workers: Workers, work: Callable[[T], None], items: Sequence[T]) -> Iterator[T]:
    """Yield each item as soon as its work is done, and raise the first failure.

    Args:
        workers: See `worker_pool`.
        work: Function called in one of the processes.
        items: Arguments that it is called with.

    Raises:
        UserError: a process was killed.
    """
    futures: dict[Future[None], T] = {}
    try:
        futures |= {workers.pool.submit(work, item): item for item in items}
        while futures:
            done, _ = wait(futures, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
                yield futures.pop(future)
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed, perhaps for lack of memory: see the logs, or take fewer --jobs; "
            "the same command goes on"
        ) from error
    finally:
        for future in futures:
            future.cancel()

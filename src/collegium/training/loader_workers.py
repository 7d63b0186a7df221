"""Processes that read batches ahead: they end with their parent or by its wish, and by nobody else's.

A closed terminal, Ctrl-C, `timeout` and schedulers signal a whole process group. If a worker dies of that, the
parent gets no further batch and fails, in the middle of the step after which it wanted to write a checkpoint.

The signals are blocked before a worker exists, so none comes too early. A thread of it hears its parent, which
ends workers by SIGTERM where they do not end by themselves, and sees when the parent is gone, however it went.
"""

import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.context import BaseContext
from typing import Any

from torch.utils.data import DataLoader

from collegium.base.interruption import HANG_UP


_BLOCKED = {signal.SIGINT, signal.SIGTERM} | ({signal.Signals(HANG_UP)} if HANG_UP else set())


class LoaderWorker(multiprocessing.Process):
    """A process that signals to its group do not end."""

    def start(self) -> None:
        """Start it, with the signals blocked from its first moment on."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def run(self) -> None:
        """Work as long as the parent lives."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)  # here too: a fork server starts it otherwise
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
        super().run()


class LoaderContext(BaseContext):
    """The way in which this Python starts processes by default, with workers that are `LoaderWorker`s."""

    Process: Any = LoaderWorker

    def get_start_method(self, allow_none: bool = False) -> Any:
        """Name of the way."""
        return multiprocessing.get_start_method(allow_none)


def sheltered(loader: DataLoader[Any]) -> DataLoader[Any]:
    """Let a loader read by `LoaderWorker`s, if it reads by workers."""
    wrapped = getattr(loader, "base_dataloader", loader)  # accelerate's loader reads by the one that it holds
    if wrapped.num_workers and wrapped.multiprocessing_context is None and hasattr(signal, "pthread_sigmask"):
        wrapped.multiprocessing_context = LoaderContext()
    return loader


def _end_with_parent(parent: int) -> None:
    creator = multiprocessing.parent_process()
    own = {parent, parent if creator is None else creator.pid}
    while os.getppid() == parent:
        if _next_sender() in own:
            break
    os._exit(0)


def _next_sender() -> int | None:
    """Process that sent a SIGTERM in the next second, if one did."""
    if not hasattr(signal, "sigtimedwait"):  # macOS: the parent's SIGTERM is one more that is ignored
        time.sleep(1)
        return None
    found = signal.sigtimedwait({signal.SIGTERM}, 1)
    return None if found is None else found.si_pid

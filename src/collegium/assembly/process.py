"""This process among those of a run: its device, and who goes first where files are made."""

import contextlib
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import cast

import torch
from accelerate import PartialState
from transformers.utils.logging import disable_progress_bar

from collegium.base.errors import BusyError
from collegium.base.locks import folder_lock
from collegium.signals.metrics import max_over_ranks


disable_progress_bar()  # those of transformers; ours say what is going on


def process_state() -> PartialState:
    """Rank, number of ranks and device; a rank may wait for another one for a day."""
    return PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=1))


def process_device() -> torch.device:
    """The GPU of this rank, or the CPU."""
    return cast(torch.device, process_state().device)


@contextlib.contextmanager
def held_folder(folder: Path) -> Iterator[None]:
    """Hold a folder for all ranks: the first one has the lock, and all learn whether it got it.

    Raises:
        BusyError: another process holds it; on every rank, so that none waits for another.
    """
    state = process_state()
    with contextlib.ExitStack() as stack:
        refused = BusyError("")  # the first rank says why
        held = True
        if state.is_main_process:
            try:
                stack.enter_context(folder_lock(folder))
            except BusyError as error:
                refused = error
                held = False
        if max_over_ranks(int(not held)):
            raise refused
        yield


@contextlib.contextmanager
def first_rank_first() -> Iterator[None]:
    """Let the first rank make files that the others then find.

    On nodes that do not see the first one's disk, the first rank of each node makes them.
    """
    state = process_state()
    with state.main_process_first(), state.local_main_process_first():
        yield

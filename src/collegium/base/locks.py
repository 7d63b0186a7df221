"""One process at a time writes a folder: a lock that the system releases however its holder ends. No torch here.

The holder writes into the lock who it is, so that the second of two can say who was first. What a dead process
wrote there means nothing. `filelock` closes its descriptors in forked children, so no worker holds one longer.
"""

import errno
import json
import os
import shlex
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from collegium.base.errors import BusyError
from collegium.base.secrets import redacted
from collegium.base.terminal import say


LOCK_NAME = ".lock"

_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
_COMMAND_LENGTH = 200


@contextmanager
def folder_lock(directory: Path) -> Iterator[None]:
    """Hold `directory` for this process. On a file system without locks it says so, and holds nothing.

    Raises:
        BusyError: another process holds it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with path_lock(directory / LOCK_NAME, directory):
        yield


@contextmanager
def path_lock(path: Path, written: Path) -> Iterator[None]:
    """Hold `written` by a lock at `path`, whose folder is there.

    Raises:
        BusyError: another process holds it.
    """
    held: list[int] = []  # the lock's own descriptor: on Windows no other one may write into a locked file
    lock = FileLock(path, blocking=False, preserve_lock_file=True, on_acquired=held.append)
    try:
        lock.acquire()
    except Timeout:
        raise BusyError(
            f"{written}: is being written by {_holder(path)}: wait until it ends, or give another folder"
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        say(f"{written}: its file system has no locks, so nothing stops a second process that writes into it")
    try:
        if lock.is_locked:
            _overwrite(held[0], json.dumps(_this_process()))
        yield
    finally:
        if lock.is_locked:  # not in a child that was forked inside the block
            _overwrite(held[0], "")
            lock.release()


def _this_process() -> dict[str, str | int]:
    program = Path(sys.argv[0]).name
    words = ["collegium" if program == "__main__.py" else program, *sys.argv[1:]]
    return {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %Z"),
        "command": redacted(shlex.join(words))[:_COMMAND_LENGTH],
    }


def _overwrite(descriptor: int, text: str) -> None:
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, text.encode())


def _holder(path: Path) -> str:
    """Describe the holder of a lock by what it wrote into it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return "process {process} on {host} since {since} ({command})".format(**found)
    except (OSError, ValueError, KeyError, TypeError):  # on Windows a locked file cannot be read
        return "another process"

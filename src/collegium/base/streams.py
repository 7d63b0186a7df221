"""Standard streams that are closed, or that nobody reads any more. No torch here.

One that was closed before the start (`>&-`) is None in Python, and its number goes to the next file that is
opened, into which a library may print. A pipe whose reader has gone (`| head -1`), or a terminal that was closed,
fails every write, and once more when the process ends. Both become the null device: what nobody reads costs nobody
a run.
"""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator


def open_closed() -> None:
    """Give each standard stream that is closed the null device, and its number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            _reserve(number)
            setattr(sys, name, open(os.devnull, "w" if number else "r", encoding="utf-8"))  # noqa: SIM115  # for good


def _reserve(number: int) -> None:
    try:
        os.fstat(number)
    except OSError:
        _become_null(number)


@contextlib.contextmanager
def perhaps_unread(number: int) -> Iterator[None]:
    """Pass over a failure to write to a standard stream that nobody reads, and make it the null device.

    Args:
        number: 1, for results, whose other failures count (a file on a full disk); or 2, for lines on the way, of
            which none is worth a run.
    """
    try:
        yield
    except OSError as error:
        if number == 1 and error.errno not in (errno.EIO, errno.EPIPE):
            raise
        _become_null(number)


def _become_null(number: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    if null != number:
        os.dup2(null, number)
        os.close(null)
    os.set_inheritable(number, True)


def nobody_reads_results() -> bool:
    """Find out whether what was printed to stdout failed because its reader has gone."""
    try:
        sys.stdout.flush()  # fails again, as what could not be written is still there
    except BrokenPipeError:
        _become_null(1)
        return True
    return False

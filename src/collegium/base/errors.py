"""Errors that users can cause, each with the exit code of the command line. No torch here."""

import errno
from collections.abc import Mapping
from typing import Any


EXIT_CODES: Mapping[int, str] = {
    0: "done",
    1: "a fault of collegium's own, with a traceback",
    2: "the command line or the recipe cannot be used",
    65: "text, data, a model or a checkpoint cannot be used",
    69: "a teacher or the hub cannot be used",
    70: "a loss or gradient is not finite",
    74: "the disk is full or cannot be written",
    75: "another process is writing the same folder",
    129: "stopped by SIGHUP (a terminal that closed)",
    130: "stopped by SIGINT (Ctrl-C)",
    143: "stopped by SIGTERM, or by the end of the launcher",
}
"""Meaning of each exit code of the command line."""

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def pass_on_full_disk(error: BaseException) -> None:
    """Raise the error if it, or what caused it, says that the disk is full: no other reason is wanted then.

    Raises:
        OSError: with ENOSPC or EDQUOT.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in DISK_FULL:
            raise cause
        cause = cause.__cause__ or cause.__context__


def one_line(error: BaseException, limit: int = 200) -> str:
    """Message of a library's error, in one line of at most `limit` characters."""
    return " ".join(str(error).split())[:limit]


class UserError(Exception):
    """A mistake or mishap that a user can fix; the message says how."""

    exit_code = 1
    report: Mapping[str, Any] | None = None
    """Findings up to then; `--json` prints them beside the error."""


class RecipeError(UserError, ValueError):
    """A recipe or command line that cannot be used as it stands."""

    exit_code = 2


class DataError(UserError, ValueError):
    """Text, data set, model or checkpoint on disk that cannot be used."""

    exit_code = 65


class TeacherError(UserError, RuntimeError):
    """A teacher that cannot be used, or is no longer usable."""

    exit_code = 69


class HubError(UserError, RuntimeError):
    """A hub that is not there, or does not let an upload in."""

    exit_code = 69


class DiskError(UserError, RuntimeError):
    """A disk that has no room for what is to be written."""

    exit_code = 74


class BusyError(UserError, RuntimeError):
    """A folder that another process is writing."""

    exit_code = 75


class NumericError(UserError, ArithmeticError):
    """A loss or gradient that is not finite."""

    exit_code = 70

"""What goes wrong for users, each with the exit code of the command line. No torch here.

0 ok, 2 usage or recipe, 65 bad data or checkpoint, 69 teacher or hub unavailable, 70 numeric, 74 disk,
130 and 143 for the signals.
"""

import errno


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
    """What an error of a library says, in one line of at most `limit` characters."""
    return " ".join(str(error).split())[:limit]


class UserError(Exception):
    """A mistake or a mishap that a user can mend; its text says how."""

    exit_code = 1


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


class NumericError(UserError, ArithmeticError):
    """A loss or gradient that is not finite."""

    exit_code = 70

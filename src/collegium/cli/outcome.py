"""The end of a command: an exit code, and for a failure one line that says what to fix.

With `--json` stdout holds one document in every case: the result, or `{"error": {"type", "message",
"exit_code"}}` beside what was found before the failure. The line for people still goes to stderr.
"""

import json
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import Any, TextIO

from collegium.base.allocator import keep_freed_memory
from collegium.base.errors import DISK_FULL, UserError
from collegium.base.interruption import stop_signals, watch_launcher
from collegium.base.streams import nobody_reads_results, open_closed, perhaps_unread
from collegium.base.terminal import is_main_rank, only_json, presentable, restore_cursor, say, show_json


RESUMING = ("prepare", "train", "cache", "demo", "reproduce")
"""Commands that go on where they were stopped; the others begin again."""

NOT_RESUMING = (["verify"], ["export"])
"""Of those of `collegium cache`."""


def conclude(command: Callable[[], Any]) -> int:
    """Run a command and return its exit code; a failure that a user can fix is reported in one line."""
    open_closed()
    _quiet_libraries()
    keep_freed_memory()
    watch_launcher()
    with stop_signals(_stop_at_once):
        return _exit_code_of(command)


def _exit_code_of(command: Callable[[], Any]) -> int:
    try:
        with only_json(wants_json()):
            result = command()
        with perhaps_unread(1):
            sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except UserError as error:
        return _fail(error, str(error), error.exit_code)
    except BrokenPipeError as error:  # such as of `--help`, which is not printed by us
        return 0 if nobody_reads_results() else _fail(error, _describe(error), 74)
    except OSError as error:
        return _fail(error, _describe(error), 74)
    except Exception as error:
        return _other(error)


def wants_json() -> bool:
    """Tell whether `--json` was given, even on a command line that cannot be parsed."""
    return "--json" in sys.argv[1:]


def _resumes() -> bool:
    """Tell whether the command that was typed goes on where it was stopped."""
    words = [word for word in sys.argv[1:] if not word.startswith("-")]
    return bool(words) and words[0] in RESUMING and words[1:2] not in NOT_RESUMING


def _other(error: Exception) -> int:
    """Report a usage error or an end by a signal; raise anything else again, which is a bug of ours."""
    code = getattr(error, "exit_code", None)
    if not isinstance(code, int):
        _show_error(type(error).__name__, str(error), 1)
        raise error
    show = getattr(error, "show", None)
    if not callable(show):
        return _fail(error, str(error), code)
    error.message = presentable(getattr(error, "message", error))  # type: ignore[attr-defined]
    _show_error(type(error).__name__, error.message, code)  # type: ignore[attr-defined]
    show()
    return code


def _fail(error: Exception, message: str, code: int) -> int:
    _show_error(type(error).__name__, message, code, getattr(error, "report", None))
    if message:
        say(f"collegium: {message}", on_every_rank=True)
    return code


def _show_error(kind: str, message: str, code: int, report: Any = None) -> None:
    if wants_json():
        show_json({**(report or {}), "error": {"type": kind, "message": message, "exit_code": code}})


def _stop_at_once(number: int, _: Any) -> None:
    """Exit at once: a library could swallow an exception, and files survive even kill -9."""
    try:
        if is_main_rank():
            _say_stopped(number)
    finally:  # the terminal may be what is gone
        os._exit(128 + number)


def _say_stopped(number: int) -> None:
    message = f"stopped by {signal.Signals(number).name}" + ("; the same command resumes" if _resumes() else "")
    restore_cursor()
    with perhaps_unread(2):
        os.write(2, f"collegium: {message}\n".encode())
    if wants_json():
        content = {"error": {"type": "Stopped", "message": message, "exit_code": 128 + number}}
        os.write(1, f"{json.dumps(content)}\n".encode())


def _describe(error: OSError) -> str:
    place = f"{error.filename}: " if error.filename else ""
    if error.errno in DISK_FULL:
        again = "the same command again" + (" to resume" if _resumes() else "")
        return f"{place}the disk is full; free some space and run {again}"
    return f"{place}{error.strerror or error}"


class _Warnings(logging.StreamHandler[TextIO]):
    """Writes to the current `sys.stderr`: while a progress bar is drawn, lines go above it."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        """The message, and the traceback if there is one, without what a terminal would obey."""
        return presentable(super().format(record))


class _Record(logging.LogRecord):
    """A message of any library, whose own handlers write to the terminal too."""

    def getMessage(self) -> str:
        """The message without what a terminal would obey."""
        return presentable(super().getMessage())


def _show_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    say("".join(traceback.format_exception(kind, error, trace)).rstrip(), on_every_rank=True)


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    return presentable(_usual_format(message, category, filename, lineno, line))


_usual_format = warnings.formatwarning


def _quiet_libraries() -> None:
    sys.excepthook = _show_traceback
    warnings.formatwarning = _format_warning
    logging.setLogRecordFactory(_Record)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[_Warnings()])
    logging.getLogger("collegium").setLevel(logging.INFO)
    for name in ("torchao", "torch.utils._pytree"):  # they warn about GPU kernels that they lack
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # bars of downloads and conversions
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")

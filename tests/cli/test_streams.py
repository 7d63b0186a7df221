"""Results that nobody reads, standard streams that are closed, and what is said at a stop."""

import json
import subprocess
import sys

import pytest

from collegium.base.interruption import stop_signals
from collegium.cli import outcome
from collegium.training.callbacks import StopOnSignal


def shell(line: str, *, cwd: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which `collegium` is the command; it ends with the code of `collegium`."""
    text = f'collegium() {{ {sys.executable} -m collegium "$@"; }}; {line}; exit ${{PIPESTATUS[0]}}'
    return subprocess.run(["bash", "-c", text], capture_output=True, text=True, cwd=cwd, check=False, timeout=60)


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("collegium schema >&-", 0),
        ("collegium schema | head -c 1", 0),
        ("collegium schema | true", 0),
        ("collegium check none.yaml --json | true", 2),
        ("collegium check none.yaml --json <&- >&- 2>&-", 2),
        ("collegium check none.yaml 2>&1 | true", 2),
    ],
)
def test_a_result_that_nobody_reads_changes_no_exit_code(line, code, tmp_path):
    done = shell(line, cwd=str(tmp_path))
    assert done.returncode == code, done
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
def test_a_result_that_cannot_be_written_is_an_error(tmp_path):
    done = shell("collegium schema >/dev/full", cwd=str(tmp_path))
    assert done.returncode == 74 and "the disk is full" in done.stderr


@pytest.mark.parametrize(
    ("words", "resumes"),
    [
        ("train recipe.yaml", True),
        ("cache recipe.yaml --json", True),
        ("--json cache build recipe.yaml", True),
        ("cache repair folder", True),
        ("cache verify folder", False),
        ("doctor recipe.yaml", False),
        ("preflight recipe.yaml --json", False),
        ("evaluate run", False),
    ],
)
def test_only_a_command_that_resumes_says_so(words, resumes, monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["collegium", *words.split()])
    outcome._say_stopped(2)
    out, err = capfd.readouterr()
    message = "stopped by SIGINT" + ("; the same command resumes" if resumes else "")
    assert err == f"collegium: {message}\n"
    if "--json" in words:
        assert json.loads(out) == {"error": {"type": "Stopped", "message": message, "exit_code": 130}}


def test_a_second_wish_in_training_is_answered_by_the_command_line(monkeypatch):
    """It says that it stops, in JSON too; the exception that training raised passed all of that by."""

    class Answered(Exception):
        pass

    def answer(number: int, _: object) -> None:
        raise Answered(number)

    monkeypatch.setattr("collegium.training.callbacks._ONE_WISH", -1.0)
    signals = StopOnSignal()
    with pytest.raises(Answered, match="15"), stop_signals(answer), signals.listening():
        signals._receive(2, None)
        signals._receive(15, None)

"""The command line, called as a user calls it, in this process."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from collegium.cli.app import main


class Answer(NamedTuple):
    """What a command left."""

    code: int
    out: str
    err: str


Command = Callable[..., Answer]


def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Calls `collegium` with the given arguments."""

    def run(*arguments: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["collegium", *map(str, arguments)])
        monkeypatch.setattr(sys.modules["__main__"], "__package__", None)  # `python -m pytest` is not its name
        capsys.readouterr()
        code = main()
        return Answer(code, *capsys.readouterr())

    return run


def run(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command, in this process."""
    monkeypatch.setattr(sys, "argv", ["collegium", *arguments])
    try:
        code = main()
    except SystemExit as exit_:
        code = int(exit_.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def files_below(folder: Path) -> set[str]:
    """Names of all files in a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}

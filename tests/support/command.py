"""The command line, called as a user calls it, in this process."""

import sys
from collections.abc import Callable
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

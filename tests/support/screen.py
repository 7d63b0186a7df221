"""A terminal in place of stderr."""

import io
import re
import sys

import pytest


class Screen(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    """A wide terminal in place of stderr; each drawing shows, as if there was time between them."""
    stream = Screen()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr("collegium.base.terminal.DRAWN_INTERVAL", 0.0)
    return stream


def drawn(stream: Screen) -> list[str]:
    """Lines as they were drawn one over another, without colours and movements."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    return [line.rstrip() for line in re.split(r"[\r\n]+", text) if line.strip()]

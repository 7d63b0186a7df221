"""Phases: each is named, counts, and says how long it took, on terminals and in logs."""

import os
import subprocess
import sys
import time

import pytest

from collegium.base import progress
from collegium.base.progress import Phase, phases
from tests.support.screen import drawn, screen


class Clock:
    """Time that passes when it is told to; the thread that shows it is left out."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(progress, "monotonic", lambda: self.now)
        monkeypatch.setattr(progress, "BEAT", 3600.0)

    def beat(self) -> None:
        """What the thread does each half second."""
        progress._shown._draw(every=progress.SILENCE)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def said(capsys) -> list[str]:
    return capsys.readouterr().err.splitlines()


class TestInALog:
    def test_a_line_at_the_beginning_now_and_then_and_at_the_end(self, clock, capsys):
        with Phase("choosing layers", total=100, unit="passes") as phase:
            for _ in phase.counted(range(100)):
                clock.now += 0.25
        assert said(capsys) == [
            "choosing layers: 0 of 100 passes",
            "choosing layers: 40 of 100 passes; 4 passes/s, 15s left",
            "choosing layers: 80 of 100 passes; 4 passes/s, 5s left",
            "choosing layers: 100 of 100 passes, took 25s",
        ]

    def test_what_cannot_be_counted_says_that_it_goes_on(self, clock, capsys):
        with Phase("loading teacher web"):
            for _ in range(130):
                clock.now += 0.5
                clock.beat()
        assert said(capsys) == [
            "loading teacher web",
            "loading teacher web; 30s",
            "loading teacher web; 1m00s",
            "loading teacher web: took 1m05s",
        ]

    def test_a_phase_in_another_is_named_with_it_if_it_takes_a_while(self, clock, capsys):
        with Phase("measuring the student"):
            with Phase("held-out text of web", total=8, unit="blocks") as phase:
                phase.advance(8)
            with Phase("held-out text of code", total=8, unit="blocks") as phase:
                clock.now += 2
                phase.advance(3)
                clock.now += 2
                phase.advance(5)
        assert said(capsys) == [
            "measuring the student",
            "measuring the student, held-out text of code: 3 of 8 blocks",
            "measuring the student, held-out text of code: 8 of 8 blocks, took 4s",
            "measuring the student: took 4s",
        ]

    def test_what_was_done_before_says_nothing_of_the_rate(self, clock, capsys):
        with Phase("training", unit="steps") as phase:
            phase.begin_at(50, 100)
            clock.now += 10
            phase.update(60, note="loss 2.000")
        assert said(capsys)[1:] == [
            "training: 60 of 100 steps, loss 2.000; 1 steps/s, 40s left",
            "training: 60 of 100 steps, loss 2.000, took 10s",
        ]

    def test_one_that_fails_says_nothing_more_and_is_over(self, clock, capsys):
        with pytest.raises(ValueError, match="x"), Phase("outer"), Phase("inner"):
            clock.now += 5
            raise ValueError("x")
        assert said(capsys) == ["outer"] and phases() == ()

    def test_other_ranks_say_nothing(self, clock, capsys, monkeypatch):
        monkeypatch.setenv("RANK", "1")
        with Phase("loading"):
            clock.now += 60
            clock.beat()
        assert said(capsys) == []


class TestOnATerminal:
    def test_one_line_is_redrawn_and_what_took_a_while_stays(self, clock, monkeypatch):
        stream = screen(monkeypatch)
        with Phase("measuring"), Phase("held-out text", total=4, unit="blocks") as phase:
            for _ in phase.counted(range(4)):
                clock.now += 1
        lines = drawn(stream)
        assert "%" not in lines[0] and "measuring " in lines[0]
        assert any("0% measuring, held-out text: 0 of 4 blocks" in line for line in lines)
        assert any("75% measuring, held-out text: 3 of 4 blocks" in line for line in lines)
        assert "measuring, held-out text: 4 of 4 blocks, took 4s" in lines and lines[-1] == "measuring: took 4s"
        assert stream.getvalue().count("\x1b[?25l") == stream.getvalue().count("\x1b[?25h") == 1, "one bar"

    def test_time_passes_where_nothing_is_counted(self, monkeypatch):
        stream = screen(monkeypatch)
        monkeypatch.setattr(progress, "BEAT", 0.01)
        with Phase("loading"):
            time.sleep(0.2)
        assert len([line for line in drawn(stream) if "loading" in line]) > 5

    def test_the_thread_ends_with_the_phases(self, monkeypatch):
        import threading

        monkeypatch.setattr(progress, "BEAT", 0.01)
        with Phase("one"), Phase("two"):
            assert any(thread.name == "phases" for thread in threading.enumerate())
        time.sleep(0.1)
        assert not any(thread.name == "phases" for thread in threading.enumerate())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_begins_without_phases_and_without_a_held_lock():
    """As a data loader does in the middle of training, while the thread draws without a pause."""
    code = """
import os, sys
from collegium.base import progress
progress.BEAT, progress.SILENCE = 1e-5, 0.0
with progress.Phase("training"):
    for _ in range(100):
        child = os.fork()
        if not child:
            clean = progress.phases() == ()
            with progress.Phase("in the child"):
                pass
            os._exit(0 if clean else 1)
        if os.waitpid(child, 0)[1]:
            sys.exit("a child failed")
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, stderr=subprocess.DEVNULL)

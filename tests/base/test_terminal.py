"""What people see: tables, rates and durations."""

import re
import sys

import pytest

from collegium.base.terminal import Bar, duration, is_terminal, plain_table, rate_and_eta, say, show_table
from tests.support.screen import drawn, screen


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (7.4, "7s"), (59.6, "1m00s"), (130, "2m10s"), (3599.7, "1h00m"), (3900, "1h05m")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_rates():
    assert rate_and_eta(2500, 5000, 2, "tokens") == "1,250 tokens/s, 2s left"
    assert rate_and_eta(2, 4, 11.8, "steps") == "5.9 s/step, 12s left"
    assert rate_and_eta(0, 4, 1, "steps") == "0 steps/s"
    assert rate_and_eta(10, None, 1, "steps") == "10 steps/s"


def test_table_is_aligned():
    lines = plain_table(
        "Title", ["", "a", "long"], [["row", "1.0", "2"], ["longer row", "10.0", "3"]]
    ).splitlines()
    assert lines == [
        "Title",
        "",
        "               a  long",
        "----------  ----  ----",
        "row          1.0     2",
        "longer row  10.0     3",
    ]


def test_only_the_first_rank_speaks(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    say("x")
    show_table("t", ["a"], [["b"]])
    assert capsys.readouterr() == ("", "")


def test_a_dumb_terminal_is_none(monkeypatch):
    assert is_terminal(screen(monkeypatch))
    monkeypatch.setenv("TERM", "dumb")
    assert not is_terminal(sys.stderr)


class TestTheBar:
    def test_it_is_drawn_with_the_text_and_gone_in_the_end(self, monkeypatch):
        stream = screen(monkeypatch)
        bar = Bar()
        bar.draw("step 1/4: loss 2.000", pace="3 steps/s, 1s left", done=1, total=4)
        bar.draw("step 3/4: loss [1.5]", pace="3 steps/s, 0s left", done=3, total=4)
        say("said meanwhile")
        bar.clear()
        say("trained")
        lines = drawn(stream)
        first, second = (next(text for text in lines if f"step {n}/4" in text) for n in (1, 3))
        assert re.fullmatch(r"[━╸╺ ]+ 25% step 1/4: loss 2.000 +3 steps/s, 1s left", first)
        assert re.fullmatch(r"[━╸╺ ]+ 75% step 3/4: loss \[1.5\] +3 steps/s, 0s left", second)
        assert "said meanwhile" in lines and lines[-1] == "trained"
        assert stream.getvalue().count("\x1b[?25l") == stream.getvalue().count("\x1b[?25h") == 1, "the cursor"

    def test_without_an_end_there_is_no_share(self, monkeypatch):
        stream = screen(monkeypatch)
        bar = Bar()
        bar.draw("preparing web: 3 documents")
        assert "%" not in drawn(stream)[0] and "preparing web: 3 documents" in drawn(stream)[0]
        bar.clear()

    def test_a_long_text_stays_on_one_line(self, monkeypatch):
        stream = screen(monkeypatch)
        monkeypatch.setenv("COLUMNS", "60")
        bar = Bar()
        bar.draw("word " * 40, pace="9s left", done=1, total=2)
        assert "\n" not in stream.getvalue()
        assert {len(text) for text in drawn(stream)} == {60}
        assert all("50% word" in text for text in drawn(stream)), "the text is cut, not the bar"
        assert all(text.endswith(" 9s left") for text in drawn(stream)), "nor what is left"
        bar.clear()

    def test_colours_are_left_out_where_they_are_not_wanted(self, monkeypatch):
        stream = screen(monkeypatch)

        def colours() -> list[str]:
            return re.findall(r"\x1b\[[0-9;]*m", stream.getvalue())

        Bar().draw("step", done=1, total=2)
        assert any(";5;" in colour or re.search(r"\[3\dm", colour) for colour in colours())
        stream.truncate(0)
        monkeypatch.setenv("NO_COLOR", "1")
        Bar().draw("step", done=1, total=2)
        assert not any(";5;" in colour or re.search(r"\[3\dm", colour) for colour in colours())

    def test_other_ranks_draw_nothing(self, monkeypatch):
        stream = screen(monkeypatch)
        monkeypatch.setenv("RANK", "1")
        bar = Bar()
        bar.draw("step", done=1, total=2)
        bar.clear()
        assert stream.getvalue() == ""

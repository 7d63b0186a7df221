"""What people see: tables, rates and durations."""

import pytest

from collegium.terminal import ProgressLine, duration, plain_table, rate_and_eta, say, show_table


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
    line = ProgressLine()
    line.update("y")
    line.finish("z")
    assert capsys.readouterr() == ("", "")


def test_progress_without_a_terminal_is_a_line_now_and_then(capsys):
    line = ProgressLine()
    for i in range(100):
        line.update(f"step {i}")
    line.finish("done")
    assert capsys.readouterr().err.splitlines() == ["step 0", "done"]

"""Signals, closed terminals and dead launchers end a run after a checkpoint, and nothing of it lives on.

As long as it lives, no second one writes into its folder.
"""

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from collegium.base.locks import folder_lock, path_lock
from collegium.training.callbacks import StopOnSignal, Stopped
from tests.support.command import files_below, run
from tests.support.forked_command import CommandWorker, ForkedCommand, command_worker, group_of
from tests.support.runs import write_recipe


LONG = ("training.max_steps=100000", "training.save_every=50000", "training.log_every=1")
STOPS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


@pytest.fixture(scope="module")
def worker() -> Iterator[CommandWorker]:
    with command_worker() as started:
        yield started


@pytest.fixture
def recipe(tmp_path, model_folder, monkeypatch) -> Path:
    monkeypatch.setenv("COLLEGIUM_CACHE", str(tmp_path / "cache"))
    return write_recipe(tmp_path / "files", model_folder)


def begun(worker: CommandWorker, recipe: Path, *words: str, folder: Path, **order) -> ForkedCommand:
    """A long training that has made some steps."""
    metrics = metrics_of(folder)
    metrics.unlink(missing_ok=True)
    command = worker.start(folder, "train", recipe, *LONG, *words, log=folder / "log", **order)
    command.until(lambda: metrics.exists() and metrics.read_text().count("\n") > 3)
    return command


def metrics_of(folder: Path) -> Path:
    return folder / "runs" / "pico" / "metrics.jsonl"


def require_checkpoint(folder: Path, command: ForkedCommand, number: int) -> None:
    """One checkpoint, and it is that of the step that the message names."""
    (checkpoint,) = (folder / "runs" / "pico" / "checkpoints").glob("checkpoint-*")
    step = checkpoint.name.split("-")[1]
    expected = f"stopped by {signal.Signals(number).name} after step {step}; the same command resumes"
    assert expected in command.text


def require_none_left(command: ForkedCommand, seconds: float = 20) -> None:
    command.until(lambda: not command.survivors(), seconds)


@pytest.mark.parametrize("number", STOPS)
def test_a_signal_to_the_whole_group_leaves_a_checkpoint(worker, recipe, tmp_path, number):
    """The workers that read ahead get it too, and used to take the run with them; a launcher passes it on."""
    command = begun(worker, recipe, "training.num_workers=2", folder=tmp_path)
    assert len(command.survivors()) == 3
    for _ in range(3):
        command.signal(number)
        time.sleep(0.01)
    assert command.wait() == 128 + number, command.text
    require_checkpoint(tmp_path, command, number)
    require_none_left(command)


def test_loader_workers_end_with_a_killed_parent(worker, recipe, tmp_path):
    command = begun(worker, recipe, "training.num_workers=2", folder=tmp_path)
    os.kill(command.pid, signal.SIGKILL)
    assert command.wait() == -signal.SIGKILL
    again = begun(worker, recipe, "training.num_workers=2", folder=tmp_path)  # at once: no lock is in the way
    again.signal(signal.SIGKILL)
    again.wait()
    require_none_left(command)


def test_a_second_wish_stops_at_once(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("collegium.training.callbacks.time.monotonic", lambda: now[0])
    signals = StopOnSignal()
    with signals.listening():
        os.kill(os.getpid(), signal.SIGINT)
        now[0] += 1
        os.kill(os.getpid(), signal.SIGINT)  # of a launcher
        now[0] += 2
        os.kill(os.getpid(), signal.SIGHUP)  # of the shell, after that of the terminal
        with pytest.raises(SystemExit) as end:
            os.kill(os.getpid(), signal.SIGTERM)
    assert end.value.code == 143
    with pytest.raises(Stopped, match="stopped by SIGINT after step 7"):
        signals.raise_if_stopped(7)


def test_nohup_outlives_the_terminal(worker, recipe, tmp_path):
    command = begun(worker, recipe, folder=tmp_path, nohup=True)
    command.signal(signal.SIGHUP)
    steps = metrics_of(tmp_path).read_text().count("\n")
    command.until(lambda: metrics_of(tmp_path).read_text().count("\n") > steps + 5)
    command.signal(signal.SIGTERM)
    assert command.wait() == 143
    require_checkpoint(tmp_path, command, signal.SIGTERM)


def test_a_terminal_that_closes_leaves_a_checkpoint(worker, recipe, tmp_path):
    """Each line that is printed from then on fails, which must not cost the run its last step."""
    command = begun(worker, recipe, "training.num_workers=1", folder=tmp_path, terminal=True)
    worker.close_terminal()
    assert command.wait() == 129
    assert len(list((tmp_path / "runs" / "pico" / "checkpoints").glob("checkpoint-*"))) == 1
    require_none_left(command)


def test_a_reader_that_is_gone_does_not_spoil_the_end(worker, recipe, tmp_path):
    """As in `collegium train RECIPE 2>&1 | tee log`: Ctrl-C ends tee first."""
    os.mkfifo(tmp_path / "log")
    reader = os.open(tmp_path / "log", os.O_RDONLY | os.O_NONBLOCK)
    command = begun(worker, recipe, folder=tmp_path)
    os.close(reader)
    command.signal(signal.SIGINT)
    assert command.wait() == 130
    assert len(list((tmp_path / "runs" / "pico" / "checkpoints").glob("checkpoint-*"))) == 1


def test_ranks_end_with_their_launcher(worker, recipe, tmp_path):
    """It is killed and can tell them nothing; they stop after the same step, with a checkpoint."""
    command = begun(worker, recipe, "training.num_workers=1", folder=tmp_path, ranks=2)
    os.kill(command.pid, signal.SIGKILL)
    killed_at = time.monotonic()
    command.wait()
    require_none_left(command, 60)
    assert time.monotonic() - killed_at < 60
    assert f"the launcher (process {command.pid}) has ended" in command.text
    require_checkpoint(tmp_path, command, signal.SIGTERM)


def test_a_signal_to_one_rank_stops_both(worker, recipe, tmp_path):
    command = begun(worker, recipe, folder=tmp_path, ranks=2)
    os.kill(command.ranks[1], signal.SIGTERM)
    assert command.wait() == 143
    require_checkpoint(tmp_path, command, signal.SIGTERM)
    require_none_left(command)


def test_ranks_that_wait_for_each_other_end_with_their_launcher(worker, recipe, tmp_path):
    """Python hears no signal inside a collective call, so they are ended by force."""
    settings = {"collegium.base.interruption:GRACE": 1.0}
    command = begun(worker, recipe, folder=tmp_path, ranks=2, settings=settings)
    os.kill(command.ranks[0], signal.SIGSTOP)
    os.kill(command.pid, signal.SIGKILL)
    command.wait()
    command.until(lambda: group_of(command.ranks[1]) is None, 20)
    os.kill(command.ranks[0], signal.SIGKILL)
    require_none_left(command)


# One run in a folder.


def content_of(folder: Path) -> dict[str, bytes]:
    return {
        name: (folder / name).read_bytes() for name in files_below(folder) if not name.endswith("metrics.jsonl")
    }


def test_the_second_of_two_starts_says_who_holds_the_folder(worker, recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    first = begun(worker, recipe, folder=tmp_path)
    before = content_of(tmp_path / "runs")
    code, _, error = run(["train", str(recipe), *LONG], monkeypatch, capsys)
    assert code == 75
    assert f"runs/pico: is being written by process {first.pid} on {socket.gethostname()} since 20" in error
    assert f"(collegium train {recipe} training.max_steps=" in error
    assert content_of(tmp_path / "runs") == before
    assert run(["check", str(recipe), *LONG], monkeypatch, capsys)[0] == 0
    first.signal(signal.SIGKILL)
    first.wait()
    again = begun(worker, recipe, folder=tmp_path)
    again.signal(signal.SIGTERM)
    assert again.wait() == 143, again.text


def test_ranks_learn_together_that_the_folder_is_held(worker, recipe, tmp_path):
    with folder_lock(tmp_path / "runs" / "pico"):
        command = worker.start(tmp_path, "train", recipe, log=tmp_path / "log", ranks=2)
        assert command.wait() == 75
    assert command.text.count("is being written by") == 1
    require_none_left(command)


def test_what_writes_into_a_run_waits_for_nobody_and_what_reads_may_read(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["train", str(recipe)], monkeypatch, capsys)[0] == 0
    before = content_of(tmp_path / "runs")
    with folder_lock(tmp_path / "runs" / "pico"):
        for words in ("evaluate runs/pico", "export runs/pico --to safetensors-int8", f"train {recipe}"):
            code, _, error = run(words.split(), monkeypatch, capsys)
            assert code == 75, error
            assert f"runs/pico: is being written by process {os.getpid()} on" in error
        held = content_of(tmp_path / "runs")
        assert {name: held[name] for name in before if name != "pico/.lock"} == {
            name: content for name, content in before.items() if name != "pico/.lock"
        }
        for words in ("report runs/pico", f"check {recipe}"):
            assert run(words.split(), monkeypatch, capsys)[0] == 0
    with folder_lock(tmp_path / "elsewhere"):
        words = ["evaluate", "runs/pico/student", "--recipe", str(recipe), "--output", "elsewhere"]
        assert run(words, monkeypatch, capsys)[0] == 75
    with path_lock(tmp_path / ".out.lock", tmp_path / "out"):
        words = ["export", "runs/pico", "--to", "safetensors-int8", "--output", "out"]
        assert run(words, monkeypatch, capsys)[0] == 75

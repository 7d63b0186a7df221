"""The real launchers: however they or their ranks are ended, a checkpoint is left and no process."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.runs import write_recipe


LAUNCHERS = {
    "torchrun": ("torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "collegium"),
    "accelerate": ("accelerate.commands.launch", "--cpu", "--num_processes=1", "-m", "collegium"),
}
WAYS = {
    "the group gets SIGTERM": (signal.SIGTERM, "group"),
    "the group gets SIGINT": (signal.SIGINT, "group"),
    "the group gets SIGHUP": (signal.SIGHUP, "group"),
    "the launcher gets SIGTERM": (signal.SIGTERM, "launcher"),
    "the launcher is killed": (signal.SIGKILL, "launcher"),
    "one rank gets SIGTERM": (signal.SIGTERM, "rank"),
}

pytestmark = pytest.mark.slow


class Launched:
    """A training of some ranks under a launcher, which is known by a variable of its environment."""

    def __init__(self, launcher: str, folder: Path, recipe: Path) -> None:
        self.folder = folder
        self.mark = f"COLLEGIUM_CACHE={folder / 'cache'}".encode()
        changes = ("training.max_steps=100000", "training.save_every=50000", "training.num_workers=1")
        self.process = subprocess.Popen(
            [sys.executable, "-m", *LAUNCHERS[launcher], "train", str(recipe), *changes],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", "COLLEGIUM_CACHE": str(folder / "cache")},
            stderr=(folder / "log").open("wb"),
            start_new_session=True,
        )

    def alive(self) -> list[int]:
        """Pids of all that live: launcher, ranks, and what reads ahead for them."""
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with suppress(OSError):
                state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
                if state != "Z" and self.mark in Path(f"/proc/{pid}/environ").read_bytes():
                    found.append(int(pid))
        return found

    def ranks(self) -> list[int]:
        """Pids of the launcher's children."""
        children = f"/proc/{self.process.pid}/task/{self.process.pid}/children"
        return [int(pid) for pid in Path(children).read_text().split()]

    def until(self, reached, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not reached():
            assert time.monotonic() < deadline, (self.folder / "log").read_text()[-4000:]
            time.sleep(0.1)


@pytest.fixture
def launch(tmp_path, model_folder) -> Iterator:
    started: list[Launched] = []

    def start(launcher: str) -> Launched:
        started.append(Launched(launcher, tmp_path, write_recipe(tmp_path / "files", model_folder)))
        return started[0]

    yield start
    for pid in started[0].alive():
        os.kill(pid, signal.SIGKILL)
    started[0].process.wait()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_however_it_ends_a_checkpoint_is_left_and_no_process(launch, launcher, way, tmp_path):
    run = launch(launcher)
    metrics = tmp_path / "runs" / "pico" / "metrics.jsonl"
    run.until(lambda: metrics.exists() and metrics.read_text().count("\n") > 3, 240)
    number, whom = WAYS[way]
    if whom == "group":
        os.killpg(run.process.pid, number)
    else:
        os.kill(run.process.pid if whom == "launcher" else run.ranks()[-1], number)
    run.process.wait(timeout=120)
    run.until(lambda: not run.alive(), 120)
    log = (tmp_path / "log").read_text()
    (checkpoint,) = (tmp_path / "runs" / "pico" / "checkpoints").glob("checkpoint-*")
    assert f"after step {checkpoint.name.split('-')[1]}; the same command resumes" in log

"""Training that is killed at any moment and started again ends with the weights of an undisturbed run."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from collegium.signals.metrics import read_jsonl


class Zygote:
    """Starts runs; see `training_kill_worker`."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        worker = str(Path(__file__).parents[1] / "support" / "training_kill_worker.py")
        self._process = subprocess.Popen(
            [sys.executable, worker], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(self, folder: Path, *, kill_after: float | None = None, crash_at: int | None = None) -> int:
        """Exit status of one run; negative is a signal."""
        order = {"folder": str(folder), **({} if crash_at is None else {"crash_at": crash_at})}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        pid = int(self._process.stdout.readline())
        if kill_after is not None:
            time.sleep(kill_after)
            with contextlib.suppress(ProcessLookupError):  # it was done sooner than the first run
                os.kill(pid, signal.SIGKILL)
        return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=60)


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    process = Zygote()
    yield process
    process.close()


@pytest.fixture(scope="module")
def undisturbed(zygote, tmp_path_factory) -> tuple[bytes, float]:
    """Final weights of a run that nobody kills, and how long it takes."""
    zygote.run(tmp_path_factory.mktemp("warm-up"))
    folder = tmp_path_factory.mktemp("undisturbed")
    start = time.monotonic()
    assert zygote.run(folder) == 0
    return (folder / "weights.safetensors").read_bytes(), time.monotonic() - start


def check(folder: Path, weights: bytes) -> None:
    assert (folder / "weights.safetensors").read_bytes() == weights
    assert not list(folder.glob(".writing-*"))
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-5", "checkpoint-6"]
    steps = [line["step"] for line in read_jsonl(folder / "metrics.jsonl") if "train/loss" in line]
    assert steps == [1, 2, 3, 4, 5, 6]


def kill_at_random(zygote: Zygote, undisturbed: tuple[bytes, float], root: Path, num_kills: int) -> None:
    weights, duration = undisturbed
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")  # shown if the test fails
    generator = random.Random(seed)
    killed = trial = 0
    while killed < num_kills:
        folder, trial = root / f"trial-{trial}", trial + 1
        folder.mkdir()
        for _ in range(generator.randint(1, 4)):
            status = zygote.run(folder, kill_after=generator.uniform(0.0, 0.7 * duration))
            assert status in (0, -signal.SIGKILL)
            killed += status == -signal.SIGKILL
        assert zygote.run(folder) == 0
        check(folder, weights)


def test_kill_9_at_random_moments(zygote, undisturbed, tmp_path):
    kill_at_random(zygote, undisturbed, tmp_path, num_kills=20)


def crash_at_calls(zygote: Zygote, weights: bytes, root: Path, every: int) -> int:
    """Crash at every n-th file system call of a run; returns how many calls that was."""
    number, crashes = 1, 0
    while True:
        folder = root / f"call-{number}"
        folder.mkdir()
        status = zygote.run(folder, crash_at=number)
        assert status in (0, 9)
        if status == 0:
            return crashes
        crashes += 1
        assert zygote.run(folder) == 0
        check(folder, weights)
        number += every


def test_crash_at_file_system_calls(zygote, undisturbed, tmp_path):
    assert crash_at_calls(zygote, undisturbed[0], tmp_path, every=11) > 5


@pytest.mark.slow
def test_crash_at_every_file_system_call(zygote, undisturbed, tmp_path):
    assert crash_at_calls(zygote, undisturbed[0], tmp_path, every=1) > 40

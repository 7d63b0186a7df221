"""A build that is killed at any moment and started again ends byte for byte as if nobody had killed it.

What was done is kept: at most the shard that each process was at is scored again.
"""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from collegium.cache.folder import Folder
from collegium.cache.verify import verify
from tests.support.caches import MODES, ROWS_PER_SHARD, Zygote, all_rows, content_of


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    process = Zygote()
    yield process
    process.close()


@pytest.fixture(scope="module")
def undisturbed(zygote, tmp_path_factory) -> dict[str, tuple[dict[str, bytes], float]]:
    """Of each mode, the files of a build that nobody kills, and how long it takes."""
    found = {}
    for mode in MODES:
        zygote.run(tmp_path_factory.mktemp("warm-up"), mode=mode)
        folder = tmp_path_factory.mktemp("undisturbed")
        start = time.monotonic()
        assert zygote.run(folder, mode=mode) == 0
        duration = time.monotonic() - start
        found[mode] = (content_of(folder), duration)
        assert len([name for name in found[mode][0] if name.endswith(".parquet")]) == 7
    return found


def scored(log: Path) -> Counter[str]:
    """How often each block was scored."""
    return Counter(log.read_text().split()) if log.exists() else Counter()


def check(folder: Path, files: dict[str, bytes]) -> None:
    assert content_of(folder) == files
    assert verify(Folder.at(folder)).strangers == ()
    assert verify(Folder.at(folder)).damages == ()


def kill_at_random(zygote: Zygote, undisturbed, root: Path, num_kills: int) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")  # shown if the test fails
    generator = random.Random(seed)
    killed = trial = repeated = 0
    while killed < num_kills:
        folder, log, trial = root / f"trial-{trial}", root / f"log-{trial}", trial + 1
        mode = generator.choice(MODES)
        files, duration = undisturbed[mode]
        order = {"mode": mode, "log": str(log)}
        allowed = 0
        for _ in range(generator.randint(1, 4)):
            ranks = generator.choice([1, 1, 2, 3])
            status = zygote.run(folder, kill_after=generator.uniform(0.0, duration), ranks=ranks, **order)
            assert status in (0, -signal.SIGKILL)
            if status != 0:
                killed += 1
                allowed += ranks * ROWS_PER_SHARD + (mode == "hidden_states")  # for its head a block is scored
        assert zygote.run(folder, ranks=generator.choice([1, 2]), **order) == 0
        check(folder, files)
        assert len(scored(log)) == len(all_rows())
        again = sum(scored(log).values()) - len(all_rows()) - (mode == "hidden_states")
        assert 0 <= again <= allowed
        repeated += again
    assert repeated > 0  # or nothing was killed in time


def test_kill_9_at_random_moments(zygote, undisturbed, tmp_path):
    kill_at_random(zygote, undisturbed, tmp_path, num_kills=30)


@pytest.mark.slow
def test_kill_9_at_hundreds_of_random_moments(zygote, undisturbed, tmp_path):
    kill_at_random(zygote, undisturbed, tmp_path, num_kills=int(os.environ.get("COLLEGIUM_KILLS", "200")))


def crash_at_calls(zygote: Zygote, files: dict[str, bytes], root: Path, *, mode: str, every: int) -> int:
    """Crash at every n-th file system call of a build; returns how many calls that was."""
    number, crashes = 1, 0
    while True:
        folder, log = root / f"call-{number}", root / f"log-{number}"
        order = {"mode": mode, "log": str(log)}
        status = zygote.run(folder, crash_at=number, **order)
        assert status in (0, 9)
        if status == 9:
            crashes += 1
            before = sum(scored(log).values())
            assert zygote.run(folder, **order) == 0
            assert sum(scored(log).values()) <= len(all_rows()) + ROWS_PER_SHARD + 2
            if before == 0:
                assert sum(scored(log).values()) == len(all_rows()) + (mode == "hidden_states")
        check(folder, files)
        if status == 0:
            return crashes
        number += every


@pytest.mark.parametrize("mode", ["top_k", "hidden_states"])
def test_crash_at_file_system_calls(zygote, undisturbed, tmp_path, mode):
    assert crash_at_calls(zygote, undisturbed[mode][0], tmp_path, mode=mode, every=4) > 10


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_crash_at_every_file_system_call(zygote, undisturbed, tmp_path, mode):
    assert crash_at_calls(zygote, undisturbed[mode][0], tmp_path, mode=mode, every=1) > 45


def test_killed_again_and_again(zygote, undisturbed, tmp_path):
    """Each build gets a little further, though none is left alone."""
    folder, log = tmp_path / "cache", tmp_path / "log"
    status, kills = 9, 0
    while status == 9:
        status = zygote.run(folder, crash_at=9, log=str(log))
        kills += status == 9
        assert kills < 40
    assert status == 0 and kills > 5
    check(folder, undisturbed["top_k"][0])
    assert max(scored(log).values()) <= 2


def test_a_shard_that_was_recorded_is_not_scored_again(zygote, undisturbed, tmp_path):
    folder, log = tmp_path / "cache", tmp_path / "log"
    pid = zygote.start(folder, log=str(log))
    while len(list((folder / "shards").glob("shard-*.json"))) < 3:
        time.sleep(0.001)
    os.kill(pid, signal.SIGSTOP)
    time.sleep(0.05)
    recorded = len(list((folder / "shards").glob("shard-*.json")))
    os.kill(pid, signal.SIGKILL)
    assert zygote.wait() == -signal.SIGKILL
    before = sum(scored(log).values())
    assert zygote.run(folder, log=str(log)) == 0
    after = sum(scored(log).values())
    assert after - before == len(all_rows()) - ROWS_PER_SHARD * recorded
    check(folder, undisturbed["top_k"][0])


def test_a_finished_cache_is_not_touched(zygote, undisturbed, tmp_path):
    folder, log = tmp_path / "cache", tmp_path / "log"
    assert zygote.run(folder, log=str(log)) == 0
    assert zygote.run(folder, log=str(log)) == 0
    assert set(scored(log).values()) == {1}
    check(folder, undisturbed["top_k"][0])

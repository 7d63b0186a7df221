"""Real processes: all work is done, failures are reported, and none outlives its parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from collegium.base.errors import UserError
from collegium.paper.workers import finished, gpu_of, worker_pool
from tests.support import pool_work


PROGRAM = Path(pool_work.__file__)


def wait_until(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_all_items_are_done_with_equal_threads_in_processes_that_stay(tmp_path):
    items = [tmp_path / str(number) for number in range(5)]
    with worker_pool(2, tmp_path / "logs") as workers:
        for wave in (items[:4], items[4:]):  # one item is for one process, which has no more threads for that
            assert sorted(finished(workers, pool_work.mark, wave)) == wave
    texts = [path.read_text().split() for path in items]
    assert len({pid for pid, _ in texts}) <= 2
    assert {threads for _, threads in texts} == {str(max(1, (os.cpu_count() or 1) // 2))}
    logs = "".join(path.read_text() for path in (tmp_path / "logs").iterdir())
    assert all(f"wrote {number}\n" in logs for number in range(5))


def test_the_first_failure_is_raised_and_ends_the_others(tmp_path):
    items = [tmp_path / "slow", tmp_path / "bad"]
    start = time.monotonic()
    with pytest.raises(ValueError, match="this one is bad"), worker_pool(2, tmp_path / "logs") as workers:
        list(finished(workers, pool_work.fail_or_linger, items))
    pid = int((tmp_path / "slow").read_text())
    wait_until(lambda: not is_running(pid), 10.0)
    assert time.monotonic() - start < 60


def test_a_killed_process_is_reported_with_the_fix(tmp_path):
    with (
        pytest.raises(UserError, match="a worker process was killed.*take fewer --jobs; the same command goes on"),
        worker_pool(1, tmp_path / "logs") as workers,
    ):
        list(finished(workers, pool_work.end_at_once, [tmp_path]))


def test_processes_end_when_their_parent_is_killed(tmp_path):
    program = subprocess.Popen([sys.executable, str(PROGRAM), str(tmp_path)])
    try:
        wait_until(lambda: (tmp_path / "one").exists() and (tmp_path / "two").exists())
        pids = [int((tmp_path / name).read_text()) for name in ("one", "two")]
        assert len({*pids, program.pid}) == 3
        assert all(map(is_running, pids))
    finally:
        os.kill(program.pid, signal.SIGKILL)
        program.wait()
    wait_until(lambda: not any(map(is_running, pids)), 10.0)


def test_gpus_are_those_that_are_visible_in_turn():
    assert [gpu_of(number, 2, None) for number in range(3)] == ["0", "1", "0"]
    assert [gpu_of(number, 2, "3, 5") for number in range(3)] == ["3", "5", "3"]
    assert gpu_of(1, 2, "GPU-aa,GPU-bb") == "GPU-bb"

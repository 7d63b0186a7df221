"""One process at a time holds a folder, and the system releases it however the process ends."""

import os
import signal
import subprocess
import sys

import pytest

from collegium.base.durable import LOCK_NAME, folder_lock
from collegium.base.errors import DataError


HOLDER = """
import sys, time
from pathlib import Path
from collegium.base.durable import folder_lock
with folder_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds `tmp_path`."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_folder_held_by_another_process_is_refused_by_its_id(tmp_path, holder):
    with (
        pytest.raises(DataError, match=f"^{tmp_path}: is being written by process {holder.pid}: wait for it"),
        folder_lock(tmp_path),
    ):
        pass
    assert (tmp_path / LOCK_NAME).read_text() == str(holder.pid)


def test_folder_of_a_killed_process_is_free(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with folder_lock(tmp_path):
        assert (tmp_path / LOCK_NAME).read_text() == str(os.getpid())
    assert (tmp_path / LOCK_NAME).read_text() == ""


def test_folder_is_held_against_this_process_too(tmp_path):
    with (
        folder_lock(tmp_path / "new"),
        pytest.raises(DataError, match="is being written"),
        folder_lock(tmp_path / "new"),
    ):
        pass
    with folder_lock(tmp_path / "new"):
        pass


def test_folder_is_free_after_an_error(tmp_path):
    with pytest.raises(RuntimeError), folder_lock(tmp_path):
        raise RuntimeError
    with folder_lock(tmp_path):
        pass

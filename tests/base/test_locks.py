"""One process at a time holds a folder, and the system releases it however the process ends."""

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
from datetime import date

import pytest

from collegium.base.errors import BusyError
from collegium.base.locks import LOCK_NAME, folder_lock


HOLDER = """
import sys, time
from pathlib import Path
from collegium.base.locks import folder_lock
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
        pytest.raises(BusyError) as refused,
        folder_lock(tmp_path),
    ):
        pass
    assert re.fullmatch(
        rf"{tmp_path}: is being written by process {holder.pid} on {socket.gethostname()} since "
        rf"{date.today()} \d\d:\d\d:\d\d \S+ \(-c {tmp_path}\): wait until it ends, or give another folder",
        str(refused.value),
    )
    assert json.loads((tmp_path / LOCK_NAME).read_text())["process"] == holder.pid


def test_folder_of_a_killed_process_is_free(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with folder_lock(tmp_path):
        assert json.loads((tmp_path / LOCK_NAME).read_text())["process"] == os.getpid()
    assert (tmp_path / LOCK_NAME).read_text() == ""


def test_folder_is_held_against_this_process_too(tmp_path):
    with (
        folder_lock(tmp_path / "new"),
        pytest.raises(BusyError, match="is being written"),
        folder_lock(tmp_path / "new"),
    ):
        pass
    with folder_lock(tmp_path / "new"):
        pass


def test_a_forked_child_does_not_hold_on(tmp_path):
    """A worker that outlives its killed parent for a moment is no obstacle."""
    ready, proceed = os.pipe(), os.pipe()
    holder = os.fork()
    if holder == 0:
        with folder_lock(tmp_path):
            if os.fork() == 0:
                os.close(proceed[1])  # ours too: a pipe has an end when nobody can write into it
                os.write(ready[1], b"1")
                os.read(proceed[0], 1)
            else:
                os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    os.read(ready[0], 1)
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    try:
        with folder_lock(tmp_path):
            pass
    finally:
        os.close(proceed[1])


def test_a_file_system_without_locks_is_said_to_be_one(tmp_path, monkeypatch, capsys):
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", none)
    with folder_lock(tmp_path):
        pass
    assert f"{tmp_path}: its file system has no locks" in capsys.readouterr().err


def test_folder_is_free_after_an_error(tmp_path):
    with pytest.raises(RuntimeError), folder_lock(tmp_path):
        raise RuntimeError
    with folder_lock(tmp_path):
        pass

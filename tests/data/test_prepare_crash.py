"""Kill -9, a full disk, two writers: the folder ends up byte for byte as if nothing had been.

Children are forked, so that a killed preparation costs milliseconds.
"""

import errno
import fcntl
import json
import os
import random
import resource
import signal
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from collegium.base.errors import BusyError, DataError
from collegium.data.hub import HubSource
from collegium.data.settings import SourceLimits
from collegium.data.sources import FileSource


NUM_KILLS = 15


def in_child(action):
    """Run `action` in a forked child; returns its exit status."""
    pid = start_child(action)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def start_child(action):
    pid = os.fork()
    if pid:
        return pid
    try:
        action()
        os._exit(0)
    except BaseException:
        os._exit(1)


@pytest.fixture
def texts(tmp_path, prose):
    """Two files, one of them with a document that fills several shards, and with some of one token."""
    many = [*prose(40), "some words of text " * 200, "the", *prose(60)[50:55], "the", *prose(60)[55:]]
    (tmp_path / "many.txt").write_text("\n".join(many))
    few = [text + " and more" for text in prose(120)[100:]]
    (tmp_path / "few.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in few))
    return tmp_path


@pytest.fixture
def work(texts, prepare, monkeypatch):
    """Prepares the two files into a folder, in small batches.

    Nothing is synced to disk, as that matters for power loss only and takes most of the time.
    """
    monkeypatch.setattr("collegium.data.preparation._BATCH_DOCUMENTS", 7)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)

    def call(name, on_progress=None):
        sources = [
            FileSource("many", str(texts / "many.txt")),
            FileSource("few", str(texts / "few.jsonl")),
        ]
        limits = {"many": SourceLimits(min_characters=1)}
        return prepare(sources, texts / name, on_progress=on_progress, blocks_per_shard=24, limits=limits)

    return call


@pytest.fixture
def expected(work, texts, folder_content):
    work("uninterrupted")
    content = folder_content(texts / "uninterrupted")
    assert sum(name.startswith("train/") for name in content) >= 10
    assert not any(name.endswith(".tmp") for name in content)
    assert json.loads(content["manifest.json"])["sources"]["many"]["documents"]["too_short"] == 2
    return content


def test_killed_at_every_write(work, texts, expected, folder_content, monkeypatch):
    def exit_at(call_number):
        calls = iter(range(call_number))

        def counted(original):
            def call(*arguments, **keywords):
                if next(calls, None) is None:
                    os._exit(9)
                return original(*arguments, **keywords)

            return call

        for name in ("fsync", "replace", "unlink"):
            monkeypatch.setattr(os, name, counted(getattr(os, name)))

    num_kills, status = 0, 9
    while status == 9:
        name = f"killed{num_kills}"
        status = in_child(lambda n=num_kills, to=name: (exit_at(n), work(to)))
        work(name)
        assert folder_content(texts / name) == expected
        num_kills += status == 9
    assert status == 0
    assert num_kills > 70


def test_killed_again_and_again(work, texts, expected, folder_content, monkeypatch):
    original = os.replace

    def exit_after(num_replaced):
        left = iter(range(num_replaced))

        def replace(*arguments):
            if next(left, None) is None:
                os._exit(9)
            original(*arguments)

        monkeypatch.setattr(os, "replace", replace)

    status, num_kills = 9, 0
    while status == 9:
        status = in_child(lambda: (exit_after(6), work("killed")))
        num_kills += status == 9
    assert num_kills > 3
    assert folder_content(texts / "killed") == expected


def test_killed_at_random_moments(work, texts, expected, folder_content):
    generator = random.Random(20)
    started = time.monotonic()
    assert in_child(lambda: work("timed")) == 0
    duration = time.monotonic() - started
    num_killed = trial = 0
    while num_killed < NUM_KILLS:
        name, trial = f"trial{trial}", trial + 1
        pid = start_child(lambda to=name: work(to))
        time.sleep(generator.random() * duration)
        os.kill(pid, signal.SIGKILL)
        num_killed += os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        work(name)
        assert folder_content(texts / name) == expected


def test_resuming_skips_what_is_done(tmp_path, prepare, list_source, prose, monkeypatch):
    monkeypatch.setattr("collegium.data.preparation._BATCH_DOCUMENTS", 10)

    def stop(progress):
        if progress.documents >= 150:
            raise KeyboardInterrupt

    texts = prose(200)
    with pytest.raises(KeyboardInterrupt):
        prepare([list_source("a", texts)], tmp_path / "p", on_progress=stop)
    source = list_source("a", texts)
    prepared = prepare([source], tmp_path / "p")
    assert 50 <= source.num_read < 70  # what follows, and at most one shard of 8 blocks
    assert prepared.manifest["sources"]["a"]["documents"] == {"kept": 196, "held_out": 4}


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_resuming_in_a_hub_data_set(tmp_path, prepare, prose, folder_content, monkeypatch, ending):
    monkeypatch.setattr("collegium.data.preparation._BATCH_DOCUMENTS", 10)
    (tmp_path / "hub").mkdir()
    for part in range(2):
        rows = [{"text": text} for text in prose(120)[part * 60 : part * 60 + 60]]
        path = tmp_path / f"hub/train-0000{part}.{ending}"
        if ending == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=17)
        else:
            path.write_text("\n".join(map(json.dumps, rows)))
    hub = str(tmp_path / "hub")
    prepare([HubSource("a", hub)], tmp_path / "uninterrupted")
    stops = iter([30, 70, 100, 1000])
    stop_at = 0

    def stop(progress):
        if progress.documents >= stop_at:
            raise KeyboardInterrupt

    while (stop_at := next(stops)) < 1000:
        with pytest.raises(KeyboardInterrupt):
            prepare([HubSource("a", hub)], tmp_path / "p", on_progress=stop)
    prepare([HubSource("a", hub)], tmp_path / "p", on_progress=stop)
    assert folder_content(tmp_path / "p") == folder_content(tmp_path / "uninterrupted")


def test_begun_folder_of_another_text_is_refused(tmp_path, prepare, list_source, prose):
    def stop(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare([list_source("a", prose(200))], tmp_path / "p", on_progress=stop)
    with pytest.raises(DataError, match="unfinished preparation with fingerprint"):
        prepare([list_source("a", prose(201))], tmp_path / "p")


def test_two_writers(work, texts):
    ready, proceed = os.pipe(), os.pipe()

    def hold(progress):
        os.write(ready[1], b"1")
        os.read(proceed[0], 1)

    pid = start_child(lambda: work("p", on_progress=hold))
    try:
        os.read(ready[0], 1)
        started = time.monotonic()
        with pytest.raises(BusyError, match=f"is being written by process {pid} on "):
            work("p")
        assert time.monotonic() - started < 2
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    work("p").verify()


def test_lock_left_by_a_dead_process_is_no_lock(work, texts, expected, folder_content):
    (texts / "p").mkdir()
    (texts / "p/.lock").write_text("12345")
    work("p")
    assert folder_content(texts / "p") == expected


def test_full_disk_leaves_whole_files_only_and_resumes(work, texts, expected, folder_content, monkeypatch):
    left = iter(range(40))

    def full(descriptor):
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left") as caught:
            work("p")
    assert caught.value.errno == errno.ENOSPC
    assert str(texts / "p") in caught.value.filename
    found = folder_content(texts / "p")
    names = [name for name in found if name.endswith((".arrow", ".jsonl"))]
    assert len(names) > 5
    assert all(found[name] == expected[name] for name in names)
    assert not any(name.endswith(".tmp") for name in found)
    work("p")
    assert folder_content(texts / "p") == expected


def test_file_size_limit_of_the_system(work, texts, folder_content):
    def limited():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            work("p")
        except OSError as error:
            os._exit(error.errno)

    assert in_child(limited) == errno.EFBIG
    assert not any(len(content) >= 1000 for content in folder_content(texts / "p").values())


def test_lock_is_free_afterwards(work, texts):
    work("p")
    with (texts / "p/.lock").open("r+") as file:
        assert file.read() == ""
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

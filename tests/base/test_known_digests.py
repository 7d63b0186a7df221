"""Digests of large files are kept as long as a file is in the state it was read in, and never longer."""

import hashlib
import os
import shutil

import pytest

from collegium.base import known_digests
from collegium.base.known_digests import content_digest
from tests.support.damage import damages


@pytest.fixture(autouse=True)
def settled(tmp_path, monkeypatch):
    monkeypatch.setenv("COLLEGIUM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(known_digests, "_SETTLED_NS", -1)
    monkeypatch.setattr(known_digests, "LARGE", 100)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(range(200)))
    return path


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_that_did_not_change_is_read_once(file, monkeypatch):
    assert content_digest(file) == digest(file)
    monkeypatch.setattr(known_digests, "file_digest", lambda _: pytest.fail("read again"))
    assert content_digest(file) == digest(file)


def test_no_kept_digest_outlives_a_change(file, tmp_path):
    content_digest(file)
    stat = file.stat()
    other = bytes(reversed(file.read_bytes()))
    file.write_bytes(other)  # the same size
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # and the same time, as `cp -p` leaves it
    assert content_digest(file) == digest(file)
    with file.open("r+b") as opened:  # one byte, in place
        opened.seek(100)
        opened.write(b"\xff")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert content_digest(file) == digest(file)
    replaced = tmp_path / "other"
    replaced.write_bytes(bytes(200))
    shutil.copystat(file, replaced)
    replaced.replace(file)
    assert content_digest(file) == digest(file)


def test_a_file_that_was_just_written_is_read_again(file, monkeypatch):
    monkeypatch.setattr(known_digests, "_SETTLED_NS", 3_600_000_000_000)
    content_digest(file)
    assert not list((file.parent / "cache").glob("digests/*"))


def test_no_damage_to_what_is_kept_is_believed(file):
    content_digest(file)
    (note,) = (file.parent / "cache" / "digests").iterdir()
    for damage in damages(note):
        assert content_digest(file) == digest(file), damage


def test_a_folder_that_cannot_be_written_costs_time_only(file, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(known_digests, "write_text", full)
    assert content_digest(file) == digest(file)

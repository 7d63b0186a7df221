"""Files that are either whole or not there, also after kill -9 and power loss. No torch here.

A file is written under a temporary name in the same folder, synced to disk and renamed; then the folder
is synced. That costs two disk flushes a file.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from collegium.base.progress import Phase


_CHUNK_BYTES = 1 << 22


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write `path`, or leave it as it was.

    Raises:
        OSError: with the path, for instance because the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        error.filename = str(path)
        raise


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Raise what safetensors calls its own error as the `OSError` that it is."""
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        code = int(number.group(1))
        raise OSError(code, os.strerror(code), str(path)) from error


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text as `write_bytes` does."""
    write_bytes(path, text.encode())


def open_to_umask(folder: Path) -> None:
    """Give a folder, and all that is in it, the permissions that the user's umask leaves.

    `tempfile` and safetensors write for the owner alone, and a colleague could not read the weights. What the
    umask leaves is seen in a file that is made for it: a process cannot ask for its umask without changing it.
    """
    probe = folder / ".umask"
    probe.touch()
    mode = probe.stat().st_mode & 0o666
    probe.unlink()
    for path in (folder, *folder.rglob("*")):
        if path.is_symlink():
            continue
        kept = path.stat().st_mode & (0o7000 if path.is_dir() else 0o111)
        entered = (mode & 0o444) >> 2 if path.is_dir() else 0  # by whoever may read it
        path.chmod(mode | kept | entered)


def sync_folder(folder: Path) -> None:
    """Make what was created, renamed or removed in `folder` outlast a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    state = hashlib.sha256()
    for chunk in read_through(path):
        state.update(chunk)
    return state.hexdigest()


def read_through(path: Path) -> Iterator[memoryview]:
    """Yield the content of a file in pieces, each of which is overwritten by the next."""
    view = memoryview(bytearray(_CHUNK_BYTES))
    size = path.stat().st_size / 1e6
    with (
        path.open("rb", buffering=0) as file,
        Phase(f"reading {path.name}", total=size, unit="MB", is_short=True) as phase,
    ):
        while length := file.readinto(view):
            yield view[:length]
            phase.advance(length / 1e6)

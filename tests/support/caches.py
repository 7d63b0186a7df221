"""Small caches of a pico teacher, what is in them, and a process that builds them in forked children."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from collegium.cache.builder import CacheBuilder
from collegium.cache.folder import Folder
from collegium.cache.manifest import CacheSettings, Manifest, Mode, TeacherIdentity
from collegium.data.blocks import pack_documents
from collegium.data.collate import BlockCollator
from collegium.signals.contracts import Batch, Capability, Positions, TeacherOutput
from collegium.teachers.defaults import TeacherDefaults
from collegium.teachers.local import LocalTeacher
from tests.support.pico import TEXTS, VOCAB_SIZE, byte_tokenizer, pico_llama


BLOCK_SIZE = 16
ROWS_PER_SHARD = 4
SOURCE = b"teachers:\n- name: pico\n"
MODES: tuple[Mode, ...] = ("top_k", "sampled", "hidden_states")

collate = BlockCollator(pad_token_id=258)


@cache
def splits() -> dict[str, list[dict[str, Any]]]:
    """21 blocks: the last of each part is shorter than the others."""
    parts = {"train": TEXTS[:6], "held_out/text": [text[::-1] for text in TEXTS[2:5]]}
    packed = {
        name: pack_documents([{"text": text} for text in texts], byte_tokenizer(), block_size=BLOCK_SIZE)
        for name, texts in parts.items()
    }
    return {name: [part[index] for index in range(len(part))] for name, part in packed.items()}


def all_rows() -> list[dict[str, Any]]:
    return [row for part in splits().values() for row in part]


def pico_teacher(seed: int = 1) -> LocalTeacher:
    return LocalTeacher("pico", pico_llama(seed), vocab_size=VOCAB_SIZE, fingerprint=f"pico-{seed}")


class CountingTeacher(TeacherDefaults):
    """A teacher that counts the blocks it scores, and how often it was loaded.

    Args:
        teacher: Who scores.
        on_blocks: Called with the blocks of each batch before they are scored.
    """

    def __init__(self, teacher: LocalTeacher, on_blocks: Callable[[Batch], None] | None = None) -> None:
        self._teacher, self._on_blocks = teacher, on_blocks
        self.name, self.provides, self.fingerprint = teacher.name, teacher.provides, teacher.fingerprint
        self.num_blocks = self.num_loads = 0

    def score(self, batch: Batch, positions: Positions, *, need: frozenset[Capability]) -> TeacherOutput:
        if self._on_blocks is not None:
            self._on_blocks(batch)
        self.num_blocks += len(batch.input_ids)
        return self._teacher.score(batch, positions, need=need)

    def load(self) -> "CountingTeacher":
        self.num_loads += 1
        return self


def plan_of(mode: Mode = "top_k", **changes: Any) -> Manifest:
    """What a cache of all blocks will be; `changes` are settings."""
    settings = {"max_kept": 16, "num_samples": 20, "rows_per_shard": ROWS_PER_SHARD, **changes}
    return Manifest(
        teacher=TeacherIdentity("pico-1", "pico", VOCAB_SIZE, 32, 2),
        text="text-1",
        splits={name: len(part) for name, part in splits().items()},
        settings=CacheSettings(mode=mode, **settings),
    )


def builder_of(
    location: str | Path,
    plan: Manifest | None = None,
    *,
    teacher: CountingTeacher | None = None,
    rows: Sequence[dict[str, Any]] | None = None,
    **arguments: Any,
) -> CacheBuilder:
    """A builder of all blocks, or of the first ones if the plan has fewer."""
    plan = plan or plan_of()
    counting = teacher or CountingTeacher(pico_teacher())
    return CacheBuilder(
        Folder.at(location),
        counting.load,
        (all_rows() if rows is None else rows)[: plan.num_rows],
        collate,
        plan,
        source=SOURCE,
        **arguments,
    )


def plan_with(plan: Manifest, **changes: Any) -> Manifest:
    return replace(plan, **changes)


def content_of(folder: str | Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones included."""
    root = Path(folder)
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def stamps_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of the last change of every file; a file that was written again has others."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}


class Zygote:
    """Builds caches in forked children; see `cache_kill_worker.py`."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("cache_kill_worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def start(self, folder: Path, **order: Any) -> int:
        """Begin to build; the pid of the child, which leads a process group of its own."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"folder": str(folder), **order}) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def wait(self) -> int:
        """Exit status of what was started; negative is a signal."""
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())

    def run(self, folder: Path, *, kill_after: float | None = None, **order: Any) -> int:
        """Build, and kill all of its processes after some seconds; the exit status."""
        pid = self.start(folder, **order)
        if kill_after is not None:
            time.sleep(kill_after)
            with suppress(ProcessLookupError):  # it was quicker
                os.killpg(pid, signal.SIGKILL)
        return self.wait()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)

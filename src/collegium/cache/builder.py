"""Builds a cache: scores blocks of text with one teacher, shard by shard, on any number of processes.

A shard is written whole, then its record; the manifest comes last and the records go. So whatever ends a
process costs it at most the shard that it was at, and the same call resumes. Which process scores a shard
does not matter for what is in it.
"""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from collegium.base.errors import DataError, DiskError
from collegium.base.locks import LOCK_NAME, folder_lock
from collegium.cache.folder import Folder
from collegium.cache.manifest import BAD_MANIFEST, HEAD_NAME, INDEX_NAME, MANIFEST_NAME, SOURCE_NAME, Manifest
from collegium.cache.records import (
    BEGUN_NAME,
    clean,
    damaged,
    file_damage,
    finished_manifest,
    num_shards,
    read_record,
    record_name,
    require_own_shards,
    require_same_plan,
    shard_name,
    shard_rows,
    write_index,
    write_recorded,
    write_shard,
)
from collegium.cache.scoring import Row, Scorer
from collegium.cache.shard import StoredRow, encode_rows
from collegium.signals.contracts import Teacher


@dataclass(frozen=True)
class CacheProgress:
    """Progress of one process.

    Attributes:
        tokens: Positions scored by this call.
        rows: Blocks that are stored, of all that are this process's.
        num_rows: All that are this process's.
        seconds: Since the call.
        seconds_left: Estimate; None if not known yet.
        bytes: Estimate of what this process's blocks take on disk.
    """

    tokens: int
    rows: int
    num_rows: int
    seconds: float
    seconds_left: float | None
    bytes: float


@dataclass(frozen=True)
class Ranks:
    """The processes that build together.

    Attributes:
        rank: Rank of this one.
        size: How many there are.
        wait: Returns when all have called it.
    """

    rank: int = 0
    size: int = 1
    wait: Callable[[], None] = lambda: None


class CacheBuilder:
    """Builds one cache; the module says how.

    Args:
        folder: Where to.
        teacher: Loads the teacher, which gives hidden states and a head; called when it is needed.
        rows: All blocks, in the order of `plan.splits`.
        collate: Makes a batch of blocks.
        plan: The manifest as it will be, without shards and files.
        source: A recipe that says what it is made from, kept with it.
        batch_size: Blocks scored together.
        device: Where batches go.
        ranks: The processes that share the work.
        on_progress: Called after every batch.
    """

    def __init__(
        self,
        folder: Folder,
        teacher: Callable[[], Teacher],
        rows: Sequence[Row],
        collate: Callable[[Sequence[Row]], Mapping[str, Tensor]],
        plan: Manifest,
        *,
        source: bytes = b"",
        batch_size: int = 4,
        device: torch.device | None = None,
        ranks: Ranks | None = None,
        on_progress: Callable[[CacheProgress], None] | None = None,
    ) -> None:
        assert len(rows) == plan.num_rows, "the plan is of these rows"
        self.folder = folder
        self.plan = plan
        self._scorer = Scorer(
            teacher,
            rows,
            collate,
            plan.teacher,
            plan.settings,
            batch_size=batch_size,
            device=device or torch.device("cpu"),
        )
        self._source = source
        self._ranks = ranks or Ranks()
        self._on_progress = on_progress
        self._stored_rows = self._new_rows = self._new_tokens = 0
        self._size = 0.0

    def build(self) -> Manifest:
        """Score what is missing and write the manifest; nothing is done if the cache is finished.

        Raises:
            BusyError: another process writes it.
            DataError: the folder holds another cache.
            DiskError: the disk has no room for it.
            OSError: the disk is full.
        """
        with self.locked():
            if self._ranks.rank == 0:
                self._claim()
            self._ranks.wait()
            if self.folder.size(BEGUN_NAME) is None and self.folder.size(MANIFEST_NAME) is None:
                raise DataError(
                    f"{self.folder.path('')}: process {self._ranks.rank} does not see what the first one wrote; "
                    "all processes must share the folder"
                )
            if (finished := finished_manifest(self.folder)) is not None:
                return self._close(finished)
            started = time.monotonic()
            own = range(self._ranks.rank, num_shards(self.plan), self._ranks.size)
            for shard in own:
                self._add_shard(shard, started, own)
            self._ranks.wait()
            return self._close(None)

    def locked(self) -> AbstractContextManager[None]:
        """Hold the folder, if it is on disk, for the processes that build together."""
        local = self.folder.local
        return folder_lock(local) if local is not None and self._ranks.rank == 0 else nullcontext()

    def rebuild(self, shards: Sequence[int]) -> None:
        """Score these shards of a finished cache again, in place of what is there."""
        started = time.monotonic()
        for shard in shards:
            self._write_shard(shard, started, shards)

    # What is there already.

    def _claim(self) -> None:
        """Require that the folder is this cache's, or nobody's."""
        if self.folder.size(MANIFEST_NAME) is not None:
            try:
                found = Manifest.from_bytes(self.folder.read(MANIFEST_NAME))
            except BAD_MANIFEST as error:
                raise damaged(self.folder, MANIFEST_NAME, str(error)) from error
            require_same_plan(found, self.plan, self.folder)
        elif self.folder.size(BEGUN_NAME) is not None:
            self.require_same()
        else:
            self._require_unclaimed()
            self.folder.write(BEGUN_NAME, self.plan.to_bytes())

    def require_same(self) -> None:
        """Refuse a folder without a manifest that holds something else.

        Raises:
            DataError: naming what differs.
        """
        try:
            begun = Manifest.from_bytes(self.folder.read(BEGUN_NAME))
        except (FileNotFoundError, *BAD_MANIFEST):
            require_own_shards(self.folder, self.plan)
            self.folder.write(BEGUN_NAME, self.plan.to_bytes())
        else:
            require_same_plan(begun, self.plan, self.folder)

    def _require_unclaimed(self) -> None:
        strangers = [name for name in self.folder.names() if name not in (LOCK_NAME, f".{BEGUN_NAME}.tmp")]
        if strangers:
            raise DataError(
                f"{self.folder.path(strangers[0])}: lies where a cache is to be made; give a folder of its own"
            )

    # Shards.

    def _add_shard(self, shard: int, started: float, own: Sequence[int]) -> None:
        record = read_record(self.folder, self.plan, shard)
        if record is None:
            self._write_shard(shard, started, own)
        else:
            self._stored_rows += record.shard.rows

    def _write_shard(self, shard: int, started: float, own: Sequence[int]) -> None:
        plan = self.plan
        span = shard_rows(plan, shard)
        num_rows = sum(len(shard_rows(plan, number)) for number in own)
        rows: list[StoredRow] = []
        before = self._new_tokens
        for batch, num_tokens in self._scorer.score(span):
            rows += batch
            self._new_tokens += num_tokens
            if not self._new_rows:
                self._size = self._size_of(rows) * num_rows
                self._require_room(num_rows)
            self._report(len(batch), num_rows, started)
        record = write_shard(self.folder, plan, shard, rows, tokens=self._new_tokens - before)
        self.folder.write(record_name(shard), record.to_bytes())

    def _require_room(self, num_rows: int) -> None:
        """Stop before hours of scoring that the disk has no room for."""
        if self.folder.local is None:
            return
        left = self._size * (num_rows - self._stored_rows) / num_rows
        free = shutil.disk_usage(self.folder.local).free
        if left > free:
            raise DiskError(
                f"{self.folder.local}: the cache needs about {left / 1e9:.2g} GB more, {free / 1e9:.2g} GB "
                "are free; make room, or keep less (cache.min_probability, cache.max_kept)"
            )

    def _size_of(self, rows: Sequence[StoredRow]) -> float:
        """Bytes of a row on disk, from some of them."""
        content = encode_rows(rows, rows_per_group=1, identity="", first_row=0, tokens=0)
        return len(content) / len(rows)

    def _report(self, num_new: int, num_rows: int, started: float) -> None:
        self._stored_rows += num_new
        self._new_rows += num_new
        if self._on_progress is not None:
            seconds = time.monotonic() - started
            left = seconds / self._new_rows * (num_rows - self._stored_rows)
            self._on_progress(
                CacheProgress(self._new_tokens, self._stored_rows, num_rows, seconds, left, self._size)
            )

    # The end.

    def _close(self, manifest: Manifest | None) -> Manifest:
        """Write head, index and manifest, remove what only building needs; the first process alone."""
        if self._ranks.rank == 0:
            if manifest is None:
                manifest = self._write_manifest()
            elif file_damage(self.folder, SOURCE_NAME, manifest.files.get(SOURCE_NAME)) is not None:
                files = {**manifest.files, SOURCE_NAME: self.write_file(SOURCE_NAME, ())}
                manifest = replace(manifest, files=files)
                self.folder.write(MANIFEST_NAME, manifest.to_bytes())
            clean(self.folder, manifest)
        self._ranks.wait()
        finished = finished_manifest(self.folder)
        if finished is None:
            raise DataError(f"{self.folder.path(MANIFEST_NAME)}: was not written; run the same command again")
        return finished

    def _write_manifest(self) -> Manifest:
        plan = self.plan
        records = [read_record(self.folder, plan, shard) for shard in range(num_shards(plan))]
        if missing := [shard_name(shard) for shard, record in enumerate(records) if record is None]:
            raise DataError(
                f"{self.folder.path(missing[0])}: was not written, and {len(missing) - 1} more: run the same "
                "command again to resume"
            )
        whole = [record for record in records if record is not None]
        keys = [key for record in whole for key in record.keys]
        files = {name: self.write_file(name, keys) for name in self.file_names}
        manifest = replace(plan, shards=tuple(record.shard for record in whole), files=files)
        self.folder.write(MANIFEST_NAME, manifest.to_bytes())
        return manifest

    @property
    def file_names(self) -> tuple[str, ...]:
        """Files beside the shards and the manifest."""
        head = (HEAD_NAME,) if self.plan.settings.mode == "hidden_states" else ()
        return (SOURCE_NAME, INDEX_NAME, *head)

    def write_file(self, name: str, keys: Sequence[int]) -> str:
        """Write one of them, given the keys of all rows; its SHA-256."""
        if name == INDEX_NAME:
            return write_index(self.folder, keys)
        return write_recorded(self.folder, name, self._source if name == SOURCE_NAME else self._scorer.head())

"""Reads a cache: a block by its key, checked on the way.

Nothing is read at opening but the manifest and the index (8 bytes a block). A block costs one ranged
read; a handful of files are kept open in each process, and the blocks last read are kept whole, so that
several passes over a small text read and check it once.
"""

import bisect
import os
from collections import OrderedDict
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from collegium.base.errors import DataError
from collegium.cache.folder import Folder
from collegium.cache.hidden import read_head
from collegium.cache.manifest import HEAD_NAME, Manifest, read_manifest
from collegium.cache.records import damaged, read_index, read_recorded
from collegium.cache.shard import ShardFile, StoredRow
from collegium.signals.signals import LinearHead


OPEN_FILES = 8

KEPT_BYTES = 64 * 2**20
"""Of blocks in memory, for each cache and process: 2,000 blocks of 128 hidden states of width 128."""


class CacheReader:
    """A finished cache.

    Args:
        location: Folder or URL.

    Attributes:
        folder: Where it lies.
        manifest: What it holds.

    Raises:
        DataError: it is not finished, or manifest or index are damaged.
    """

    def __init__(self, location: str | Path) -> None:
        self.folder = Folder.at(location)
        self.manifest: Manifest = read_manifest(self.folder)
        self._starts = [shard.first_row for shard in self.manifest.shards]
        self._files: OrderedDict[int, ShardFile] = OrderedDict()
        self._process = os.getpid()
        self._kept: OrderedDict[int, StoredRow] = OrderedDict()
        self._kept_bytes = 0
        keys = read_index(self.folder, self.manifest)
        self._order: NDArray[np.int64] = np.argsort(keys, kind="stable")
        self._sorted = keys[self._order]

    def __len__(self) -> int:
        return self.manifest.num_rows

    def find(self, key: int) -> int:
        """Row of the block with this key.

        Raises:
            DataError: there is none.
        """
        place = int(np.searchsorted(self._sorted, np.uint64(key)))
        if place == len(self._sorted) or int(self._sorted[place]) != key:
            raise DataError(
                f"{self.folder.location}: holds no block with these tokens: it was made from other "
                f"text (fingerprint {self.manifest.text}) or another block size; "
                "run `collegium cache` for this text"
            )
        return int(self._order[place])

    def row(self, index: int) -> StoredRow:
        """A row, checked.

        Raises:
            DataError: it is damaged, naming shard and row.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of a cache of {len(self)}")
        number = bisect.bisect_right(self._starts, index) - 1
        shard = self.manifest.shards[number]
        try:
            return self._file(number).row(index - shard.first_row)
        except FileNotFoundError:
            raise damaged(self.folder, shard.name, "it is missing") from None
        except ValueError as error:
            raise damaged(self.folder, shard.name, f"row {index} of the cache: {error}") from error
        except OSError as error:
            raise damaged(self.folder, shard.name, f"it cannot be read ({error.strerror or error})") from error

    def read(self, key: int) -> StoredRow:
        """The row of a block."""
        if (kept := self._kept.get(key)) is not None:
            self._kept.move_to_end(key)
            return kept
        row = self._checked(key)
        self._keep(row)
        return row

    def _checked(self, key: int) -> StoredRow:
        index = self.find(key)
        row = self.row(index)
        if row.key != key:
            name = self.manifest.shards[bisect.bisect_right(self._starts, index) - 1].name
            raise damaged(self.folder, name, f"row {index} of the cache is of another block")
        return row

    def _keep(self, row: StoredRow) -> None:
        """Remember a copy, since a row as it was read holds on to its whole row group."""
        copy = StoredRow(row.key, {name: values.copy() for name, values in row.arrays.items()})
        self._kept[row.key] = copy
        self._kept_bytes += copy.num_bytes
        while self._kept_bytes > KEPT_BYTES:
            self._kept_bytes -= self._kept.popitem(last=False)[1].num_bytes

    @cached_property
    def head(self) -> LinearHead:
        """The teacher's head, for `hidden_states`."""
        return read_head(read_recorded(self.folder, self.manifest, HEAD_NAME))

    def _file(self, number: int) -> ShardFile:
        if os.getpid() != self._process:  # after a fork, files would share their positions
            self._files = OrderedDict()
            self._process = os.getpid()
        if number in self._files:
            self._files.move_to_end(number)
            return self._files[number]
        self._files[number] = open_shard(self.folder, self.manifest, number)
        if len(self._files) > OPEN_FILES:
            self._files.popitem(last=False)[1].close()
        return self._files[number]


def open_shard(folder: Folder, manifest: Manifest, number: int) -> ShardFile:
    """Open a shard, its size and footer checked.

    Raises:
        FileNotFoundError: it is missing.
        ValueError: it is damaged, or another one.
    """
    shard = manifest.shards[number]
    size = folder.size(shard.name)
    if size is None:
        raise FileNotFoundError(folder.path(shard.name))
    if size != shard.bytes:
        raise ValueError(f"it has {size} bytes, not {shard.bytes}")
    return ShardFile(folder.open(shard.name), identity=manifest.identity, first_row=shard.first_row)

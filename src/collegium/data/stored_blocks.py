"""Rows of Arrow streams on disk, read without a memory map and checked each time.

A mapped file that shrinks ends the process by SIGBUS, and a flipped bit in it is trained on. So a file is read
whole once, when it is opened: its digest is compared (XXH3, 5 to 10 GB/s, so that the disk sets the pace), and the
place and digest of each of its record batches are noted. From then on a row costs one read of its batch, 70 kB of
1,024 tokens each, whose digest is compared again. Files are opened in parallel; none stays in memory.
"""

import hashlib
import operator
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, overload

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from collegium.base.errors import DataError


DOMAIN = "domain"


@dataclass(frozen=True)
class _RecordBatch:
    """One record batch of a file: where it is, how many rows, and its digest."""

    offset: int
    size: int
    rows: int
    digest: int


@dataclass(frozen=True)
class ArrowFile:
    """An Arrow stream that was read once.

    Attributes:
        path: Where it is.
        schema: Of its rows.
        batches: Its record batches.
        domains: Names of its domains.
        domain_index: Which of them each row has.
    """

    path: Path
    schema: pa.Schema
    batches: tuple[_RecordBatch, ...]
    domains: NDArray[np.str_]
    domain_index: NDArray[np.int16]

    @property
    def rows(self) -> int:
        """Number of its rows."""
        return sum(batch.rows for batch in self.batches)

    @classmethod
    def open(cls, path: Path, record: Mapping[str, Any]) -> "ArrowFile":
        """Read a file and compare it with its entry in the manifest.

        Raises:
            ValueError: says in what it differs.
        """
        content = read_recorded(path, record)
        try:
            schema, batches, column = _index(content)
        except (pa.ArrowException, OSError, ValueError, KeyError, EOFError) as error:
            raise ValueError(f"it is no Arrow stream of blocks ({error})") from error
        domains = np.array(column.dictionary.to_pylist(), dtype=str)
        opened = cls(path, schema, batches, domains, column.indices.to_numpy().astype(np.int16))
        if opened.rows != record["rows"]:
            raise ValueError(f"it has {opened.rows} rows, not {record['rows']}")
        return opened

    def read(self, index: int) -> pa.RecordBatch:
        """One of its record batches.

        Raises:
            DataError: the file is not what it was when it was opened.
        """
        place = self.batches[index]
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(place.offset)
                content = file.read(place.size)
        except OSError as error:
            raise self._changed() from error
        if len(content) != place.size or xxhash.xxh3_64_intdigest(content) != place.digest:
            raise self._changed()
        return pa.ipc.read_record_batch(pa.py_buffer(content), self.schema)

    def _changed(self) -> DataError:
        return DataError(
            f"{self.path}: has changed since it was opened (removed, cut or damaged): delete "
            f"{self.path.parent.parent} and run `collegium prepare` again"
        )


def read_recorded(path: Path, record: Mapping[str, Any]) -> bytes:
    """The content of a file of a prepared text; by XXH3, or SHA-256 where its entry is of an earlier version.

    Raises:
        ValueError: it is not what was written; says in what it differs.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ValueError("it is missing") from None
    except OSError as error:
        raise ValueError(f"it cannot be read ({error})") from error
    if len(content) != record["bytes"]:
        raise ValueError(f"it has {len(content)} bytes, not {record['bytes']}")
    if record.get("xxh3_128"):
        name, expected, found = "xxh3_128", record["xxh3_128"], xxhash.xxh3_128_hexdigest(content)
    else:
        name, expected, found = "sha256", record["sha256"], hashlib.sha256(content).hexdigest()
    if found != expected:
        raise ValueError(f"its {name} is {found}, not {expected}")
    return content


def open_files(paths: Mapping[Path, Mapping[str, Any]]) -> Iterator[ArrowFile | ValueError]:
    """Open files in parallel, in their order: each, or what is wrong with it."""

    def opened(item: tuple[Path, Mapping[str, Any]]) -> ArrowFile | ValueError:
        try:
            return ArrowFile.open(*item)
        except ValueError as error:
            return error

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        yield from pool.map(opened, paths.items())


def _index(content: bytes) -> tuple[pa.Schema, tuple[_RecordBatch, ...], pa.DictionaryArray]:
    buffer = pa.py_buffer(content)
    table = pa.ipc.open_stream(buffer).read_all()  # not copied
    reader = pa.BufferReader(buffer)
    pa.ipc.read_schema(reader)
    view = memoryview(content)
    batches = []
    for rows in table.to_batches():
        start = reader.tell()
        pa.ipc.read_message(reader)
        end = reader.tell()
        batches.append(_RecordBatch(start, end - start, len(rows), xxhash.xxh3_64_intdigest(view[start:end])))
    return table.schema, tuple(batches), table[DOMAIN].combine_chunks().dictionary_encode()


class StoredBlocks:
    """Rows of some files, or a selection of them; behaves as the part of `datasets.Dataset` that we use.

    Args:
        files: In order.
        rows: Numbers of the chosen rows; all by default.
    """

    def __init__(self, files: Sequence[ArrowFile], rows: NDArray[np.int64] | None = None) -> None:
        self._files = tuple(files)
        counts = [[batch.rows for batch in file.batches] for file in files]
        self._places = [(i, j) for i, batches in enumerate(counts) for j in range(len(batches))]
        self._ends = np.cumsum([rows for batches in counts for rows in batches])
        total = int(self._ends[-1]) if len(self._ends) else 0
        self._rows: range | NDArray[np.int64] = range(total) if rows is None else rows
        self._kept: tuple[int, pa.RecordBatch] | None = None

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: str) -> NDArray[np.str_]: ...

    def __getitem__(self, index: int | str) -> dict[str, Any] | NDArray[np.str_]:
        """A row by its number, or the column `domain`, which is in memory."""
        if isinstance(index, str):
            if index != DOMAIN:
                raise KeyError(f"{index!r} is not in memory; use `columns`")
            domains = np.concatenate([file.domains[file.domain_index] for file in self._files])
            return cast(NDArray[np.str_], domains[np.asarray(self._rows, np.int64)])
        number = int(self._rows[operator.index(index)])
        batch, row = self._batch_of(number)
        return cast(dict[str, Any], batch.slice(row, 1).to_pylist()[0])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(len(self)))

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_kept": None}

    def select(self, rows: Sequence[int]) -> "StoredBlocks":
        """Some of the rows, by their numbers among these."""
        return StoredBlocks(self._files, np.asarray(self._rows, np.int64)[np.asarray(rows, np.int64)])

    @property
    def digest(self) -> str:
        """Identity of the rows and their order, by the digests of what was read when the files were opened."""
        state = xxhash.xxh3_128()
        for file in self._files:
            state.update(np.array([[batch.digest, batch.rows] for batch in file.batches], np.uint64).tobytes())
        if not isinstance(self._rows, range):
            state.update(np.ascontiguousarray(self._rows, np.int64).data)
        return state.hexdigest()

    def columns(self, names: Sequence[str]) -> pa.Table:
        """Some columns of all rows."""
        parts = [self._read(place).select(list(names)) for place in range(len(self._places))]
        table = pa.Table.from_batches(parts)
        return table if isinstance(self._rows, range) else table.take(pa.array(self._rows))

    def _batch_of(self, number: int) -> tuple[pa.RecordBatch, int]:
        place = int(np.searchsorted(self._ends, number, "right"))
        batch = self._read(place)
        return batch, number - int(self._ends[place] - batch.num_rows)

    def _read(self, place: int) -> pa.RecordBatch:
        """A record batch; the last one is kept, since rows are often read in order."""
        kept = self._kept
        if kept is not None and kept[0] == place:
            return kept[1]
        file, index = self._places[place]
        batch = self._files[file].read(index)
        self._kept = (place, batch)
        return batch

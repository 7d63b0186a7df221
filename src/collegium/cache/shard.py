"""Rows of a cache as a Parquet file, and what is checked when one is read.

A row is one block of text. Its arrays are list columns that pandas, polars and duckdb open as they are, with an
entry for each predicted position (`gaps` and `codes`: for each listed token, position after position):

    key                    uint64   hash of the block's tokens (`keys`)
    digest                 uint64   hash of key and arrays
    lengths                uint16   number of tokens listed at the position
    gaps                   int32    their ids, packed (`codec`)
    codes                  uint8    their probabilities, packed; with `sampled`, how often each was drawn
    top_logprob            float16  the highest log-probability, at the mixed temperature (as are the lists)
    tail_logprob           float16  log of the mass that is not listed; like `top_logprob`, with `top_k` only
    entropy                float32  in nats, at the mixed temperature
    label_logprob          float32  of the gold token, at the target temperature
    label_rank             int32    number of tokens that are more probable than the gold token
    weight_entropy,        float32  the two figures that weights are made of, at the weight temperature; only
    weight_label_logprob   float32  where that is not the mixed one
    hidden                 float16  last hidden states of all tokens of the block, one after another, with
                                    `hidden_states` in place of the rest

The mixed temperature is target temperature times kd temperature: at it the student is compared with the target.

The arrays stand in the order of their names. The footer's metadata hold, under `collegium`, the cache's identity,
the first row, and the numbers of rows and tokens, as JSON.

Byte streams are split by significance and compressed with zstd. Every page has a checksum, which is verified by
whoever asks for it; page headers and the footer have none, so each row carries a digest of its arrays too, and
nothing is handed out that does not agree with it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray


COMPRESSION_LEVEL = 9
TOKENS_PER_GROUP = 1024
"""A row group holds this many tokens at least: it is what one random read costs."""

Arrays = Mapping[str, NDArray[Any]]

_TYPES: dict[str, pa.DataType] = {
    "lengths": pa.uint16(),
    "gaps": pa.int32(),
    "codes": pa.uint8(),
    "top_logprob": pa.float16(),
    "tail_logprob": pa.float16(),
    "entropy": pa.float32(),
    "weight_entropy": pa.float32(),
    "label_logprob": pa.float32(),
    "weight_label_logprob": pa.float32(),
    "label_rank": pa.int32(),
    "hidden": pa.float16(),
}


_UNREADABLE = (pa.ArrowException, OSError, KeyError, ValueError, TypeError, OverflowError, MemoryError)
"""What reading a damaged footer can raise."""


@dataclass(frozen=True)
class StoredRow:
    """One block of a cache.

    Attributes:
        key: Hash of the block's tokens; see `collegium.cache.keys`.
        arrays: What is kept of it.
    """

    key: int
    arrays: Arrays

    @property
    def num_bytes(self) -> int:
        """Size of its arrays."""
        return sum(array.nbytes for array in self.arrays.values())

    @property
    def digest(self) -> int:
        """Digest of key and arrays."""
        state = xxhash.xxh3_64(self.key.to_bytes(8, "little"))
        for name in sorted(self.arrays):
            array = np.ascontiguousarray(self.arrays[name])
            state.update(f"{name}:{array.dtype.str}:{array.size}".encode())
            state.update(array.view(np.uint8).data if array.size else b"")
        return state.intdigest()


def encode_rows(
    rows: Sequence[StoredRow], *, rows_per_group: int, identity: str, first_row: int, tokens: int
) -> pa.Buffer:
    """The Parquet file of some rows, the same bytes for the same rows."""
    names = sorted(rows[0].arrays)
    fields = [pa.field(name, pa.list_(pa.field("item", _TYPES[name], False)), False) for name in names]
    schema = pa.schema(
        [pa.field("key", pa.uint64(), False), pa.field("digest", pa.uint64(), False), *fields],
        metadata={"collegium": json.dumps(_facts(identity, first_row, len(rows), tokens))},
    )
    columns = [pa.array([row.key for row in rows], pa.uint64())]
    columns.append(pa.array([row.digest for row in rows], pa.uint64()))
    columns += [_list_column([row.arrays[name] for row in rows], _TYPES[name]) for name in names]
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        schema,
        compression="zstd",
        compression_level=COMPRESSION_LEVEL,
        use_dictionary=False,
        write_statistics=False,
        write_page_checksum=True,
        column_encoding={f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in names},
        data_page_size=2**26,
    ) as writer:
        writer.write_table(pa.table(columns, schema=schema), row_group_size=rows_per_group)
    return sink.getvalue()


def _facts(identity: str, first_row: int, rows: int, tokens: int) -> dict[str, Any]:
    return {"identity": identity, "first_row": first_row, "rows": rows, "tokens": tokens}


def _list_column(arrays: Sequence[NDArray[Any]], kind: pa.DataType) -> pa.Array:
    offsets = np.cumsum([0, *(len(array) for array in arrays)]).astype(np.int32)
    values = pa.array(np.concatenate(arrays), kind)
    return pa.ListArray.from_arrays(pa.array(offsets), values, type=pa.list_(pa.field("item", kind, False)))


def identity_of(source: Any) -> str | None:
    """Identity of the cache that a file says it belongs to; None if it cannot be read."""
    try:
        metadata = pq.ParquetFile(source).metadata.metadata or {}
        return str(json.loads(metadata[b"collegium"])["identity"])
    except _UNREADABLE:
        return None


class ShardFile:
    """A shard, opened.

    Args:
        source: The file.
        identity: Identity of the cache it must belong to.
        first_row: Row of the cache that its first one must be.

    Attributes:
        tokens: Positions of its rows.

    Raises:
        ValueError: it is damaged, or of another cache or place.
    """

    def __init__(self, source: Any, *, identity: str, first_row: int) -> None:
        self._source = source
        try:
            self._file = pq.ParquetFile(source, page_checksum_verification=True, pre_buffer=False)
            metadata = self._file.metadata
            found = json.loads((metadata.metadata or {})[b"collegium"])
            self.tokens = int(found["tokens"])
            sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        except _UNREADABLE as error:
            raise ValueError(f"its footer cannot be read ({_short(error)})") from error
        expected = _facts(identity, first_row, sum(sizes), self.tokens)
        if found != expected:
            raise ValueError(f"it says {found}, not {expected}")
        self._starts = np.cumsum([0, *sizes])
        self._last: tuple[int, pa.Table] | None = None

    def __len__(self) -> int:
        return int(self._starts[-1])

    def row(self, index: int) -> StoredRow:
        """One row, checked.

        Raises:
            ValueError: it is damaged.
        """
        group = int(np.searchsorted(self._starts, index, side="right")) - 1
        table = self._group(group)
        return self._checked(table, index - int(self._starts[group]))

    def rows(self) -> list[StoredRow]:
        """All rows, checked."""
        return [self.row(index) for index in range(len(self))]

    def close(self) -> None:
        """Close the file."""
        self._file.close(force=True)
        self._source.close()

    def _group(self, group: int) -> pa.Table:
        if self._last is not None and self._last[0] == group:
            return self._last[1]
        try:
            self._last = (group, self._file.read_row_group(group, use_threads=False))
            return self._last[1]
        except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
            raise ValueError(f"row group {group} cannot be read ({_short(error)})") from error

    def _checked(self, table: pa.Table, index: int) -> StoredRow:
        try:
            row = StoredRow(
                table["key"][index].as_py(),
                {
                    name: table[name][index].values.to_numpy(zero_copy_only=False)
                    for name in table.column_names
                    if name not in ("key", "digest")
                },
            )
            intact = row.digest == table["digest"][index].as_py()
        except (pa.ArrowException, KeyError, IndexError, AttributeError, OverflowError, TypeError) as error:
            raise ValueError(f"row {index} cannot be read ({_short(error)})") from error
        if not intact:
            raise ValueError(f"row {index} is not as it was written")
        return row


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:100] or type(error).__name__

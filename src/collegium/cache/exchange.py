"""Lists of a cache as plain Parquet, for others to read.

An export spends 8 bytes on an entry, of which a cache keeps about 2; nobody needs our code to read it.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from collegium.base.durable import sync_folder
from collegium.base.errors import DataError
from collegium.cache.codec import stored_lists
from collegium.cache.keys import key_of
from collegium.cache.reader import CacheReader


ROWS_PER_GROUP = 8
"""Rows in memory at once: some 10 MB for blocks of 1,024 tokens."""

_TOKENS = pa.list_(pa.int32())
_NUMBERS = pa.list_(pa.float32())
_SCHEMA = pa.schema(
    {
        "input_ids": _TOKENS,
        "positions": _TOKENS,
        "token_ids": pa.list_(_TOKENS),
        "logprobs": pa.list_(_NUMBERS),
        "tail_logprob": _NUMBERS,
        "entropy": _NUMBERS,
        "label_logprob": _NUMBERS,
    }
)


def export_parquet(reader: CacheReader, rows: Iterable[Mapping[str, Any]], path: Path) -> int:
    """Write blocks of a cache as one Parquet file, whole or not at all; how many there were.

    A row is a block. `positions` are the places in `input_ids` that predict the token after them; the columns
    after it have an entry for each. Lists have ascending ids and are as training reads them. `entropy` is of the
    distribution that is listed, `label_logprob` of the teacher's own; the schema's metadata has their
    temperatures, and whose they are. Figures at another `weight_temperature` are left out. A sampled list
    stands for the whole distribution: its `tail_logprob` is -inf.

    Args:
        reader: The cache.
        rows: Blocks with `input_ids` and `segment_lengths`, which a cache does not keep.
        path: The file.

    Raises:
        DataError: a block is damaged or not in the cache, or the cache holds hidden states.
        OSError: the disk is full.
    """
    if reader.manifest.settings.mode == "hidden_states":
        raise DataError(
            f"{reader.folder.location}: holds hidden states and no lists of tokens to export; "
            "make a cache with cache.mode top_k or sampled"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        num_rows = _write(reader, iter(rows), temporary)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)
        raise
    sync_folder(path.parent)
    return num_rows


def _write(reader: CacheReader, rows: Iterator[Mapping[str, Any]], path: Path) -> int:
    facts = {"teacher": asdict(reader.manifest.teacher), "settings": asdict(reader.manifest.settings)}
    schema = _SCHEMA.with_metadata({"collegium": json.dumps(facts)})
    num_rows = 0
    options = {"compression": "zstd", "use_dictionary": False, "write_page_checksum": True}
    with path.open("wb") as file:
        with pq.ParquetWriter(file, schema, **options) as writer:
            while blocks := [_exported(reader, row) for row in islice(rows, ROWS_PER_GROUP)]:
                writer.write_table(pa.Table.from_pylist(blocks, schema))
                num_rows += len(blocks)
        file.flush()
        os.fsync(file.fileno())
    return num_rows


def _exported(reader: CacheReader, row: Mapping[str, Any]) -> dict[str, Any]:
    input_ids, segments = (np.asarray(row[name], np.int32) for name in ("input_ids", "segment_lengths"))
    if segments.sum() != len(input_ids):
        raise DataError(f"a block of {len(input_ids)} tokens has segments of {segments.sum()} together")
    position_ids = np.arange(len(input_ids)) - np.repeat(np.cumsum(segments) - segments, segments)
    arrays = reader.read(key_of(input_ids, position_ids)).arrays
    positions = np.flatnonzero(position_ids[1:]).astype(np.int32)
    labels = input_ids[positions + 1].astype(np.int64)
    lists, tail = stored_lists(arrays, labels, reader.manifest.settings)
    logprobs = np.log(np.maximum(lists.probs, np.finfo(np.float32).tiny))
    ends = np.cumsum(lists.lengths)[:-1]
    return {
        "input_ids": input_ids,
        "positions": positions,
        "token_ids": np.split(lists.ids.astype(np.int32), ends),
        "logprobs": np.split(logprobs, ends),
        "tail_logprob": tail,
        "entropy": arrays["entropy"],
        "label_logprob": arrays["label_logprob"],
    }

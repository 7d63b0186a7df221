"""The files of a prepared text.

Each is written whole or not at all (`collegium.base.durable`); that costs some milliseconds for a shard of
16 MB.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import xxhash

from collegium.base.durable import write_bytes
from collegium.base.errors import DataError
from collegium.data.packing import Block, blocks_to_table


_RECORD_BATCH_ROWS = 16
"""What is read for a single row."""


@dataclass(frozen=True)
class FileRecord:
    """One file's entry in the manifest.

    Attributes:
        rows: Blocks or lines in it.
        tokens: Tokens of its blocks by domain.
        bytes: Its size.
        sha256: Its checksum, in hexadecimal.
        xxh3_128: Another one, which is ten times as fast to compare; earlier versions did not write it.
    """

    rows: int
    tokens: dict[str, int]
    bytes: int
    sha256: str
    xxh3_128: str = ""


def write_json(path: Path, content: Any) -> None:
    """Write JSON as `write_bytes` does."""
    write_bytes(path, (json.dumps(content, indent=1) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        DataError: if it is not there or damaged.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path}: is not there: run `collegium prepare` first") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}): delete {path.parent} and prepare it again") from error


def write_blocks(path: Path, blocks: Sequence[Block]) -> FileRecord:
    """Write an Arrow stream, a format that `datasets` reads too."""
    table = blocks_to_table(blocks)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=_RECORD_BATCH_ROWS)
    tokens: Counter[str] = Counter()
    for block in blocks:
        tokens[block.domain] += block.num_tokens
    return _write_recorded(path, memoryview(sink.getvalue()), len(blocks), dict(tokens))


def write_json_lines(path: Path, records: Sequence[dict[str, Any]]) -> FileRecord:
    """Write one JSON object a line."""
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    return _write_recorded(path, "".join(lines).encode(), len(lines), {})


def _write_recorded(path: Path, content: bytes | memoryview, rows: int, tokens: dict[str, int]) -> FileRecord:
    write_bytes(path, content)
    return FileRecord(rows, tokens, len(content), *_digests(content))


def _digests(content: bytes | memoryview) -> tuple[str, str]:
    return hashlib.sha256(content).hexdigest(), xxhash.xxh3_128_hexdigest(content)

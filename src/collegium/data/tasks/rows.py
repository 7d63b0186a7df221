"""Rows of local files of task data, in the formats in which the five sets are found.

- JSONL, Parquet, and Arrow as stream or file: as they are; Arrow files of `datasets` name the values of labels.
- Tags, one token a line and blank lines between sentences (`.conll`, `.bio`): `tokens` and `ner_tags`.
- Text with tabs and a header (`.tsv`, or a header in `.txt`): quotes are text, as in MRPC.
- Other text: a label, a blank and a sentence a line, as in SST-2.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from collegium.base.errors import DataError


_TAGGED = (".conll", ".bio", ".iob", ".iob2")


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of one file, in its order.

    Raises:
        DataError: it cannot be read as what its ending says.
    """
    try:
        match path.suffix.lower():
            case ".jsonl" | ".json" | ".ndjson":
                yield from (json.loads(line) for line in _lines(path) if line.strip())
            case ".parquet":
                yield from _table_rows(pq.read_table(path))
            case ".arrow":
                yield from _table_rows(_arrow_table(path))
            case suffix if suffix in _TAGGED:
                yield from _tagged(path)
            case _:
                yield from _text_rows(path)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as task data: {error}") from error


def _lines(path: Path) -> Iterator[str]:
    """Lines without their ends; only line feeds end one, so that other separators stay in the text."""
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        for line in file:
            yield line.removesuffix("\n").removesuffix("\r")


def _arrow_table(path: Path) -> pa.Table:
    content = pa.py_buffer(path.read_bytes())  # not mapped: a file that shrinks would end the process
    try:
        return pa.ipc.open_stream(content).read_all()
    except pa.ArrowInvalid:
        return pa.ipc.open_file(content).read_all()


def _table_rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    names = _tag_names(table.schema)
    for batch in table.to_batches(256):
        for row in batch.to_pylist():
            yield {**row, **{column: [values[i] for i in row[column]] for column, values in names.items()}}


def _tag_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Names of the values of columns that hold lists of class labels, from what `datasets` wrote beside them."""
    written = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = written.get("info", {}).get("features", {})
    return {name: found for name, feature in features.items() if (found := _names_in_list(feature))}


def _names_in_list(feature: Any) -> list[str] | None:
    inner = feature.get("feature") if isinstance(feature, dict) else feature[0] if feature else None
    return inner.get("names") if isinstance(inner, dict) else None


def _tagged(path: Path) -> Iterator[dict[str, Any]]:
    tokens = list[str]()
    tags = list[str]()
    for line in _lines(path):
        parts = line.split("\t") if "\t" in line else line.split()
        if line.strip() and parts[0] != "-DOCSTART-":
            tokens.append(parts[0].strip())
            tags.append(parts[-1].strip())
        elif tokens:
            yield {"tokens": tokens, "ner_tags": tags}
            tokens = []
            tags = []
    if tokens:
        yield {"tokens": tokens, "ner_tags": tags}


def _text_rows(path: Path) -> Iterator[dict[str, Any]]:
    columns: list[str] | None = None
    for number, line in enumerate(_lines(path)):
        if number == 0 and "\t" in line and line.split("\t")[0] not in ("0", "1"):
            columns = line.split("\t")
        elif columns is not None and line.strip():
            yield dict(zip(columns, line.split("\t"), strict=True))
        elif line.strip():
            label, *text = re.split(r"[\t ]", line, maxsplit=1)
            yield {"label": label, "sentence": "".join(text)}

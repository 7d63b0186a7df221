"""From the bytes of one open file to documents, each with the offset at which the next one begins.

Buffers are bounded: a line or document above 16 MiB is cut at a word border, so a file without any
line break needs no more memory than one with many. Where a document ends depends on what follows
its beginning and on nothing before it; a reader that starts at a returned offset continues in the same way.
"""

import codecs
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from collegium.base.errors import DataError
from collegium.data.documents import MAX_DOCUMENT_SIZE, Document, cut_index
from collegium.data.files import ByteFile


MAX_JSON_LINE = 4 * MAX_DOCUMENT_SIZE
"""Bytes; a longer line of JSON is read as several bad ones."""

_BOM = codecs.BOM_UTF8
_CHUNK_SIZE = 64 * 2**10
_LOOKAHEAD = 1024
_BATCH_ROWS = 256

Documents = Iterator[tuple[Document, int]]


class Columns(NamedTuple):
    """Columns or keys of a row that make a document.

    Attributes:
        text: What is learnt.
        prompt: What comes before it and is not learnt; None: there is none.
    """

    text: str
    prompt: str | None = None

    @property
    def names(self) -> list[str]:
        """Those that are read."""
        return [self.text] if self.prompt is None else [self.text, self.prompt]

    def document(self, row: Mapping[str, Any]) -> Document:
        """The document of a row."""
        return Document.checked(row.get(self.text), prompt="" if self.prompt is None else row.get(self.prompt))


def read_lines(file: ByteFile, offset: int) -> Documents:
    """One document a line."""
    for line, end in _lines(file, offset, limit=MAX_DOCUMENT_SIZE):
        yield Document.checked(_decode(line)), end


def read_json_lines(file: ByteFile, offset: int, *, columns: Columns) -> Documents:
    """One JSON object a line, whose `columns` are the document."""
    for line, end in _lines(file, offset, limit=MAX_JSON_LINE):
        yield _document_of_json(_decode(line), columns), end


def read_separated(
    file: ByteFile,
    offset: int,
    *,
    separator: re.Pattern[str] | None,
    limit: int = MAX_DOCUMENT_SIZE,
) -> Documents:
    """Documents between matches of `separator`, or the whole file as one.

    A separator is matched with at least 1,024 characters after it in view, so it may look that far
    ahead; it sees nothing that lies before its document.
    """
    file.seek(offset)
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    text = ""
    at_end = False
    at_start = offset == 0
    while text or not at_end:
        ends = _document_end(text, separator, limit, at_end)
        if ends is None:
            # Doubling keeps the repeated search over a growing document linear.
            chunk = _read_available(file, max(_CHUNK_SIZE, len(text)))
            at_end = not chunk
            text += decoder.decode(chunk, final=at_end)
            continue
        end, next_start = ends
        offset += len(text[:next_start].encode("utf-8", "surrogateescape"))
        document = text[:end].removeprefix("\ufeff") if at_start else text[:end]
        yield Document.checked(document), offset
        text = text[next_start:]
        at_start = False


def read_parquet(file: ByteFile, row: int, *, columns: Columns) -> Documents:
    """One document a row, from row number `row` on; earlier row groups are not read."""
    table = pq.ParquetFile(file)
    for key, column in zip(("text_column", "prompt_column"), columns.names, strict=False):
        _check_column(table.schema_arrow, key, column)
    group_start = 0
    for group in range(table.num_row_groups):
        group_end = group_start + table.metadata.row_group(group).num_rows
        if row < group_end:
            for texts in _group_rows(table, group, columns.names, skip=row - group_start):
                row += 1
                yield columns.document(texts), row
        group_start = group_end


def _lines(file: ByteFile, offset: int, *, limit: int) -> Iterator[tuple[bytes, int]]:
    file.seek(offset)
    at_start = offset == 0
    rest = b""
    while line := rest + file.readline(limit - len(rest)):
        rest = b""
        if len(line) == limit and not line.endswith(b"\n"):
            end = _cut_bytes(line)
            rest = line[end:]
            line = line[:end]
        offset += len(line)
        if at_start:
            line = line.removeprefix(_BOM)
            at_start = False
        yield line.removesuffix(b"\n").removesuffix(b"\r"), offset


def _read_available(file: ByteFile, size: int) -> bytes:
    """At most `size` bytes; what lies before the damage of a compressed file is still returned."""
    data = b""
    try:
        while len(data) < size and (chunk := file.read1(size - len(data))):
            data += chunk
    except (EOFError, OSError, zlib.error):
        if not data:
            raise
    return data


def _cut_bytes(line: bytes) -> int:
    space = line.rfind(b" ", len(line) // 2)
    if space > 0:
        return space
    end = len(line) - 1
    while end > len(line) - 4 and line[end] & 0xC0 == 0x80:  # inside a character
        end -= 1
    return end


def _decode(line: bytes) -> str:
    # Undecodable bytes become lone surrogates, which `Document.checked` finds.
    return line.decode("utf-8", "surrogateescape")


def _document_of_json(line: str, columns: Columns) -> Document:
    if not line.strip():
        return Document("")
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return Document("", "bad_json")
    return columns.document(record if isinstance(record, dict) else {})


def _document_end(
    text: str, separator: re.Pattern[str] | None, limit: int, at_end: bool
) -> tuple[int, int] | None:
    """End of the first document and start of the next; None if more text is needed to say."""
    match = separator.search(text) if separator else None
    if match and match.end() == match.start():
        raise DataError(
            f"separator {match.re.pattern!r} matches where there is nothing: it must match at least one character"
        )
    settled = len(text) if at_end else len(text) - _LOOKAHEAD
    if match and match.start() <= limit and match.end() <= settled:
        return match.start(), match.end()
    if settled > limit:
        end = cut_index(text, limit)
        return end, end
    return (len(text), len(text)) if at_end else None


def _check_column(schema: pa.Schema, key: str, column: str) -> None:
    if column not in schema.names:
        raise DataError(
            f"there is no column {column!r}; the columns are {', '.join(schema.names)}: set {key} to one of them"
        )
    kind = schema.field(column).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise DataError(f"column {column!r} holds {kind}, not text: change {key}")


def _group_rows(
    table: pq.ParquetFile, group: int, names: list[str], *, skip: int
) -> Iterator[dict[str, str | None]]:
    for batch in table.iter_batches(_BATCH_ROWS, row_groups=[group], columns=names):
        if skip >= len(batch):
            skip -= len(batch)
            continue
        # As bytes, because one undecodable string would make pyarrow raise for the whole batch.
        columns = {
            name: batch.column(name)[skip:].cast(pa.large_string()).cast(pa.large_binary()).to_pylist()
            for name in names
        }
        for index in range(len(batch) - skip):
            values = {name: column[index] for name, column in columns.items()}
            yield {name: None if value is None else _decode(value) for name, value in values.items()}
        skip = 0

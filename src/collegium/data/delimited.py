"""Rows of CSV and TSV with a header, a row at a time.

Cells are quoted as Python's `csv` and spreadsheets do it, in TSV too, so that line breaks may be inside. An offset
is the end of a row, in bytes; a reader that continues at one reads the header again from the start of the file.
A row with more or fewer cells than the header spoils only itself, as its text may be cut at a separator.
"""

import csv
from collections.abc import Iterator
from typing import NamedTuple

from collegium.base.errors import DataError
from collegium.base.visible import excerpt
from collegium.data.compression import ByteFile, read_available
from collegium.data.documents import MAX_DOCUMENT_SIZE, Document
from collegium.data.formats import HEAD_SIZE, header_of
from collegium.data.readers import MAX_JSON_LINE, decoded, lines_of
from collegium.data.rows import Columns, Documents


def read_delimited(file: ByteFile, offset: int, *, format: str, columns: Columns) -> Documents:
    """One document a row below the header, from byte `offset` on.

    Raises:
        DataError: the header lacks a column.
    """
    file.seek(0)
    head = read_available(file, HEAD_SIZE)
    if not head:
        return
    header, delimiter = header_of(head, format, columns.text)
    try:
        columns.require(header)
    except DataError as error:
        first = head.partition(b"\n")[0]
        raise DataError(f"{error}; the first row, which is read as the header, is {excerpt(first)}") from None
    rows = _rows(file, offset, delimiter)
    if offset == 0:
        next(rows, None)
    for cells, line, place, end in rows:
        if not cells:
            yield Document(""), end
        elif isinstance(cells, str) or len(cells) != len(header):
            reason = (
                cells
                if isinstance(cells, str)
                else f"there are {len(cells)} cells, and the header has {len(header)}"
            )
            yield Document("", "bad_row", detail=f"{place}: {reason}; it reads {excerpt(line)}"), end
        else:
            yield columns.document(dict(zip(header, cells, strict=True)), place, line), end


class _Row(NamedTuple):
    """Cells or what is wrong, the first line, its place, and the end of a row."""

    cells: list[str] | str
    line: bytes
    place: str
    end: int


def _rows(file: ByteFile, offset: int, delimiter: str) -> Iterator[_Row]:
    number = 1
    start = offset
    csv.field_size_limit(MAX_DOCUMENT_SIZE)
    while True:
        lines = _RowLines(file, start)
        try:
            cells: list[str] | str = next(csv.reader(lines, delimiter=delimiter))
        except StopIteration:
            return
        except csv.Error as error:
            cells = str(error)
        if lines.went_too_far:
            cells = "a quote is never closed"
        if isinstance(cells, str):
            # Only the line in which the row began is lost, not all that a quote without an end takes in.
            lines.end = lines.first_end
            lines.count = 1
        place = f"line {number}" if offset == 0 else f"byte {start:,}"
        yield _Row(cells, lines.first, place, lines.end)
        number += lines.count
        start = lines.end


class _RowLines:
    """Lines of one row, as many as are asked for; it goes too far if the file ends or the row is too long."""

    def __init__(self, file: ByteFile, start: int) -> None:
        self._lines = lines_of(file, start, limit=MAX_JSON_LINE, keep_ends=True)
        self.first = b""
        self.first_end = start
        self.end = start
        self.count = 0
        self.went_too_far = False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        found = None if self.end - self.first_end > MAX_JSON_LINE else next(self._lines, None)
        if found is None:
            self.went_too_far = self.count > 0
            raise StopIteration
        line, self.end = found
        if self.count == 0:
            self.first = line
            self.first_end = self.end
        self.count += 1
        return decoded(line)

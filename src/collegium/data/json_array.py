"""Rows of one JSON array, an element at a time: the file is never in memory as a whole.

An offset is the end of an element, in bytes. An array that is not whole has no rows that could be trusted to be
all, so it is refused, while a bad line of JSON lines spoils only itself.
"""

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any

from collegium.base.errors import DataError
from collegium.base.visible import excerpt
from collegium.data.compression import ByteFile, read_available
from collegium.data.documents import MAX_DOCUMENT_SIZE, Document
from collegium.data.rows import Columns, Documents


_MAX_ELEMENT = 4 * MAX_DOCUMENT_SIZE
_CHUNK_SIZE = 64 * 2**10
_BLANK = re.compile(r"[ \t\r\n]*")
_CUT = 16
"""Characters at the end of what was read in which an error may come from the cut: a number, a word, an escape."""


def read_json_array(file: ByteFile, offset: int, *, columns: Columns) -> Documents:
    """One document an element, from byte `offset` on.

    Raises:
        DataError: it is not one whole array.
    """
    for number, (row, end) in enumerate(_elements(file, offset)):
        place = f"row {number + 1}" if offset == 0 else f"the row before byte {end:,}"
        if isinstance(row, dict):
            yield columns.document(row, place), end
        else:
            shown = excerpt(json.dumps(row, ensure_ascii=False))
            yield (
                Document("", "no_text", detail=f"{place}: this is not an object with keys; it reads {shown}"),
                end,
            )


def _elements(file: ByteFile, offset: int) -> Iterator[tuple[Any, int]]:
    text = _Text(file, offset)
    if offset == 0:
        text.drop(1 if text.next().startswith("\ufeff") else 0)
        text.expect("[")
    is_first = offset == 0
    while not (text.next() == "]" or text.next() == ""):
        if not is_first:
            text.expect(",")
        yield text.element()
        is_first = False
    text.expect("]")
    if text.next():
        raise DataError(
            f"more follows the array at byte {text.offset:,}: {excerpt(text.rest)}; "
            "rows must be objects, one a line, or all in one array"
        )


class _Text:
    """What is read of a file and not used yet, and the offset of its beginning."""

    def __init__(self, file: ByteFile, offset: int) -> None:
        file.seek(offset)
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._at_end = False
        self.rest = ""
        self.offset = offset

    def next(self) -> str:
        """The next character that is not blank; '' at the end."""
        while True:
            blank = _BLANK.match(self.rest)
            assert blank is not None, "it matches nothing too"
            self.drop(blank.end())
            if self.rest or self._at_end:
                return self.rest[:1]
            self._read()

    def drop(self, count: int) -> None:
        """Go on by some characters."""
        self.offset += len(self.rest[:count].encode("utf-8", "surrogateescape"))
        self.rest = self.rest[count:]

    def expect(self, character: str) -> None:
        """Go on by a character.

        Raises:
            DataError: there is another one.
        """
        if self.next() != character:
            self._refuse(f"{character} is expected")
        self.drop(1)

    def element(self) -> tuple[Any, int]:
        """The next element, and the offset of its end."""
        self.next()
        while True:
            try:
                value, end = json.JSONDecoder().raw_decode(self.rest)
            except RecursionError:
                self._refuse("it is nested too deeply")
            except json.JSONDecodeError as error:
                is_cut = error.pos >= len(self.rest) - _CUT or error.msg.startswith("Unterminated")
                if self._at_end or not is_cut or len(self.rest) > _MAX_ELEMENT:
                    self._refuse(error.msg)
            else:
                # A number may go on, and nothing follows the end of the file.
                if end < len(self.rest) or self._at_end:
                    self.drop(end)
                    return value, self.offset
            self._read()

    def _read(self) -> None:
        # Doubling keeps the repeated parsing of a growing element linear.
        chunk = read_available(self._file, max(_CHUNK_SIZE, len(self.rest)))
        self._at_end = not chunk
        self.rest += self._decoder.decode(chunk, final=self._at_end)

    def _refuse(self, reason: str) -> None:
        what = f"there is {excerpt(self.rest)}" if self.rest else "the file ends"
        raise DataError(f"is not a whole JSON array: at byte {self.offset:,} {what}, where {reason}")

"""From the bytes of one open file to documents, each with the offset at which the next one begins.

Buffers are bounded: a line or document above 16 MiB is cut at a word border, so a file without any
line break needs no more memory than one with many. Where a document ends depends on what follows
its beginning and on nothing before it; a reader that starts at a returned offset continues in the same way.
"""

import codecs
import json
import re
from collections.abc import Iterator

from collegium.base.errors import DataError
from collegium.base.visible import excerpt
from collegium.data.compression import ByteFile, read_available
from collegium.data.documents import MAX_DOCUMENT_SIZE, Document, cut_index
from collegium.data.rows import REASONS, Columns, Documents


MAX_JSON_LINE = 4 * MAX_DOCUMENT_SIZE
"""Bytes; a longer line of JSON is read as several bad ones."""

_BOM = codecs.BOM_UTF8
_CHUNK_SIZE = 64 * 2**10
_LOOKAHEAD = 1024


def read_lines(file: ByteFile, offset: int) -> Documents:
    """One document a line."""
    for place, line, end in _placed(file, offset, MAX_DOCUMENT_SIZE):
        yield _checked(decoded(line), place), end


def read_json_lines(file: ByteFile, offset: int, *, columns: Columns) -> Documents:
    """One JSON object a line, whose `columns` are the document."""
    for place, line, end in _placed(file, offset, MAX_JSON_LINE):
        yield _document_of_json(line, place, columns), end


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
            chunk = read_available(file, max(_CHUNK_SIZE, len(text)))
            at_end = not chunk
            text += decoder.decode(chunk, final=at_end)
            continue
        end, next_start = ends
        offset += len(text[:next_start].encode("utf-8", "surrogateescape"))
        document = text[:end].removeprefix("\ufeff") if at_start else text[:end]
        yield _checked(document, f"before byte {offset:,}"), offset
        text = text[next_start:]
        at_start = False


def lines_of(file: ByteFile, offset: int, *, limit: int, keep_ends: bool = False) -> Iterator[tuple[bytes, int]]:
    """Lines from byte `offset` on, each with the offset of its end; one above `limit` bytes is cut."""
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
        yield line if keep_ends else line.removesuffix(b"\n").removesuffix(b"\r"), offset


def decoded(line: bytes) -> str:
    """Text of bytes; what is not UTF-8 becomes lone surrogates, which `Document.checked` finds."""
    return line.decode("utf-8", "surrogateescape")


def _placed(file: ByteFile, offset: int, limit: int) -> Iterator[tuple[str, bytes, int]]:
    """Lines with their place, which is a number where lines were counted from the first."""
    start = offset
    for number, (line, end) in enumerate(lines_of(file, offset, limit=limit), 1):
        yield f"line {number}" if offset == 0 else f"byte {start:,}", line, end
        start = end


def _checked(text: str, place: str) -> Document:
    document = Document.checked(text)
    if document.problem is None:
        return document
    raw = text[:500].encode("utf-8", "surrogateescape")
    return document.of(f"{place}: {REASONS[document.problem]}; it reads {excerpt(raw)}")


def _cut_bytes(line: bytes) -> int:
    space = line.rfind(b" ", len(line) // 2)
    if space > 0:
        return space
    end = len(line) - 1
    while end > len(line) - 4 and line[end] & 0xC0 == 0x80:  # inside a character
        end -= 1
    return end


def _document_of_json(line: bytes, place: str, columns: Columns) -> Document:
    text = decoded(line)
    if not text.strip():
        return Document("")
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        return Document("", "bad_json", detail=f"{place}: {_json_reason(text, error)}; it reads {excerpt(line)}")
    if not isinstance(record, dict):
        reason = "this is not an object with keys"
        return Document("", "no_text", detail=f"{place}: {reason}; it reads {excerpt(line)}")
    return columns.document(record, place, line)


def _json_reason(text: str, error: Exception) -> str:
    if not isinstance(error, json.JSONDecodeError):
        return (
            "this is not JSON that can be read"
            if not isinstance(error, RecursionError)
            else "it is nested too deeply"
        )
    stripped = text.rstrip()
    if stripped.endswith(",") and error.msg == "Extra data" and error.pos == len(stripped) - 1:
        return "a comma follows the object, and lines of JSON are not separated by commas"
    if stripped == "{":
        return (
            "the object goes on in the next line, and each line must be a whole one (`jq -c . FILE > NEW.jsonl`)"
        )
    return f"this is not JSON: {error.msg.removesuffix(' at')} at character {error.pos + 1}"


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

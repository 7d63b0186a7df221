"""Formats of text files: which are read, which are refused by name, and how a file is recognised.

The content decides where it can: Parquet, Arrow, archives and encodings say what they are in their first bytes,
and JSON and tables with a header show it in their first line. The name decides the rest. A file that is not what
its name says is read as what it is, or refused with the name of that.
"""

import codecs
import csv
import json
from collections.abc import Mapping
from pathlib import Path

from collegium.base.errors import DataError
from collegium.base.visible import excerpt
from collegium.data.compression import compression_of, file_compression, read_head, without_compression


HEAD_SIZE = 64 * 2**10
"""Bytes that a file is recognised by."""

ENDINGS: Mapping[str, tuple[str, ...]] = {
    "text": (".txt", ".md"),
    "jsonl": (".jsonl", ".ndjson", ".json"),
    "json": (),
    "csv": (".csv",),
    "tsv": (".tsv", ".tab"),
    "parquet": (".parquet", ".pq"),
    "arrow": (".arrow", ".feather", ".ipc"),
}
"""Formats that are read, and endings of names; any other is text. A `.json` that holds an array is `json`."""

REFUSED: Mapping[str, tuple[tuple[int, bytes], ...]] = {
    "a zip archive (also .npz, .docx, .xlsx)": ((0, b"PK\x03\x04"), (0, b"PK\x05\x06")),
    "a tar archive": ((257, b"ustar"),),
    "a 7z archive": ((0, b"7z\xbc\xaf\x27\x1c"),),
    "a RAR archive": ((0, b"Rar!\x1a\x07"),),
    "a pickle": tuple((0, bytes([0x80, version])) for version in range(2, 6)),
    "a NumPy array": ((0, b"\x93NUMPY"),),
    "HDF5": ((0, b"\x89HDF\r\n\x1a\n"),),
    "Avro": ((0, b"Obj\x01"),),
    "Feather of version 1": ((0, b"FEA1"),),
    "a SQLite database": ((0, b"SQLite format 3\0"),),
    "PDF": ((0, b"%PDF-"),),
    "a model in GGUF": ((0, b"GGUF"),),
    "a program": ((0, b"\x7fELF"),),
    "an image": ((0, b"\x89PNG\r\n"), (0, b"\xff\xd8\xff")),
}
"""Formats that are refused, each with places and bytes by which it is recognised."""

_MARKS = {
    "UTF-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),
    "UTF-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
}
_LFS = b"version https://git-lfs.github.com/spec/"
_PARQUET = (b"PAR1", b"PARE")
_ARROW_FILE = b"ARROW1\0\0"
_ARROW_STREAM = b"\xff\xff\xff\xff"
_DELIMITERS = (",", "\t", ";", "|")


def format_by_name(name: str) -> str:
    """What the ending of a name says, without that of a compression."""
    ending = Path(without_compression(name.lower())[0]).suffix
    return next((format for format, endings in ENDINGS.items() if ending in endings), "text")


def recognised(path: Path, *, asked: str, text_column: str) -> tuple[str, str]:
    """Compression ('' if none) and format of a file.

    Args:
        path: The file.
        asked: Format that was asked for, or `auto`.
        text_column: Key of the text, by which rows are known.

    Raises:
        DataError: it is of a format that is not read, or not of the one that was asked for.
        OSError: it cannot be read.
    """
    head = read_head(path, HEAD_SIZE)
    refuse(path, head)
    return file_compression(path) or "", _format_of(path, head, asked, text_column)


def refuse(path: Path, head: bytes) -> None:
    """Refuse a file whose first bytes are of a format that is not read.

    Raises:
        DataError: with the name of the format.
    """
    if head.startswith(_LFS):
        raise DataError(
            f"{path}: is a pointer of Git LFS, not the file itself: run `git lfs pull` where it came from"
        )
    if inner := compression_of(head):
        raise DataError(f"{path}: is compressed twice, with {inner} inside: unpack it once")
    for name, beginnings in REFUSED.items():
        if any(head[place:].startswith(mark) for place, mark in beginnings):
            raise DataError(f"{path}: is {name}, which is not read: give text, JSON lines, CSV or Parquet files")
    if encoding := encoding_of(head):
        raise DataError(
            f"{path}: is {encoding}, and text is read as UTF-8: convert it, as with "
            f"`iconv -f {encoding} -t UTF-8 FILE > NEW`"
        )


def encoding_of(head: bytes) -> str | None:
    """UTF-16 or UTF-32, by its mark or by where its zero bytes are; None for anything else."""
    for name, marks in _MARKS.items():
        if head.startswith(marks):
            return name
    if b"\0" not in head:
        return None
    for encoding, width in (("UTF-32LE", 4), ("UTF-32BE", 4), ("UTF-16LE", 2), ("UTF-16BE", 2)):
        if _are_characters(head[: len(head) // width * width], encoding, width):
            return encoding
    return None


def _are_characters(content: bytes, encoding: str, width: int) -> bool:
    """Tell whether bytes are characters of an encoding, in which hardly any other bytes can be read."""
    if width == 2:
        # One half of blanks and line ends at least is zero; damage of other text has fewer zeros, and anywhere.
        zeros = sorted(content[place::2].count(0) for place in (0, 1))
        if zeros[0] > 0 or zeros[1] < max(0.02 * len(content), min(4, 0.25 * len(content))):
            return False
    try:
        return "\0" not in content.decode(encoding)
    except UnicodeDecodeError as error:
        return error.start >= max(width, len(content) - 4)  # a character that the end of the head cuts


def _format_of(path: Path, head: bytes, asked: str, text_column: str) -> str:
    binary = _binary_format(head)
    expected = format_by_name(path.name) if asked == "auto" else asked
    if binary is not None:
        if asked not in ("auto", binary):
            raise DataError(
                f"{path}: is {binary.capitalize()}, not {asked}: set format to {binary} or leave it out"
            )
        return binary
    if expected in ("parquet", "arrow") and head:
        said = "called" if asked == "auto" else "said to be"
        raise DataError(
            f"{path}: is not {expected.capitalize()}, though it is {said} that: it begins {excerpt(head[:40])}"
        )
    start = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if expected == "jsonl" and start.startswith(b"["):
        return "json"
    if asked == "auto" and expected in ("text", "csv", "tsv"):
        return _rows_of_json(start, text_column) or expected
    return expected


def _binary_format(head: bytes) -> str | None:
    if head.startswith(_PARQUET):
        return "parquet"
    if head.startswith(_ARROW_FILE):
        return "arrow"
    # A stream begins with a marker and the size of its schema.
    if head.startswith(_ARROW_STREAM) and 0 < int.from_bytes(head[4:8], "little", signed=True) < 2**24:
        return "arrow"
    return None


def _rows_of_json(start: bytes, text_column: str) -> str | None:
    """`jsonl` or `json` if the first row is one of JSON with a text; None if it is not."""
    if not start.startswith((b"{", b"[")):
        return None
    text = start.decode("utf-8", "surrogateescape")
    is_array = text.startswith("[")
    try:
        row, _ = json.JSONDecoder().raw_decode(text.lstrip("[ \t\r\n"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not isinstance(row.get(text_column), str):
        return None
    return "json" if is_array else "jsonl"


def header_of(head: bytes, format: str, text_column: str) -> tuple[list[str], str]:
    """Columns of a table of text, and their separator: as the name says, unless only another finds the text."""
    line = head.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")
    usual = "\t" if format == "tsv" else ","
    for delimiter in (usual, *_DELIMITERS):
        columns = _first_row(line, delimiter)
        if text_column in columns:
            return columns, delimiter
    return _first_row(line, usual), usual


def looks_delimited(head: bytes, text_column: str) -> list[str]:
    """Columns of what is called text and begins like a table with the text's column; none if it does not."""
    columns, _ = header_of(head, "csv", text_column)
    return columns if len(columns) > 1 and text_column in columns else []


def _first_row(text: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader(text.splitlines(keepends=True)[:100], delimiter=delimiter), [])
    except csv.Error:
        return []

"""Rows as documents, and what is said of one that is none: its place, the keys that it has and how it begins."""

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

from collegium.base.errors import DataError
from collegium.base.visible import excerpt, visible
from collegium.data.documents import Document


Documents = Iterator[tuple[Document, int]]

CHATS = ("messages", "conversations", "conversation", "chosen")
"""Keys under which chats are found; docs/text.md says how they become text."""

_MAX_KEYS = 12


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

    def require(self, found: Collection[str]) -> None:
        """Refuse a table that lacks one.

        Raises:
            DataError: with those that it has.
        """
        for key, column in zip(("text_column", "prompt_column"), self.names, strict=False):
            if column not in found:
                raise DataError(f"there is no column {column!r}; {advice(found, key)}")

    def document(self, row: Mapping[str, Any], place: str, raw: str | bytes | None = None) -> Document:
        """The document of a row; a prompt that is null or empty is none.

        Args:
            row: The row.
            place: Where it lies, for whoever reads of a problem.
            raw: The row as it stands in its file, if that is known.
        """
        prompt = "" if self.prompt is None else row.get(self.prompt, _ABSENT)
        document = Document.checked(row.get(self.text), prompt="" if prompt is None else prompt)
        if document.problem is None:
            return document
        shown = excerpt(json.dumps(row, ensure_ascii=False, default=str) if raw is None else raw)
        return document.of(f"{place}: {self._reason(row, document.problem)}; it reads {shown}")

    def _reason(self, row: Mapping[str, Any], problem: str) -> str:
        for key, column in zip(("text_column", "prompt_column"), self.names, strict=False):
            if column not in row:
                return f"there is no key {visible(column)!r}; {advice(row, key)}"
            value = row[column]
            if not isinstance(value, str) and not (value is None and key == "prompt_column"):
                return f"{visible(column)!r} is {_kind(value)}, not text"
        return REASONS[problem]


_ABSENT = object()

REASONS: Mapping[str, str] = {
    "invalid_utf8": "there are bytes or escapes that are not Unicode; text is read as UTF-8",
    "nul": "there is a zero byte, which no text has",
    "no_text": "there is no text",
    "bad_json": "this is not JSON",
    "bad_row": "this is not a row of the table",
    "truncated": "the file ends before its content does; fetch it again",
    "damaged": "the file is damaged from here on; fetch it again",
}
"""Problems of documents in words; the keys are what counts are called."""


def advice(found: Collection[str], key: str) -> str:
    """The keys or columns there are, and what to do."""
    names = list(found)
    more = f" and {len(names) - _MAX_KEYS} more" if len(names) > _MAX_KEYS else ""
    there = (
        f"there are {', '.join(visible(name) for name in names[:_MAX_KEYS])}{more}" if names else "there is none"
    )
    if chats := next((name for name in CHATS if name in found), None):
        return f"{there}: {chats!r} are chats, which must be made into text first (docs/text.md)"
    return f"{there}: set {key} to one of them"


def _kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return f"the number {value}"
        case list():
            return "a list"
        case dict():
            return "an object"
        case _:
            return f"of type {type(value).__name__}"

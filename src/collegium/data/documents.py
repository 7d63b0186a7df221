"""A document as a source yields it, or the reason why there is none.

Text that cannot be used is never repaired. It is handed on with its reason, so that whoever
prepares the text can count it and stop when there is too much of it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace


MAX_DOCUMENT_SIZE = 16 * 2**20
"""Bytes or characters; longer stretches of a text file are cut into several documents."""

_CUT_WINDOW = 4096
_WORD_BORDER = re.compile(r"\S(?= \S)")


@dataclass(frozen=True)
class Document:
    """A document, or one that cannot be used.

    Attributes:
        text: The text; empty if there is a problem.
        problem: Why it cannot be used: `invalid_utf8`, `nul`, `no_text`, `bad_json`, `bad_row`, `truncated`,
            `damaged`.
        prompt_characters: Characters at the beginning that are given and not learnt.
        detail: Of a problem, where it is and what there was instead, for people.
    """

    text: str
    problem: str | None = None
    prompt_characters: int = 0
    detail: str = field(default="", compare=False)

    @classmethod
    def checked(cls, value: object, *, prompt: object = "") -> "Document":
        """A document of `value` after its prompt, if both are text that every tokenizer can read."""
        if prompt != "":
            before = cls.checked(prompt)
            after = cls.checked(value)
            if problem := before.problem or after.problem:
                return cls("", problem)
            return cls(before.text + after.text, prompt_characters=len(before.text))
        if not isinstance(value, str):
            return cls("", "no_text")
        if "\0" in value:
            return cls("", "nul")
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:  # a lone surrogate: a JSON escape or an undecodable byte
                return cls("", "invalid_utf8")
        return cls(value)

    def of(self, detail: str) -> "Document":
        """The same with this detail."""
        return replace(self, detail=detail)


def cut_index(text: str, limit: int) -> int:
    """Index at which to cut `text`: at most `limit` characters from its start, between words if possible.

    A single space goes with the word after it, as in byte-level tokenizers, whose tokens therefore
    stay as they are. A cut elsewhere costs about one token.
    """
    window = max(1, limit - _CUT_WINDOW)
    borders = [border.end() for border in _WORD_BORDER.finditer(text, window - 1, limit)]
    if borders:
        return borders[-1]
    space = max(text.rfind(character, window, limit) for character in " \n\t")
    return space if space > 0 else limit


def cut_text(text: str, limit: int) -> Iterator[str]:
    """Pieces of at most `limit` characters that together are `text`."""
    start = 0
    while len(text) - start > limit:
        end = start + cut_index(text[start : start + limit + 1], limit)
        yield text[start:end]
        start = end
    yield text[start:]

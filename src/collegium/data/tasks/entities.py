"""Named entities as a line of text, and back: `Obama = person; New York = location`, or `none`."""

import re
from collections.abc import Iterable, Sequence

from collegium.base.errors import DataError


Entity = tuple[str, str]
"""Its words, joined by single blanks, and its type."""

NONE = "none"

_TYPES = {"PER": "person", "LOC": "location", "ORG": "organization", "MISC": "other"}
_ENTITY = re.compile(r"(.+?) = ([^\s=]+)")


def entities_of(tokens: Sequence[str], tags: Sequence[str]) -> list[Entity]:
    """Entities of a sentence in its order, from tags in the BIO scheme.

    An `I-` that continues nothing begins an entity, as in conlleval.

    Raises:
        DataError: a tag is not `O`, `B-TYPE` or `I-TYPE`.
    """
    found: list[tuple[list[str], str]] = []
    before = "O"
    for token, tag in zip(tokens, tags, strict=True):
        if tag != "O" and not re.fullmatch(r"[BI]-.+", tag):
            raise DataError(f"NER tag {tag!r} of token {token!r}: tags are O, B-TYPE and I-TYPE")
        if tag.startswith("I-") and before[2:] == tag[2:]:
            found[-1][0].append(token)
        elif tag != "O":
            found.append(([token], _TYPES.get(tag[2:].upper(), tag[2:].lower())))
        before = tag
    return [(" ".join(words), kind) for words, kind in found]


def format_entities(entities: Iterable[Entity]) -> str:
    """One line; `none` if there are none. Semicolons are between entities: one within is written as a comma."""
    return "; ".join(f"{words.replace(';', ',')} = {kind}" for words, kind in entities) or NONE


def parse_entities(line: str) -> list[Entity]:
    """Entities of a line that a model wrote.

    The line is cut at each semicolon first, and a piece that is not of the form `WORDS = TYPE` is left out by
    itself: what is wrong in one takes nothing from the next.
    """
    pieces = (_ENTITY.fullmatch(piece.strip()) for piece in line.split(";"))
    return [(piece[1], piece[2]) for piece in pieces if piece is not None]

"""Decides which documents are kept, and counts the others by reason."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from collegium.base.errors import DataError
from collegium.data.documents import Document
from collegium.data.settings import SourceLimits


KEPT = "kept"
EMPTY = "empty"
TOO_SHORT = "too_short"
HELD_OUT = "held_out"
NEAR_DUPLICATE = "near_duplicate_of_held_out"
SKIPPED = "skipped"

_READABLE = frozenset({KEPT, EMPTY, TOO_SHORT, HELD_OUT, NEAR_DUPLICATE, SKIPPED})
_BREAKS = frozenset({"truncated", "damaged"})
_JUDGED_FROM = 100


def drop_reason(document: Document, limits: SourceLimits) -> str | None:
    """Reason why a document cannot be used, or None."""
    if document.problem is not None:
        return document.problem
    text = document.text.strip()
    if not document.text[document.prompt_characters :].strip():
        return EMPTY
    return TOO_SHORT if len(text) < limits.min_characters else None


@dataclass
class Tally:
    """Documents of one source by what became of them.

    Attributes:
        source: Name of the source.
        counts: Documents by reason; `kept` is one.
        details: Of the first document of each reason that had any to tell.
    """

    source: str
    counts: dict[str, int] = field(default_factory=dict)
    details: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, detail: str = "") -> None:
        """Count one document."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        if detail:
            self.details.setdefault(reason, detail)

    @property
    def num_documents(self) -> int:
        """All documents but blank ones."""
        return sum(self.counts.values()) - self.counts.get(EMPTY, 0)

    @property
    def summary(self) -> str:
        """Counts in words."""
        return _in_words(self.counts)

    def check(self, max_bad_fraction: float, *, at_end: bool = False) -> None:
        """Stop at too many unreadable documents, judged from the hundredth on or at the end.

        Raises:
            DataError: with the reasons.
        """
        bad = {reason: n for reason, n in self.counts.items() if reason not in _READABLE}
        num_bad = sum(bad.values())
        num_documents = self.num_documents
        if not at_end and num_documents < _JUDGED_FROM:
            return
        allowed = max_bad_fraction * num_documents
        if (
            not bad.keys() & _BREAKS
        ):  # one row is no share of a few; a file that breaks off may have lost any number
            allowed = math.ceil(allowed)
        if num_bad > allowed:
            raise DataError(
                f"source {self.source!r}: {num_bad} of {num_documents} documents cannot be read "
                f"({_in_words(bad)}), more than max_bad_fraction = {max_bad_fraction:g}: "
                f"fix the files, or allow more{self.first_bad}"
            )

    @property
    def first_bad(self) -> str:
        """A sentence on the first document of the most frequent problem, unless reading began after it."""
        reason = max(self.details, key=lambda name: self.counts[name], default="")
        return f". The first {reason} is in {self.details[reason]}" if reason else ""


def _in_words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {reason}" for reason, n in sorted(counts.items())) or "no document"

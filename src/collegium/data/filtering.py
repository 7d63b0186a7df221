"""Decides which documents are kept, and counts the others by reason."""

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
    """

    source: str
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, reason: str) -> None:
        """Count one document."""
        self.counts[reason] = self.counts.get(reason, 0) + 1

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
        if num_bad > max_bad_fraction * num_documents:
            raise DataError(
                f"source {self.source!r}: {num_bad} of {num_documents} documents cannot be read "
                f"({_in_words(bad)}), more than max_bad_fraction = {max_bad_fraction:g}: "
                "fix the files, or allow more"
            )


def _in_words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {reason}" for reason, n in sorted(counts.items())) or "no document"

"""Chooses the documents that are held out.

A document is held out for its content, not its place: its hash decides, so that no order of a source
can bias the choice, and copies are one document.
"""

import heapq
from collections.abc import Callable

from collegium.base.errors import DataError
from collegium.data.deduplicate import words_key, words_of
from collegium.data.documents import Document
from collegium.data.filtering import KEPT, Tally, drop_reason
from collegium.data.settings import SourceLimits
from collegium.data.sources import Source


_SHARE = 0.1
_NUM_KEYS = 2**64


class HeldOutChooser:
    """Chooses one document in ten while a source is read, until there are enough.

    If the source ends before, those with the next smallest hashes follow, up to half of all that
    differ. Memory: the chosen texts, and a hash for each of about ten times as many documents.

    Args:
        wanted: Documents to choose.
        taken: Keys of documents that other sources hold out; they are not chosen again.
    """

    def __init__(self, wanted: int, taken: frozenset[int]) -> None:
        self._wanted = wanted
        self._seen = set(taken)
        self._num_candidates = 0
        self._smallest: list[tuple[int, int, Document]] = []  # a heap of (-key, order, document)

    @property
    def is_done(self) -> bool:
        """True when the rest of the source need not be read."""
        if len(self._smallest) < self._wanted:
            return False
        return -self._smallest[0][0] < _SHARE * _NUM_KEYS

    def offer(self, document: Document) -> None:
        """Consider a document."""
        key = words_key(words_of(document.text))
        if key in self._seen:
            return
        self._seen.add(key)
        heapq.heappush(self._smallest, (-key, self._num_candidates, document))
        self._num_candidates += 1
        if len(self._smallest) > self._wanted:
            heapq.heappop(self._smallest)

    def chosen(self) -> list[Document]:
        """The held-out documents, in the order of the source."""
        limit = self._wanted if self.is_done else self._num_candidates // 2
        smallest = sorted(self._smallest, reverse=True)[:limit]
        return [document for _, _, document in sorted(smallest, key=lambda item: item[1])]


def choose_held_out(
    source: Source,
    *,
    wanted: int,
    taken: frozenset[int],
    limits: SourceLimits,
    max_bad_fraction: float,
    on_document: Callable[[Document], None] | None = None,
) -> list[Document]:
    """Documents of `source` to hold out; it is read from its beginning, as far as needed.

    Args:
        source: The source.
        wanted: Documents to choose.
        taken: Keys of documents that other sources hold out.
        limits: Which documents are used at all.
        max_bad_fraction: Share of documents that may be unreadable.
        on_document: Called with each document that is read.

    Raises:
        DataError: if there are none, or too many documents cannot be read.
    """
    chooser = HeldOutChooser(wanted, taken)
    tally = Tally(source.name)
    source.load_state_dict({})
    for document in source:
        if on_document is not None:
            on_document(document)
        reason = drop_reason(document, limits)
        tally.add(reason or KEPT, document.detail)
        tally.check(max_bad_fraction)
        if reason is None:
            chooser.offer(document)
        if chooser.is_done or tally.num_documents == limits.max_documents:
            break
    chosen = chooser.chosen()
    if not chosen:
        tally.check(max_bad_fraction, at_end=True)
        raise DataError(
            f"source {source.name!r}: nothing can be held out, as at least two different documents "
            f"are needed ({tally.summary}): give more text, or lower min_characters{tally.first_bad}"
        )
    return chosen

"""Recognises held-out text, and what is nearly the same, among training text.

Only held-out text is kept, as one 64-bit hash for every 13 words in a row, so the memory needed
does not grow with the training text: 8 bytes for each held-out word.
"""

import hashlib
import re
import zlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from collegium.data.filtering import HELD_OUT, NEAR_DUPLICATE


NGRAM_SIZE = 13
"""Words; the size that GPT-3 and the Pile used to find copies of test text."""

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def words_of(text: str) -> list[str]:
    """Words in lower case; text without any letters or digits is one word."""
    return re.findall(r"\w+", text.lower()) or [text.strip()]


def words_key(words: list[str]) -> int:
    """64-bit hash, equal for texts that differ in case, blanks and punctuation only."""
    digest = hashlib.blake2b(" ".join(words).encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "big")


class HeldOutIndex:
    """Held-out text of all sources.

    Args:
        texts: The documents.
        threshold: Share of a document's 13-grams that makes it a near duplicate. Shorter documents
            are compared as a whole.
    """

    def __init__(self, texts: Iterable[str], *, threshold: float) -> None:
        words = [words_of(text) for text in texts]
        grams = [_ngram_hashes(w) for w in words]
        self._keys = frozenset(words_key(w) for w in words)
        self._grams = np.unique(np.concatenate([np.zeros(0, np.uint64), *grams]))
        self._threshold = threshold

    def match(self, text: str) -> str | None:
        """`held_out`, `near_duplicate_of_held_out`, or None."""
        words = words_of(text)
        if words_key(words) in self._keys:
            return HELD_OUT
        grams = _ngram_hashes(words)
        if not len(grams) or not len(self._grams):
            return None
        places = np.searchsorted(self._grams, grams).clip(max=len(self._grams) - 1)
        shared = np.mean(self._grams[places] == grams)
        return NEAR_DUPLICATE if shared >= self._threshold else None


def _ngram_hashes(words: list[str]) -> NDArray[np.uint64]:
    """A hash of every 13 words in a row; none for shorter texts."""
    num_grams = len(words) - NGRAM_SIZE + 1
    if num_grams < 1:
        return np.zeros(0, np.uint64)
    # hash() would be faster, but it differs between processes, and a resumed run must decide the same.
    hashes = np.fromiter((zlib.crc32(w.encode()) for w in words), np.uint64, len(words))
    grams = np.zeros(num_grams, np.uint64)
    for offset in range(NGRAM_SIZE):  # wraps around at 2**64, as intended
        grams = grams * _MULTIPLIER + hashes[offset : offset + num_grams]
    return grams

"""Lists of tokens as small integers.

Ids go up, so each is stored as its distance from the one before. A probability is stored in seven bits
as the root of its ratio to the row's highest, which is stored in sixteen:

    code = round(127 sqrt(p / p_max))        p = p_max (code / 127)^2

What a loss sees is an error of p itself, and a step of the root is small in p where p is small; a step of
the logarithm would be as large relative to 0.9 as to 0.001. The label's probability is kept exactly, and
the others are scaled so that list and tail sum to 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collegium.cache.manifest import CacheSettings


Floats = NDArray[np.floating[Any]]


LEVELS = 127


@dataclass(frozen=True)
class TokenLists:
    """Lists of several positions, one after the other.

    Attributes:
        lengths: Tokens listed at each position, [N].
        ids: Going up at each position, [sum of lengths].
        probs: Their probabilities, [sum of lengths].
    """

    lengths: NDArray[np.int64]
    ids: NDArray[np.int64]
    probs: Floats

    @property
    def rows(self) -> NDArray[np.int64]:
        """Position of each entry."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)


def gaps_of(lists: TokenLists) -> NDArray[np.int32]:
    """Distance of each id from the one before in its list; the first stays as it is."""
    previous = np.concatenate([[0], lists.ids[:-1]])
    starts = _starts(lists.lengths)
    previous[starts[starts < len(previous)]] = 0
    gaps: NDArray[np.int32] = (lists.ids - previous).astype(np.int32)
    return gaps


def ids_of(gaps: NDArray[np.int32], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Invert `gaps_of`."""
    total = np.cumsum(gaps, dtype=np.int64)
    starts = _starts(lengths)[lengths > 0]
    before = np.zeros(len(lengths), np.int64)
    before[lengths > 0] = total[starts] - gaps[starts]
    return total - np.repeat(before, lengths)


def codes_of(lists: TokenLists, top: Floats) -> NDArray[np.uint8]:
    """Seven bits for each probability; `top` is each list's highest, as it will be read."""
    ratio = lists.probs / np.maximum(top, np.finfo(np.float32).tiny)[lists.rows]
    codes: NDArray[np.uint8] = np.clip(np.rint(LEVELS * np.sqrt(ratio)), 1, LEVELS).astype(np.uint8)
    return codes


def probs_of(codes: NDArray[np.uint8], lengths: NDArray[np.int64], top: Floats) -> Floats:
    """Invert `codes_of`, up to rounding."""
    return (np.square(codes.astype(np.float32) / LEVELS) * np.repeat(top, lengths)).astype(np.float32)


def correct_sums(lists: TokenLists, tail: Floats, labels: NDArray[np.int64], label_probs: Floats) -> Floats:
    """Probabilities with the label's exact where it is listed, and the others scaled to fill up 1 - tail."""
    rows = lists.rows
    is_label = lists.ids == labels[rows]
    probs = np.where(is_label, label_probs[rows], lists.probs)
    exact, others = (
        np.bincount(rows, probs * chosen, len(lists.lengths)).astype(np.float64)
        for chosen in (is_label, ~is_label)
    )
    wanted = np.maximum(1.0 - tail - exact, 0.0)
    scale = np.divide(wanted, others, out=np.ones_like(others), where=others > 0)
    return np.where(is_label, probs, probs * scale[rows]).astype(np.float32)


def stored_lists(
    arrays: Mapping[str, NDArray[Any]], labels: NDArray[np.int64], settings: CacheSettings
) -> tuple[TokenLists, Floats]:
    """Lists as they were stored, and the logarithm of the mass outside them."""
    lengths = arrays["lengths"].astype(np.int64)
    ids = ids_of(arrays["gaps"], lengths)
    if settings.mode == "sampled":
        drawn: Floats = arrays["codes"].astype(np.float32) / settings.num_samples
        return TokenLists(lengths, ids, drawn), np.full(len(lengths), -np.inf, np.float32)
    tail = arrays["tail_logprob"].astype(np.float32)
    probs = probs_of(arrays["codes"], lengths, np.exp(arrays["top_logprob"].astype(np.float32)))
    lists = TokenLists(lengths, ids, probs)
    if settings.kd_temperature == 1.0:
        probs = correct_sums(lists, np.exp(tail), labels, np.exp(arrays["label_logprob"]))
    return TokenLists(lengths, ids, probs), tail


def padded(
    values: NDArray[np.generic], lengths: NDArray[np.int64], width: int, fill: float
) -> NDArray[np.generic]:
    """Lists side by side as [N width]."""
    table = np.full((len(lengths), width), fill, values.dtype)
    table[np.arange(width) < lengths[:, None]] = values
    return table


def _starts(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.cumsum(lengths) - lengths

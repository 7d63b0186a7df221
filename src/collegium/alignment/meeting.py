"""One segment of text cut by two tokenizers: where the cuts meet, and what lies between them.

A text is bytes, and a tokenization of it the places at which its tokens end. A place at which both have cut is a
common cut; there the student and the teacher have read the same text. For each place of the student's,

    bytes      t h e _ c a t s _ w a l k i n g
    student         |       | |         |     |      the | _cat | s | _walk | ing
    teacher         |         |               |      the | _cats    | _walking
    place           a       b c         d     e

- a, c and e are common cuts. At a the teacher reads _cats next, which begins with the student's next token _cat:
  its prediction is carried by that beginning, and is exact.
- at b the teacher has not cut: b lies inside of _cats, which was predicted at a. The part of that prediction that
  begins with _cat and goes on says something about the student's next token: inside.
- had the teacher cut _walking into _wa, lk and ing, the student's _walk would be the product of two of its
  predictions, from c on: split.

The map of vocabularies then takes some of it back (`plan`): a token that reaches further may be possible too.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


Ints = NDArray[np.int64]


class Carry(IntEnum):
    """Kinds of places, by how a teacher's prediction reaches them; see `plan`."""

    EXACT = 0
    SPLIT = 1
    INSIDE = 2
    ABSENT = 3


@dataclass(frozen=True)
class Text:
    """Tokens of one segment and where each ends, in bytes; the token that ends a text counts as one byte more."""

    tokens: Ints
    ends: Ints

    def last_at(self, places: Ints) -> Ints:
        """Last token that ends at each place, or before."""
        return np.searchsorted(self.ends, places, "right") - 1


@dataclass(frozen=True)
class Meeting:
    """One segment: how the tokens of the two lie to one another. As in the plan, from 0 on in the segment.

    `since` counts the student's tokens since the cut of `before`; `kinds` knows nothing of vocabularies yet.
    `is_cut` says where both have cut and the teacher predicts something, `is_shared` which of the teacher's rows
    stand in the student's segment.
    """

    kinds: Ints
    main: Ints
    before: Ints
    since: Ints
    chain: Ints
    student_spans: Ints
    teacher_spans: Ints
    span_bytes: Ints
    is_cut: NDArray[np.bool_]
    is_shared: NDArray[np.bool_]


def meet(own: Text, other: Text, first: Ints) -> Meeting:
    """Find common cuts.

    Args:
        own: The student's tokens.
        other: The teacher's, of the same text.
        first: Student token that each of the teacher's tokens begins with.
    """
    here = own.ends[:-1]  # where each position stands
    there = own.ends[1:]  # where its next token ends
    at = other.last_at(here)
    then = other.last_at(there)
    is_cut = (at >= 0) & (other.ends[at] == here)
    # The teacher's last token predicts nothing, so a cut behind it is of no use.
    main = np.where(is_cut & (at < len(other.tokens) - 1), at, -1)
    next_token = other.tokens[np.minimum(main + 1, len(other.tokens) - 1)]
    is_carried = first[next_token] == own.tokens[1:]
    complete = then - main
    ends_together = other.ends[then] == there
    # Whole tokens that end within the student's next one, before a token that reaches beyond it, give no
    # probability of that one. A single token that covers it stands for it, even where the map carries it to
    # another.
    can_chain = ends_together | (complete == 0)
    cuts = np.intersect1d(own.ends, other.ends)
    last_cut = np.searchsorted(cuts, here, "left") - 1
    place = cuts[last_cut] if len(cuts) else np.zeros_like(here)
    before = np.where(last_cut >= 0, other.last_at(place), -1)
    covers = other.ends[np.minimum(before + 1, len(other.ends) - 1)] > here
    # The first that applies; a token of no bytes ends where it begins, so nothing can be said of it.
    kinds = np.select(
        [
            there == here,
            is_cut & (main < 0),
            is_cut & is_carried,
            is_cut & can_chain,
            is_cut,
            (before >= 0) & covers,
        ],
        [Carry.ABSENT, Carry.ABSENT, Carry.EXACT, Carry.SPLIT, Carry.ABSENT, Carry.INSIDE],
        Carry.ABSENT,
    ).astype(np.int64)
    reached = kinds != Carry.ABSENT
    return Meeting(
        kinds=kinds,
        main=np.where(reached, main, -1),
        before=np.where(reached, before, -1),
        since=np.arange(len(here)) - own.last_at(place),
        chain=np.where(kinds == Carry.SPLIT, np.maximum(complete, 1), 0),
        student_spans=np.where(there > here, _spans(cuts, there), -1),
        teacher_spans=_spans(cuts, other.ends[1:]),
        span_bytes=np.diff(cuts),
        is_cut=main >= 0,
        # A teacher's segment may begin before the student's, at negative places, and go on behind it.
        is_shared=(other.ends[:-1] >= 0) & (other.ends[1:] <= own.ends[-1]),
    )


def _spans(cuts: Ints, ends: Ints) -> Ints:
    """Number of the stretch between two cuts that ends here or later; -1 outside of all."""
    spans = np.searchsorted(cuts, ends, "left") - 1
    return np.where(spans < len(cuts) - 1, spans, -1)

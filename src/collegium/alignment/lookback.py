"""The student's tokens since a common cut, as keys into the map of vocabularies.

Tokens of a teacher's that begin at the last common cut and continue after a place are entries of the place. One
that begins at a cut further back and spans the last one would count too; where the map has such a token, what is
carried is not exact.
"""

import numpy as np
from numpy.typing import NDArray

from collegium.alignment.vocabulary import START, VocabularyMap, extend_keys


Ints = NDArray[np.int64]

DEEPEST = 8
"""Student tokens after a common cut beyond which no token of a teacher is looked for."""


def keys_since(tokens: Ints, at: Ints, since: Ints) -> NDArray[np.uint64]:
    """Keys of the last student tokens at some places.

    Args:
        tokens: The student's, of all segments.
        at: Which of them ends at each place.
        since: How many are taken; at most `DEEPEST` of them count.
    """
    keys = np.full(len(since), START)
    for depth in range(min(DEEPEST, int(since.max(initial=0)))):
        # Keys grow from the oldest token to the newest, as those of a teacher's token do from its beginning.
        longer = since > depth
        keys[longer] = extend_keys(keys[longer], tokens[at[longer] - since[longer] + 1 + depth])
    return keys


def crossed_from_further_back(
    vocabulary: VocabularyMap, tokens: Ints, at: Ints, within: Ints, since: Ints, is_cut: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Places that a token of the teacher's from a cut before the last one could continue after, [F].

    Args:
        vocabulary: Knows all tokens.
        tokens: The student's, of all segments.
        at: Which of them ends at each place.
        within: Places of the segment before each.
        since: Student tokens since the last common cut.
        is_cut: Where both have cut, and the teacher predicts something.
    """
    crossed = np.zeros(len(at), bool)
    for depth in range(2, DEEPEST + 1):
        asked = np.flatnonzero((within >= depth) & (since < depth))
        # Only from places where both have cut can the teacher have begun a token.
        asked = asked[is_cut[asked - depth] & ~crossed[asked]]
        keys = keys_since(tokens, at[asked], np.full(len(asked), depth))
        _, going_on, ends = vocabulary.beginning_with(keys)
        crossed[asked[going_on < ends]] = True
    return crossed

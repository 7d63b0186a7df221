"""The student's token that looks most like each of a teacher's (MinED, FuseLLM, arXiv:2401.10491, section 3.2).

A published way of carrying, to compare with: the probability of a token goes to the one that is spelt most
alike, whether or not the student would write it there. Made once for a pair and kept on disk, as the map of
vocabularies is: 100,000 tokens against 49,152 are 5e9 comparisons, some minutes on two cores.
"""

import logging

import numpy as np
from numpy.typing import NDArray

from collegium.alignment.token_bytes import TokenBytes
from collegium.alignment.vocabulary import VocabularyMap, kept_arrays
from collegium.base.errors import DataError


logger = logging.getLogger(__name__)

AT_ONCE = 512
"""Tokens compared together: a table of 25 MB against 49,152."""


def nearest_tokens(student: TokenBytes, teacher: TokenBytes, vocabulary: VocabularyMap) -> NDArray[np.int64]:
    """Student token of the least edit distance to each of the teacher's, [V_T]; -1 where `first` has none.

    Of several the one with the lowest id. Tokens of the same bytes are each other's.

    Raises:
        DataError: `rapidfuzz` is not installed.
    """
    made = kept_arrays(
        "min_ed/1", student, teacher, ["nearest"], lambda: {"nearest": _compare(student, teacher, vocabulary)}
    )
    return made["nearest"]


def _compare(student: TokenBytes, teacher: TokenBytes, vocabulary: VocabularyMap) -> NDArray[np.int64]:
    try:
        from rapidfuzz.distance import Levenshtein
        from rapidfuzz.process import cdist
    except ImportError:
        raise DataError(
            "alignment.carry: min_ed compares spellings with rapidfuzz, which is not installed: "
            "pip install 'collegium[align]'"
        ) from None
    nearest = vocabulary.first.copy()
    nearest[vocabulary.shared[:, 1]] = vocabulary.shared[:, 0]
    same = np.zeros(teacher.size, bool)
    same[vocabulary.shared[:, 1]] = True
    if teacher.eos is not None:
        same[teacher.eos] = True
    open_ids = np.flatnonzero((nearest >= 0) & ~same)
    choices = [(token_id, _spelling(piece)) for token_id, piece in enumerate(student.pieces) if piece]
    ids = np.array([token_id for token_id, _ in choices])
    spellings = [text for _, text in choices]
    logger.info("comparing %d tokens with %d (once)", len(open_ids), len(spellings))
    for start in range(0, len(open_ids), AT_ONCE):
        part = open_ids[start : start + AT_ONCE]
        queries = [_spelling(teacher.pieces[token_id] or b"") for token_id in part]
        table = cdist(queries, spellings, scorer=Levenshtein.distance, dtype=np.uint8, workers=-1)
        nearest[part] = ids[table.argmin(1)]
    return nearest


def _spelling(piece: bytes) -> str:
    """The token as text; a byte that is not a character stands by itself."""
    return piece.decode(errors="surrogateescape")

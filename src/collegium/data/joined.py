"""A teacher's own prepared text, found beside the student's.

A cache holds a teacher's blocks: the same documents as the student's, cut by the teacher's tokenizer and packed
in its own way. So one cache serves students of any tokenizer. A segment of the student's is looked up by its
document and bytes, and found in one block of the teacher's or two; the bytes of both are compared before anything
is used.

Near the beginning of a segment the two have read different amounts of the text before it: the teacher more or
less, as its block happened to begin.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from collegium.alignment.meeting import Ints, Text
from collegium.alignment.plan import Aligner, Piece, Reading, padded_blocks, text_of
from collegium.base.errors import DataError
from collegium.data.document_index import DocumentIndex, SegmentPlace
from collegium.data.prepared import PreparedText
from collegium.signals.contracts import PLACES_IN_DOCUMENTS


_Row = tuple[int, str, int]
"""Number of the copy, part, and block of it."""


class JoinedText:
    """A teacher's own tokens for the student's batches, from its own prepared text.

    Args:
        text: Prepared with the teacher's tokenizer, from the student's sources.
        aligner: Aligner of the student's vocabulary and the teacher's.
    """

    def __init__(self, text: PreparedText, aligner: Aligner) -> None:
        self._aligner = aligner
        self._index = DocumentIndex.of_text(text)
        held_out = {f"held_out/{name}": blocks for name, blocks in text.held_out.items()}
        self._parts = {"train": text.train, **held_out}

    def read(self, inputs: Mapping[str, Tensor]) -> tuple[list[Text], Reading]:
        """The student's segments, and the teacher's blocks in which they lie.

        Raises:
            DataError: the batch does not say of what documents it is.
        """
        if any(inputs.get(name) is None for name in PLACES_IN_DOCUMENTS):
            raise DataError(
                "a teacher with another tokenizer is read from a cache by documents, and this batch does not say "
                "of which it is: use prepared text, or run the teacher (`cached: false`)"
            )
        names = ("input_ids", "attention_mask", "position_ids", *PLACES_IN_DOCUMENTS)
        tokens, mask, positions, documents, starts, ends = (inputs[name].cpu().numpy() for name in names)
        mask = mask.astype(bool)
        own = [text for block in self._aligner.segments(tokens, mask, positions) for text in block]
        first = mask & (positions == 0)
        places = list(zip(*(values[first].tolist() for values in (documents, starts, ends)), strict=True))
        return own, self._reading(own, places)

    def _reading(self, own: Sequence[Text], wanted: Sequence[tuple[int, int, int]]) -> Reading:
        """Read each segment, given its document and where it begins and ends in that.

        A block that the batch holds twice is read twice: each row of the teacher's belongs to one segment.
        """
        copies: Counter[tuple[int, int, int]] = Counter()
        rows: dict[_Row, int] = {}
        found: list[list[tuple[int, SegmentPlace]]] = []
        for stretch in wanted:
            places = self._index.find(*stretch) if stretch[1] >= 0 else []
            keys = [(copies[stretch], place.part, place.row) for place in places]
            copies[stretch] += 1
            found.append([(rows.setdefault(k, len(rows)), p) for k, p in zip(keys, places, strict=True)])
        blocks = [self._parts[part][row] for _, part, row in rows]
        tokens = [np.asarray(block["input_ids"], np.int64) for block in blocks]
        lengths = [np.asarray(block["segment_lengths"], np.int64) for block in blocks]
        sizes = np.array([int((length - 1).sum()) for length in lengths], np.int64)
        first_rows = np.cumsum(sizes) - sizes

        def piece(text: Text, stretch: tuple[int, int, int], row: int, place: SegmentPlace) -> Piece | None:
            before = int(lengths[row][: place.index].sum())
            segment = tokens[row][before:][: lengths[row][place.index]]
            theirs = self._as_in(text, stretch, segment, place)
            return None if theirs is None else Piece(theirs, int(first_rows[row]) + before - place.index)

        pieces = [
            [p for row, place in at if (p := piece(text, stretch, row, place)) is not None]
            for text, stretch, at in zip(own, wanted, found, strict=True)
        ]
        return Reading(padded_blocks(tokens, lengths), pieces, int(sizes.sum()))

    def _as_in(self, own: Text, stretch: tuple[int, int, int], tokens: Ints, place: SegmentPlace) -> Text | None:
        """The teacher's tokens, their ends counted from the student's first byte; None if the bytes differ."""
        _, start, end = stretch
        ours = self._aligner.student.decode(own.tokens)
        theirs = self._aligner.teacher.decode(tokens)
        our_space = _put_before(ours, end - start)
        their_space = _put_before(theirs, place.end - place.start)
        if our_space is None or their_space is None:
            return None
        theirs = theirs[their_space:]
        shift = place.start - start + our_space
        first = max(0, shift)
        last = min(len(ours), shift + len(theirs))
        if ours[first:last] != theirs[first - shift : last - shift]:
            return None
        return Text(tokens, np.maximum(text_of(tokens, self._aligner.teacher).ends - their_space, 0) + shift)


def _put_before(content: bytes, size: int) -> int | None:
    """Bytes that a tokenizer put before a stretch of this size: a space or nothing; None if some were lost."""
    if len(content) == size:
        return 0
    return 1 if len(content) == size + 1 and content.startswith(b" ") else None

"""A teacher's own prepared text, found beside the student's.

A cache holds a teacher's blocks: the same documents as the student's, cut by the teacher's tokenizer and packed
in its own way. So one cache serves students of any tokenizer. A segment of the student's is looked up by its
document and bytes, and found in one block of the teacher's or two; the bytes of both are compared before anything
is believed.

Near the beginning of a segment the two have read different amounts of the text before it: the teacher more or
less, as its block happened to begin.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from collegium.alignment.plan import Aligner, Ints, Piece, Reading, Text, text_of
from collegium.contracts import PLACES_IN_DOCUMENTS
from collegium.data.document_index import DocumentIndex, SegmentPlace
from collegium.data.prepared import PreparedText
from collegium.errors import DataError


_Row = tuple[str, int]


class JoinedText:
    """What a teacher reads of the student's batches, from its own prepared text.

    Args:
        text: Prepared with the teacher's tokenizer, from the student's sources.
        aligner: Of the student's vocabulary and the teacher's.
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
        found = [
            self._index.find(*place) if place[1] >= 0 else []
            for place in zip(*(values[first].tolist() for values in (documents, starts, ends)), strict=True)
        ]
        return own, self._reading(own, found, starts[first])

    def _reading(self, own: Sequence[Text], found: Sequence[Sequence[SegmentPlace]], starts: Ints) -> Reading:
        rows: dict[_Row, int] = {}
        for places in found:
            for place in places:
                rows.setdefault((place.part, place.row), len(rows))
        blocks = [self._parts[part][row] for part, row in rows]
        lengths = [np.asarray(block["segment_lengths"], np.int64) for block in blocks]
        sizes = np.array([int((length - 1).sum()) for length in lengths], np.int64)
        first_rows = np.cumsum(sizes) - sizes

        def piece(place: SegmentPlace, start: int) -> Piece:
            number = rows[place.part, place.row]
            before = int(lengths[number][: place.index].sum())
            tokens = np.asarray(blocks[number]["input_ids"], np.int64)[before:][: lengths[number][place.index]]
            text = text_of(tokens, self._aligner.teacher)
            put_before = len(self._aligner.teacher.decode(tokens)) - (
                place.end - place.start
            )  # a space, or nothing
            ends = np.maximum(text.ends - put_before, 0) + place.start - start
            return Piece(Text(tokens, ends), int(first_rows[number]) + before - place.index)

        pieces = [
            self._believed(text, [piece(place, int(start)) for place in places], places, int(start))
            for text, places, start in zip(own, found, starts, strict=True)
        ]
        return Reading(_padded(blocks, lengths), pieces, int(sizes.sum()))

    def _believed(
        self, own: Text, pieces: Sequence[Piece], places: Sequence[SegmentPlace], start: int
    ) -> list[Piece]:
        """Those that spell the student's bytes."""
        ours = self._aligner.student.decode(own.tokens)
        kept = []
        for piece, place in zip(pieces, places, strict=True):
            theirs, shift = self._aligner.teacher.decode(piece.text.tokens), place.start - start
            if len(theirs) == place.end - place.start + 1 and theirs.startswith(b" "):
                theirs = theirs[1:]  # put before a document by the tokenizer
            first, last = max(0, shift), min(len(ours), shift + len(theirs))
            if ours[first:last] == theirs[first - shift : last - shift]:
                kept.append(piece)
        return kept


def _padded(blocks: Sequence[Mapping[str, Any]], lengths: Sequence[Ints]) -> dict[str, NDArray[Any]]:
    """Blocks side by side, filled up on the right."""
    shape = (len(blocks), max([1, *(int(length.sum()) for length in lengths)]))
    input_ids, mask, positions = np.zeros(shape, np.int64), np.zeros(shape, bool), np.zeros(shape, np.int64)
    for row, (block, length) in enumerate(zip(blocks, lengths, strict=True)):
        size = int(length.sum())
        input_ids[row, :size], mask[row, :size] = block["input_ids"], True
        positions[row, :size] = np.concatenate([np.arange(n) for n in length])
        positions[row, size:] = np.arange(shape[1] - size)
    return {"input_ids": input_ids, "attention_mask": mask, "position_ids": positions}

"""Finds the bytes of a document in prepared text.

A teacher with another tokenizer has blocks of its own, prepared from the same sources. What the two have in
common are documents and their bytes: a number names the same document in both (`PreparedText.require_same_text`),
so the teacher's tokens for a stretch of the student's text are found by document and byte.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from collegium.data.prepared import PreparedText
from collegium.data.stored_blocks import StoredBlocks


_COLUMNS = ("segment_documents", "segment_starts", "segment_ends")


@dataclass(frozen=True)
class SegmentPlace:
    """A segment of prepared text.

    Attributes:
        part: `train`, or `held_out/NAME`.
        row: Block of that part.
        index: Segment of the block.
        start: UTF-8 bytes of the document before its first token.
        end: UTF-8 bytes of the document up to the end of its last token.
    """

    part: str
    row: int
    index: int
    start: int
    end: int


@dataclass(frozen=True)
class DocumentIndex:
    """All segments of some parts that hold any bytes, by document and in reading order; G segments.

    Attributes:
        parts: Names of the parts.
        documents: Document of each segment, [G], in ascending order.
        starts: UTF-8 bytes of the document before each, [G].
        ends: UTF-8 bytes of the document up to the end of each, [G].
        part_index: Its part, [G].
        rows: Its block in the part, [G].
        indices: Its number in the block, [G].
    """

    parts: tuple[str, ...]
    documents: NDArray[np.int64]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    part_index: NDArray[np.int16]
    rows: NDArray[np.int32]
    indices: NDArray[np.int32]

    @classmethod
    def of_text(cls, text: PreparedText) -> "DocumentIndex":
        """Index of training and held-out blocks; 34 bytes a segment, four times that while it is built."""
        held_out = {f"held_out/{name}": blocks.dataset for name, blocks in text.held_out.items()}
        return cls.of_parts({"train": text.train.dataset, **held_out})

    @classmethod
    def of_parts(cls, parts: Mapping[str, datasets.Dataset | StoredBlocks]) -> "DocumentIndex":
        """Index of some parts, whose documents are numbered alike."""
        columns = [_segments(number, dataset) for number, dataset in enumerate(parts.values())]
        joined = {name: np.concatenate([part[name] for part in columns]) for name in columns[0]}
        order = np.lexsort((joined["starts"], joined["documents"]))
        return cls(tuple(parts), **{name: column[order] for name, column in joined.items()})

    def __len__(self) -> int:
        return len(self.documents)

    def find(self, document: int, start: int, end: int) -> list[SegmentPlace]:
        """Segments that hold any of the bytes from `start` up to `end` of a document, in reading order.

        Args:
            document: Its number, which also says whether it is held out.
            start: UTF-8 bytes of the document before the stretch.
            end: UTF-8 bytes of the document up to its end.

        Returns:
            None at all for a document that is not there, or a stretch past its end or without bytes.
        """
        first, last = np.searchsorted(self.documents, [document, document + 1])
        last = first + np.searchsorted(self.starts[first:last], end)
        first += np.searchsorted(self.ends[first:last], start, "right")
        return [self._place(i) for i in range(first, last)] if start < end else []

    def _place(self, i: int) -> SegmentPlace:
        return SegmentPlace(
            part=self.parts[self.part_index[i]],
            row=int(self.rows[i]),
            index=int(self.indices[i]),
            start=int(self.starts[i]),
            end=int(self.ends[i]),
        )


def _segments(part: int, dataset: datasets.Dataset | StoredBlocks) -> dict[str, NDArray[np.integer]]:
    """Columns of the index for one part, in its order; segments without bytes are left out."""
    table: pa.Table = (
        dataset.columns(_COLUMNS)
        if isinstance(dataset, StoredBlocks)
        else dataset.select_columns(list(_COLUMNS)).with_format("arrow")[:]
    )
    documents, starts, ends = (pc.list_flatten(table[name]).to_numpy() for name in _COLUMNS)
    counts = pc.list_value_length(table[_COLUMNS[0]]).to_numpy()
    firsts = np.cumsum(counts) - counts
    kept = np.flatnonzero(starts < ends)
    rows = np.repeat(np.arange(len(counts), dtype=np.int32), counts)[kept]
    return {
        "documents": documents[kept],
        "starts": starts[kept],
        "ends": ends[kept],
        "part_index": np.full(len(kept), part, np.int16),
        "rows": rows,
        "indices": (kept - firsts[rows]).astype(np.int32),
    }

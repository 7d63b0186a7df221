"""Documents, one after another, in blocks of equal length.

Nothing is padded or cut away: a document that does not fit continues in the next block as a new
segment. Only one with a prompt lies whole in one block if it can, since what follows a prompt means
little without it; then the block before it ends early. Prompts and the first token of a segment are
never predicted; the latter costs one prediction a document and one a block (0.1 % at 1,024 tokens).
A block that predicts nothing, such as a single token left over at the end of a source, is left out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from collegium.data.tokenization import TokenizedDocument


SCHEMA = pa.schema(
    {
        "input_ids": pa.list_(pa.int32()),
        "segment_lengths": pa.list_(pa.int32()),
        "segment_documents": pa.list_(pa.int64()),
        "segment_bytes": pa.list_(pa.int64()),
        "segment_starts": pa.list_(pa.int64()),
        "segment_ends": pa.list_(pa.int64()),
        "segment_prompts": pa.list_(pa.int32()),
        "domain": pa.string(),
    }
)


@dataclass(frozen=True)
class Segment:
    """Tokens of one document inside one block.

    Attributes:
        document: Number of the document.
        tokens: Token ids.
        num_bytes: UTF-8 bytes of the tokens that are predicted: all but the prompt, or else the first.
        start: UTF-8 bytes of the document before the first token; -1 if unknown.
        end: UTF-8 bytes of the document up to the end of the last token; -1 if unknown.
        prompt: Tokens at its beginning that are given and not learnt.
    """

    document: int
    tokens: NDArray[np.int32]
    num_bytes: int
    start: int
    end: int
    prompt: int = 0

    @classmethod
    def of(cls, number: int, part: TokenizedDocument) -> "Segment":
        """A part of document `number`; it has tokens."""
        prompt = part.prompt_tokens
        # From the boundaries of tokens, not of characters: the first token may end inside a character, whose other
        # bytes belong to tokens that are predicted.
        num_bytes = int(part.boundaries[-1] - part.boundaries[max(prompt, 1)])
        return cls(number, part.tokens, num_bytes, int(part.boundaries[0]), int(part.boundaries[-1]), prompt)

    @property
    def num_predicted(self) -> int:
        """Tokens that are predicted."""
        return len(self.tokens) - max(self.prompt, 1)

    def after(self, bos: int) -> "Segment":
        """The same after BOS, so that its first token is predicted too, unless it is of a prompt."""
        tokens = np.concatenate([np.array([bos], np.int32), self.tokens])
        if self.prompt:
            return replace(self, tokens=tokens, prompt=self.prompt + 1)
        return Segment(self.document, tokens, self.end - self.start, self.start, self.end)


@dataclass(frozen=True)
class Block:
    """One row of the packed data set."""

    segments: tuple[Segment, ...]
    domain: str

    @property
    def num_tokens(self) -> int:
        """Tokens of all segments."""
        return sum(len(segment.tokens) for segment in self.segments)


class Packer:
    """Packs the documents of one domain.

    Args:
        block_size: Tokens of a block; fewer in the last, and before a document with a prompt.
        domain: Name of the domain, written in each row.
        bos: Begins every segment, also where a document goes on; None: documents are taken as they are.
    """

    def __init__(self, *, block_size: int, domain: str, bos: int | None = None) -> None:
        self._block_size = block_size
        self._domain = domain
        self._bos = bos
        self._segments: list[Segment] = []
        self._room = block_size

    def add(self, number: int, document: TokenizedDocument) -> Iterator[tuple[Block, int]]:
        """Append a document.

        Args:
            number: Its number.
            document: Its tokens.

        Yields:
            Each block that ends, and how many tokens of `document` lie in it or before it.
        """
        start = 0
        needs_bos = self._bos is not None and len(document) > 0 and document.tokens[0] != self._bos
        if document.prompt_tokens and self._room < len(document) + needs_bos <= self._block_size:
            for block in self.flush():
                yield block, 0
        while start < len(document):
            lacks_bos = self._bos is not None and document.tokens[start] != self._bos and self._room > 1
            end = min(start + self._room - int(lacks_bos), len(document))  # numpy's integers are not JSON
            segment = Segment.of(number, document[start:end])
            if lacks_bos and self._bos is not None:
                segment = segment.after(self._bos)
            self._segments.append(segment)
            self._room -= len(segment.tokens)
            start = end
            if self._room == 0:
                for block in self.flush():
                    yield block, end

    def flush(self) -> Iterator[Block]:
        """The block that is not full yet, if there is one and it predicts anything."""
        block = Block(tuple(self._segments), self._domain)
        self._segments = []
        self._room = self._block_size
        if any(segment.num_predicted > 0 for segment in block.segments):
            yield block


def blocks_to_table(blocks: Sequence[Block]) -> pa.Table:
    """Rows of the packed data set, one for each block."""
    columns = {
        "input_ids": [np.concatenate([s.tokens for s in b.segments]) for b in blocks],
        "segment_lengths": [[len(s.tokens) for s in b.segments] for b in blocks],
        "segment_documents": [[s.document for s in b.segments] for b in blocks],
        "segment_bytes": [[s.num_bytes for s in b.segments] for b in blocks],
        "segment_starts": [[s.start for s in b.segments] for b in blocks],
        "segment_ends": [[s.end for s in b.segments] for b in blocks],
        "segment_prompts": [[s.prompt for s in b.segments] for b in blocks],
        "domain": [b.domain for b in blocks],
    }
    return pa.table(columns, schema=SCHEMA)

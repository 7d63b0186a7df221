"""The plan by which a teacher with another tokenizer reads a batch, and what of its predictions is carried over.

Each segment of the student's blocks becomes a segment of the teacher's: the same bytes, cut by its tokenizer,
behind BOS if that is its custom. At a place where both have cut (`main`), the teacher predicts from the same
text as the student. How right its prediction is when it is carried over follows from the text:

- exact: what the teacher reads next begins with the student's next token.
- split: the student's next token is several of the teacher's; its probability is the product of theirs. Or a
  token of the teacher's from before the last common cut could go on behind the place, which is not counted.
- inside: the place lies inside a token of the teacher's, which knew only the text before that token.
- absent: nothing can be said.

What a teacher's token goes on with where the student has cut it (`entries`) is part of the student's next
token as well: without it a teacher who always writes "walking" as one token would claim that "ing" never
follows "walk". All of this is found from token ids and lengths, by numpy, where batches are made: some
10 ms for 1,024 tokens.

The plan is made in four steps: segments of the student's blocks as bytes, the same bytes as the teacher's
tokens, each pair of segments met by itself (`meeting`), and the meetings joined, rows and spans counted through,
before the map of vocabularies has the last word on each place.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from collegium.alignment.lookback import DEEPEST, crossed_from_further_back, keys_since
from collegium.alignment.meeting import Carry, Ints, Meeting, Text, meet
from collegium.alignment.token_bytes import TokenBytes, TokenizedBytes
from collegium.alignment.vocabulary import VocabularyMap


@dataclass(frozen=True)
class AlignmentPlan:
    """A batch of the student's read by a teacher.

    F positions of the student have a next token in their segment; U of the teacher's have one. Both are in
    reading order, and rows below are places among the U.

    Attributes:
        input_ids: The teacher's tokens, [B T].
        attention_mask: True on text, [B T].
        position_ids: Places in segments, [B T].
        kinds: How each position is reached, a `Carry`, [F].
        main: Row that predicts from the same text; -1 if there is none, [F].
        before: Row at the last place before where both had cut, if something is taken from it; else -1, [F].
        chain: Rows from `main` on whose labels together are the student's next token, where that is not what
            the first of them is carried to; else 0, [F].
        entries: Rows of the map of vocabularies, from one to another (exclusive), whose tokens may have been
            written at `before` and go on behind the position, [2 F].
        student_spans: Span of each position's next token, -1 in none, [F].
        teacher_spans: Likewise of the teacher's, [U].
        teacher_segments: Segment of each row, from 0 on, -1 for text of no segment of the student's, [U].
        span_bytes: Bytes of each span.
    """

    input_ids: Ints
    attention_mask: NDArray[np.bool_]
    position_ids: Ints
    kinds: Ints
    main: Ints
    before: Ints
    chain: Ints
    entries: Ints
    student_spans: Ints
    teacher_spans: Ints
    teacher_segments: Ints
    span_bytes: Ints


@dataclass(frozen=True)
class Piece:
    """A segment of a teacher's that holds some of one of the student's; its ends count from where that begins.

    Attributes:
        text: All of the teacher's segment.
        first_row: Row at which it predicts its second token.
    """

    text: Text
    first_row: int


@dataclass(frozen=True)
class Reading:
    """A batch as a teacher reads it.

    Attributes:
        batch: `input_ids`, `attention_mask` and `position_ids`, [B T] each.
        pieces: Those of its segments that hold some of each segment of the student's.
        num_rows: Its predicted positions, U.
    """

    batch: Mapping[str, NDArray[Any]]
    pieces: Sequence[Sequence[Piece]]
    num_rows: int


class Aligner:
    """Plans how a teacher reads the student's batches.

    Args:
        student: The student's vocabulary.
        teacher: The teacher's.
        vocabulary: The map between them.
    """

    def __init__(self, student: TokenBytes, teacher: TokenBytes, vocabulary: VocabularyMap) -> None:
        self.student = student
        self.teacher = teacher
        self.vocabulary = vocabulary

    @classmethod
    def of(cls, student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> "Aligner":
        """For two tokenizers; the map of their vocabularies is kept on disk.

        Raises:
            DataError: the tokens of one do not keep all of the text.
        """
        own = TokenBytes(student)
        other = TokenBytes(teacher)
        return cls(own, other, VocabularyMap.of(own, other))

    def plan(
        self,
        input_ids: Ints,
        attention_mask: NDArray[np.bool_],
        position_ids: Ints,
        segment_starts: Ints | None = None,
    ) -> AlignmentPlan:
        """The plan of a batch that the teacher reads as its tokenizer cuts it, [B S] each.

        `segment_starts`, where it is known, says which segments begin a document.
        """
        blocks = self.segments(input_ids, attention_mask, position_ids)
        own = [text for block in blocks for text in block]
        # Some tokenizers cut the first word of a text otherwise than the same word within it.
        begins = [False] * len(own)
        if segment_starts is not None:
            begins = (segment_starts[attention_mask & (position_ids == 0)] == 0).tolist()
        return self.join(own, self._reading(own, begins, [len(block) for block in blocks]))

    def segments(self, input_ids: Ints, attention_mask: NDArray[np.bool_], position_ids: Ints) -> list[list[Text]]:
        """The student's segments, by block."""
        return [
            self._segments(tokens[mask], places[mask])
            for tokens, mask, places in zip(input_ids, attention_mask, position_ids, strict=True)
        ]

    def _reading(self, own: Sequence[Text], begins: Sequence[bool], counts: Sequence[int]) -> Reading:
        other = self._read(own, begins)
        # The last token of a segment predicts nothing, so n tokens are n - 1 rows.
        sizes = [len(text.tokens) - 1 for text in other]
        pieces = [[Piece(text, first)] for text, first in zip(other, _starts(sizes).tolist(), strict=True)]
        return Reading(_packed(other, counts), pieces, sum(sizes))

    def _segments(self, tokens: Ints, places: Ints) -> list[Text]:
        cuts = np.flatnonzero(places == 0)[1:]
        return [text_of(part, self.student) for part in np.split(tokens, cuts)] if len(tokens) else []

    def _read(self, own: Sequence[Text], begins: Sequence[bool]) -> list[Text]:
        """The same text as the teacher's tokens."""
        contents = [self.student.decode(text.tokens) for text in own]
        return [
            self._framed(tokenized, len(content), text.ends[-1] > len(content))
            for text, content, tokenized in zip(
                own, contents, self.teacher.encode(contents, begins=begins), strict=True
            )
        ]

    def _framed(self, tokenized: TokenizedBytes, size: int, is_ended: bool) -> Text:
        """With BOS and EOS where they belong."""
        bos = [] if self.teacher.bos is None else [self.teacher.bos]
        eos = [self.teacher.eos] if is_ended and self.teacher.eos is not None else []
        tokens = np.concatenate([bos, tokenized.tokens, eos]).astype(np.int64)
        ends = np.concatenate([[0] * len(bos), tokenized.ends, [size + 1] * len(eos)]).astype(np.int64)
        # A model cannot read a segment of no tokens; one of any kind predicts nothing either.
        return Text(tokens, ends) if len(tokens) else Text(np.zeros(1, np.int64), np.zeros(1, np.int64))

    def join(self, own: Sequence[Text], reading: Reading) -> AlignmentPlan:
        """The plan, from the student's segments and what the teacher reads of them."""
        met = [
            (number, piece.first_row, meet(text, piece.text, self.vocabulary.first))
            for number, (text, pieces) in enumerate(zip(own, reading.pieces, strict=True))
            for piece in pieces
        ]
        firsts = _starts([len(text.tokens) - 1 for text in own])
        spans = _starts([len(meeting.span_bytes) for _, _, meeting in met])
        joined = _Joined(sum(len(text.tokens) - 1 for text in own), reading.num_rows)
        for (number, row, meeting), span in zip(met, spans.tolist(), strict=True):
            joined.add(meeting, number, int(firsts[number]), row, span)
        # The map is asked no deeper than that: what may go on from further back is taken as unknown.
        before = np.where(joined.since <= DEEPEST, joined.before, -1)
        kinds, entries = self._entries(joined, before, own)
        return AlignmentPlan(
            **reading.batch,
            kinds=kinds,
            main=joined.main,
            before=np.where(entries[1] > entries[0], before, -1),
            chain=joined.chain,
            entries=entries,
            student_spans=joined.student_spans,
            teacher_spans=joined.teacher_spans,
            teacher_segments=joined.teacher_segments,
            span_bytes=_all([meeting.span_bytes for _, _, meeting in met]),
        )

    def _entries(self, joined: "_Joined", before: Ints, own: Sequence[Text]) -> tuple[Ints, Ints]:
        """Kinds, now that vocabularies are asked, and the entries of each position."""
        tokens = _all([text.tokens for text in own])
        labels = _all([text.tokens[1:] for text in own])
        within = _all([np.arange(len(text.tokens) - 1) for text in own])
        # Positions are one fewer than tokens in each segment, so a position's number is not that of its token.
        at = within + np.repeat(_starts([len(t.tokens) for t in own]), [len(t.tokens) - 1 for t in own])
        starts, going_on, ends = self.vocabulary.beginning_with(keys_since(tokens, at, joined.since))
        inside = joined.kinds == Carry.INSIDE
        # Where no entry leads to the student's own next token, carrying would teach that it is impossible.
        for place in np.flatnonzero(inside):
            follows = self.vocabulary.follows[going_on[place] : ends[place]]
            nearest = np.searchsorted(follows, labels[place])
            inside[place] = before[place] >= 0 and labels[place] in follows[nearest : nearest + 1]
        # A token from a cut further back could reach here too, and is not counted: an inside place, which has
        # nothing else, is given up, and an exact one is as approximate as a split.
        more = crossed_from_further_back(self.vocabulary, tokens, at, within, joined.since, joined.is_cut) | (
            joined.since > DEEPEST
        )
        kinds = np.where((joined.kinds == Carry.INSIDE) & (~inside | more), Carry.ABSENT, joined.kinds)
        kinds = np.where((kinds == Carry.EXACT) & more, Carry.SPLIT, kinds)
        # Tokens that end at the place itself: at a cut `main` goes on from them. An inside place has no such
        # row, so their mass stays among its entries, though how it goes on is not known.
        entries = np.stack([np.where(inside, starts, going_on), ends])
        return kinds, np.where((before < 0) | (kinds == Carry.ABSENT), 0, entries)


class _Joined:
    """Meetings side by side: rows and spans counted through."""

    def __init__(self, num_positions: int, num_rows: int) -> None:
        self.kinds = np.full(num_positions, int(Carry.ABSENT))
        self.main = np.full(num_positions, -1)
        self.before = np.full(num_positions, -1)
        self.student_spans = np.full(num_positions, -1)
        self.is_cut = np.zeros(num_positions, bool)
        self.since = np.zeros(num_positions, np.int64)
        self.chain = np.zeros(num_positions, np.int64)
        self.teacher_spans = np.full(num_rows, -1)
        self.teacher_segments = np.full(num_rows, -1)

    def add(self, meeting: Meeting, number: int, position: int, row: int, span: int) -> None:
        """Write down what one piece says, from a position, a row and a span on."""
        places = slice(position, position + len(meeting.kinds))
        # A segment of the student's may lie in several of the teacher's: each writes only what it knows.
        known = meeting.kinds != Carry.ABSENT
        for name, values in {
            "kinds": meeting.kinds,
            "main": _moved(meeting.main, row),
            "before": _moved(meeting.before, row),
            "since": meeting.since,
            "chain": meeting.chain,
        }.items():
            getattr(self, name)[places][known] = values[known]
        self.is_cut[places] |= meeting.is_cut
        within = meeting.student_spans >= 0
        self.student_spans[places][within] = meeting.student_spans[within] + span
        rows = slice(row, row + len(meeting.teacher_spans))
        theirs = meeting.teacher_spans >= 0
        self.teacher_spans[rows][theirs] = meeting.teacher_spans[theirs] + span
        self.teacher_segments[rows][meeting.is_shared] = number


def text_of(tokens: Ints, table: TokenBytes) -> Text:
    """A segment of prepared text, from its beginning."""
    lengths = table.lengths[tokens]
    # EOS has no bytes of its own; as one byte more it is a cut that a teacher's EOS can meet.
    if table.eos is not None:
        lengths[-1] += tokens[-1] == table.eos
    return Text(tokens, np.cumsum(lengths))


def _packed(texts: Sequence[Text], counts: Sequence[int]) -> dict[str, NDArray[Any]]:
    """Blocks of so many segments each."""
    blocks = []
    start = 0
    for count in counts:
        blocks.append(texts[start : start + count])
        start += count
    tokens = [_all([text.tokens for text in block]) for block in blocks]
    return padded_blocks(tokens, [[len(text.tokens) for text in block] for block in blocks])


def padded_blocks(
    blocks: Sequence[Ints], segment_lengths: Sequence[Sequence[int] | Ints]
) -> dict[str, NDArray[Any]]:
    """Blocks of tokens, filled up on the right to one length: what a teacher reads, [B T] each."""
    shape = (len(blocks), max([1, *(len(block) for block in blocks)]))
    input_ids = np.zeros(shape, np.int64)
    mask = np.zeros(shape, bool)
    positions = np.zeros(shape, np.int64)
    for row, (block, lengths) in enumerate(zip(blocks, segment_lengths, strict=True)):
        size = len(block)
        input_ids[row, :size] = block
        mask[row, :size] = True
        positions[row, :size] = _all([np.arange(length) for length in lengths])
        # Padding counts from 0 as well, and so is a segment of its own that no text attends to.
        positions[row, size:] = np.arange(shape[1] - size)
    return {"input_ids": input_ids, "attention_mask": mask, "position_ids": positions}


def _all(parts: Sequence[Ints]) -> Ints:
    return np.concatenate([np.zeros(0, np.int64), *parts])


def _starts(counts: Sequence[int] | Ints) -> Ints:
    """Number of what lies before each part."""
    counts = np.asarray(counts, np.int64)
    return np.cumsum(counts) - counts


def _moved(places: Ints, by: int) -> Ints:
    return np.where(places >= 0, places + by, -1)

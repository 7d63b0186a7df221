"""Counts what two tokenizers have in common, in their vocabularies and on some text.

No model is needed: which of a teacher's predictions reach a student is decided by the text alone. Equal sizes
of vocabularies say nothing, and neither do unequal ones: entries that fill up a model's vocabulary are no
tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from collegium.alignment.meeting import Carry, Ints
from collegium.alignment.plan import Aligner, AlignmentPlan
from collegium.alignment.token_bytes import TokenBytes
from collegium.alignment.tokenizer_match import PROBES, vocabulary_of
from collegium.alignment.verdict import (
    Approximation,
    Comparison,
    Kind,
    Overlap,
    TokenizerFacts,
    unusable,
    verdict,
    warnings,
)
from collegium.alignment.vocabulary import VocabularyMap
from collegium.base.errors import DataError


NUM_SHOWN = 8
"""Special tokens that are named; the others are counted."""


@dataclass(frozen=True)
class ReadText:
    """A text and tokens of it.

    Attributes:
        content: UTF-8.
        tokens: Token ids.
        ends: Bytes of the text up to the end of each.
    """

    content: bytes
    tokens: Ints
    ends: Ints


class ModelTokenizer:
    """A tokenizer, and how many rows its model's vocabulary has.

    Args:
        tokenizer: The tokenizer.
        num_rows: Rows of the embedding; None if not known.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, num_rows: int | None = None) -> None:
        self.tokenizer = tokenizer
        self._num_rows = num_rows

    @cached_property
    def table(self) -> TokenBytes:
        """Bytes of its tokens.

        Raises:
            DataError: they do not keep all of a text.
        """
        return TokenBytes(self.tokenizer)

    @cached_property
    def entries(self) -> dict[str, int]:
        """All tokens, with what only fills up the vocabulary."""
        return dict(vocabulary_of(self.tokenizer))

    @cached_property
    def vocab(self) -> dict[str, int]:
        """All tokens; `[PAD151665]` is what a GGUF file fills up a vocabulary with."""
        return {token: token_id for token, token_id in self.entries.items() if token != f"[PAD{token_id}]"}

    @cached_property
    def num_rows(self) -> int:
        """Rows of the model's vocabulary."""
        return max(self.entries.values()) + 1 if self._num_rows is None else self._num_rows

    @cached_property
    def added(self) -> frozenset[str]:
        """Special tokens, and others that were added to the vocabulary."""
        return frozenset(self.tokenizer.get_added_vocab()) | frozenset(self.tokenizer.all_special_tokens)

    @cached_property
    def begins_with_bos(self) -> bool:
        """True if it puts BOS before a text by itself."""
        bos = self.tokenizer.bos_token_id
        return isinstance(bos, int) and self.tokenizer.encode("a")[:1] == [bos]

    @cached_property
    def probes(self) -> list[list[int]]:
        """Its tokens for a few lines."""
        return [self.tokenizer.encode(probe, add_special_tokens=False) for probe in PROBES]

    def read(self, contents: Sequence[bytes]) -> list[ReadText]:
        """Whole texts as its tokens."""
        encoded = self.table.encode(contents, begins=[True] * len(contents))
        return [ReadText(c, text.tokens, text.ends) for c, text in zip(contents, encoded, strict=True)]


def compare(
    name: str,
    student: ModelTokenizer,
    teacher: ModelTokenizer,
    texts: Sequence[ReadText],
    *,
    approximate: Approximation = "inside",
) -> Comparison:
    """Compare a teacher's tokenizer with the student's.

    Args:
        name: Name of the teacher.
        student: The student's.
        teacher: The teacher's.
        texts: Some text as the student's blocks hold it.
        approximate: What is carried besides what is exact; see `collegium.teachers.aligned.AlignmentPolicy`.
    """
    kind = kind_of(student, teacher)
    same = kind in ("same", "padding")
    try:
        own_texts = texts if same else teacher.read([text.content for text in texts])
        plan = None if same else _plan(student, teacher, texts)
    except DataError as error:
        return unusable(name, str(error))
    facts = facts_of(student, texts)
    own = facts_of(teacher, own_texts)
    overlap = _overlap(student, teacher, plan, same=same, texts=(texts, own_texts))
    return Comparison(
        teacher=name,
        kind=kind,
        verdict=verdict(kind, facts, own, overlap, approximate),
        warnings=tuple(warnings(kind, facts, own, overlap)),
        student=facts,
        own=own,
        overlap=overlap,
    )


def kind_of(student: ModelTokenizer, teacher: ModelTokenizer) -> Kind:
    """Relation of two tokenizers."""
    added = student.added | teacher.added
    ordinary, others = (
        {token: token_id for token, token_id in side.vocab.items() if token not in added}
        for side in (student, teacher)
    )
    if ordinary != others or student.probes != teacher.probes:
        return "other"
    if student.vocab != teacher.vocab:
        return "special"
    return "same" if (student.num_rows, student.entries) == (teacher.num_rows, teacher.entries) else "padding"


def _plan(student: ModelTokenizer, teacher: ModelTokenizer, texts: Sequence[ReadText]) -> AlignmentPlan:
    """Plan by which the teacher reaches the student's positions.

    Raises:
        DataError: the tokens of one do not keep all of a text.
    """
    aligner = Aligner(student.table, teacher.table, VocabularyMap.of(student.table, teacher.table))
    tokens = np.concatenate([np.zeros(0, np.int64), *(text.tokens for text in texts)]).astype(np.int64)
    places = np.concatenate([np.zeros(0, np.int64), *(np.arange(len(text.tokens)) for text in texts)])
    return aligner.plan(tokens[None], np.ones((1, len(tokens)), bool), places[None], np.zeros_like(places)[None])


def facts_of(side: ModelTokenizer, texts: Sequence[ReadText]) -> TokenizerFacts:
    """Figures of a tokenizer that has read some text."""
    num_bytes = sum(len(text.content) for text in texts)
    num_tokens = _num_tokens(side, texts)
    try:
        lost = sum(lost_bytes(text, side.table) for text in texts)
        normalizers = side.table.left_out
    except DataError:  # what its tokens stand for is not known
        lost = None
        normalizers = ()
    tokenizer = side.tokenizer
    return TokenizerFacts(
        num_tokens=len(side.vocab),
        num_rows=side.num_rows,
        bos=_named(tokenizer.bos_token, tokenizer.bos_token_id),
        eos=_named(tokenizer.eos_token, tokenizer.eos_token_id),
        begins_with_bos=side.begins_with_bos,
        normalizers=normalizers,
        bytes_per_token=num_bytes / num_tokens if num_tokens else None,
        lost_bytes=lost,
        num_bytes=num_bytes,
    )


def lost_bytes(text: ReadText, table: TokenBytes) -> int:
    """Bytes of a text that its tokens do not give back; a space that was put before it does not count."""
    spelt = [(int(end), table.pieces[token] or b"") for token, end in zip(text.tokens, text.ends, strict=True)]
    spelt = _without_space(spelt) if text.content[:1] != b" " else spelt
    if b"".join(piece for _, piece in spelt) == text.content:
        return 0
    lost = start = 0
    for end, tokens in groupby(spelt, key=itemgetter(0)):  # tokens that share a character end together
        part = text.content[start:end]
        lost += len(part) - _kept(part, b"".join(piece for _, piece in tokens))
        start = end
    return lost + len(text.content) - start


def _without_space(spelt: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """The tokens of a text without the space that was put before it, which may be a token of its own."""
    first = next((i for i, (_, piece) in enumerate(spelt) if piece), None)
    if first is None or not spelt[first][1].startswith(b" "):
        return spelt
    end, piece = spelt[first]
    return [*spelt[:first], *([(end, piece[1:])] if piece != b" " else []), *spelt[first + 1 :]]


def _kept(part: bytes, spelt: bytes) -> int:
    """Bytes at both ends of a part that its tokens spell."""
    limit = min(len(part), len(spelt))
    before = next((i for i in range(limit) if part[i] != spelt[i]), limit)
    left = limit - before
    return before + next((i for i in range(left) if part[-1 - i] != spelt[-1 - i]), left)


def _num_tokens(side: ModelTokenizer, texts: Sequence[ReadText]) -> int:
    """Tokens of text, without BOS and EOS."""
    ids = (side.tokenizer.bos_token_id, side.tokenizer.eos_token_id)
    frame = [token_id for token_id in ids if token_id is not None]
    return sum(int((~np.isin(text.tokens, frame)).sum()) for text in texts)


def _named(token: object, token_id: object) -> tuple[str, int] | None:
    return (str(token), token_id) if isinstance(token_id, int) else None


def _overlap(
    student: ModelTokenizer,
    teacher: ModelTokenizer,
    plan: AlignmentPlan | None,
    *,
    same: bool,
    texts: tuple[Sequence[ReadText], Sequence[ReadText]],
) -> Overlap:
    ours: dict[Any, int] = student.vocab if same else student.table.ids
    theirs: dict[Any, int] = teacher.vocab if same else teacher.table.ids
    shared = [token for token in ours if token in theirs]
    differing = _differing(student, teacher)
    numbers = [_num_tokens(side, read) for side, read in zip((student, teacher), texts, strict=True)]
    return Overlap(
        shared=len(shared),
        shared_of_student=len(shared) / max(1, len(student.vocab)),
        shared_of_teacher=len(shared) / max(1, len(teacher.vocab)),
        same_ids=sum(ours[token] == theirs[token] for token in shared),
        num_special=len(differing),
        special=tuple(differing[:NUM_SHOWN]),
        shares=_shares(plan) if any(numbers) else None,
        student_per_teacher=numbers[0] / numbers[1] if all(numbers) else None,
    )


def _shares(plan: AlignmentPlan | None) -> dict[str, float]:
    if plan is None:  # nothing to align
        return {kind.name.lower(): float(kind == Carry.EXACT) for kind in Carry}
    return shares(plan)


def shares(plan: AlignmentPlan) -> dict[str, float]:
    """Share of the positions that are reached in each way, by its name in lower case."""
    counts = np.bincount(plan.kinds, minlength=len(Carry))
    return {kind.name.lower(): float(counts[kind] / max(1, counts.sum())) for kind in Carry}


def _differing(student: ModelTokenizer, teacher: ModelTokenizer) -> list[tuple[str, int | None, int | None]]:
    ours = student.vocab
    theirs = teacher.vocab
    found = [
        (t, ours.get(t), theirs.get(t)) for t in student.added | teacher.added if ours.get(t) != theirs.get(t)
    ]
    return sorted(found, key=lambda item: (item[1] is None, item[2] is None, item[1] or 0, item[2] or 0, item[0]))

"""The map between the tokens of a teacher and of a student, made once for a pair and kept on disk.

A teacher's token says which student token comes next: the first one that its bytes are cut into. That makes
one map of the teacher's vocabulary onto the student's, under which no probability is lost. Where the student
cuts a teacher's token into several, those after the first are known too: they follow where the text so far
is the beginning of that token (`beginning_with`).

For 262,144 tokens against 49,152 the map takes some seconds to make and 4 MB on disk.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import safetensors.numpy
import xxhash
from numpy.typing import NDArray
from safetensors import SafetensorError

from collegium.alignment.token_bytes import TokenBytes
from collegium.base.durable import write_bytes
from collegium.base.references import cache_dir


logger = logging.getLogger(__name__)

FORMAT = "1"
DIGEST = "xxh3_128"
"""Name of the array that holds the digest of the others."""

START: np.uint64 = np.uint64(0x243F6A8885A308D3)
"""Key of no tokens."""


def extend_keys(keys: NDArray[np.uint64], tokens: NDArray[np.integer]) -> NDArray[np.uint64]:
    """Keys of sequences that are one token longer; 64 bits, so that no two in a vocabulary are the same."""
    with np.errstate(over="ignore"):
        mixed = (keys ^ (tokens.astype(np.uint64) + np.uint64(1))) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    return mixed ^ (mixed >> np.uint64(32))


@dataclass(frozen=True)
class VocabularyMap:
    """A teacher's vocabulary seen from a student's.

    Attributes:
        first: Student token that each of the teacher's tokens begins with, [V_T]; -1 where it has no
            counterpart, such as a control token, whose probability is left out.
        keys: Key of the student tokens that a teacher's token begins with, or is, sorted; E rows.
        follows: The student token that follows in it, or -1 where it ends: what follows is another token's
            affair. Sorted within a key.
        tokens: That teacher's token.
        shared: Student and teacher ids of tokens of the same bytes, [P 2].
    """

    first: NDArray[np.int64]
    keys: NDArray[np.uint64]
    follows: NDArray[np.int64]
    tokens: NDArray[np.int64]
    shared: NDArray[np.int64]

    def beginning_with(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Rows of each key, [3 n]: where they begin, where those begin that go on, and where they end."""
        ends = np.searchsorted(self.keys, keys, "right")
        starts = np.searchsorted(self.keys, keys, "left")
        return np.stack([starts, starts + self._ends_before[ends] - self._ends_before[starts], ends])

    @cached_property
    def _ends_before(self) -> NDArray[np.int64]:
        """Number of rows before each that go on with nothing."""
        return np.cumsum([0, *(self.follows < 0)])

    @classmethod
    def of(cls, student: TokenBytes, teacher: TokenBytes) -> "VocabularyMap":
        """The map of a pair; read from the cache if it was made before."""
        names = [field.name for field in fields(cls)]
        return cls(**kept_arrays(FORMAT, student, teacher, names, lambda: vars(make_map(student, teacher))))


def kept_arrays(
    what: str,
    student: TokenBytes,
    teacher: TokenBytes,
    names: Sequence[str],
    make: Callable[[], Mapping[str, NDArray[Any]]],
) -> dict[str, NDArray[Any]]:
    """Arrays that are made once for a pair of vocabularies and read from the cache folder after that.

    Args:
        what: What it is, and the number of its format.
        student: With the teacher's, its fingerprint names the file.
        teacher: The other vocabulary.
        names: Names of the arrays.
        make: Makes them; also where the file is damaged.
    """
    content = f"{what}/with digest/{student.fingerprint}/{teacher.fingerprint}"
    path = cache_dir() / "vocabularies" / f"{hashlib.sha256(content.encode()).hexdigest()[:32]}.safetensors"
    if path.exists():
        try:
            arrays = safetensors.numpy.load(path.read_bytes())
            if not np.array_equal(arrays.pop(DIGEST), _digest_of(arrays)):
                raise ValueError("its digest differs")
            return {name: arrays[name] for name in names}
        except (SafetensorError, KeyError, ValueError, OSError) as error:
            logger.warning("%s: is damaged (%s); it is made again", path, error)
    made = make()
    arrays = {name: np.ascontiguousarray(made[name]) for name in names}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, safetensors.numpy.save({**arrays, DIGEST: _digest_of(arrays)}))
    return arrays


def _digest_of(arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.uint8]:
    state = xxhash.xxh3_128()
    for name in sorted(arrays):
        state.update(f"{name}/{arrays[name].dtype}/{arrays[name].shape}".encode())
        state.update(np.ascontiguousarray(arrays[name]).data)
    return np.frombuffer(state.digest(), np.uint8)


def make_map(student: TokenBytes, teacher: TokenBytes) -> VocabularyMap:
    """Cut the tokens of each vocabulary with the tokenizer of the other."""
    starts, cut = _cut(teacher, student)
    lengths = np.diff(starts)
    first = np.full(teacher.size, -1, np.int64)
    first[lengths > 0] = cut[starts[:-1][lengths > 0]]
    # EOS has no bytes, but means the same on both sides.
    if teacher.eos is not None and student.eos is not None:
        first[teacher.eos] = student.eos
    own_starts, own_cut = _cut(student, teacher)
    split = np.flatnonzero(np.diff(own_starts) > 1)  # the teacher gets there by another token first
    begun = (extend_keys(np.full(len(split), START), split), np.full(len(split), -1), own_cut[own_starts[split]])
    columns = [np.concatenate(parts) for parts in zip(*_prefixes(starts, cut, first), begun, strict=True)]
    # By key, then by what follows: `beginning_with` finds both parts of a key by bisection.
    order = np.lexsort(columns[::-1])
    keys, follows, tokens = (column[order] for column in columns)
    pairs = [(token_id, teacher.ids[piece]) for piece, token_id in student.ids.items() if piece in teacher.ids]
    return VocabularyMap(first, keys, follows, tokens, np.array(sorted(pairs), np.int64).reshape(-1, 2))


def _cut(pieces_of: TokenBytes, by: TokenBytes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Tokens of one vocabulary as tokens of another: where each begins in the list, and the list.

    Bytes that are a token of the other too are that token, however the tokenizer would cut them alone.
    """
    texts = [piece or b"" for piece in pieces_of.pieces]
    same = {token_id: by.ids[piece] for token_id, piece in enumerate(texts) if piece and piece in by.ids}
    encoded = by.encode([b"" if token_id in same else piece for token_id, piece in enumerate(texts)])
    parts = []
    for token_id, (piece, tokenized) in enumerate(zip(texts, encoded, strict=True)):
        if token_id in same:
            parts.append(np.array([same[token_id]], np.int64))
        elif by.decode(tokenized.tokens) == piece:
            parts.append(tokenized.tokens)
        else:  # a character that the other vocabulary lacks
            parts.append(np.zeros(0, np.int64))
    starts = np.cumsum([0, *(len(part) for part in parts)])
    return starts, np.concatenate(parts)


def _prefixes(
    starts: NDArray[np.int64], cut: NDArray[np.int64], first: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]]]:
    """Key of each beginning of each token, what follows in it, and the token."""
    lengths = np.diff(starts)
    tokens = np.flatnonzero((lengths > 0) & (first >= 0))
    keys = np.full(len(tokens), START)
    for depth in range(int(lengths.max(initial=0))):
        keys = extend_keys(keys, cut[starts[tokens] + depth])
        # Tokens that end here leave; the others stay for the next depth.
        goes_on = lengths[tokens] > depth + 1
        yield keys[~goes_on], np.full(int((~goes_on).sum()), -1), tokens[~goes_on]
        keys = keys[goes_on]
        tokens = tokens[goes_on]
        yield keys, cut[starts[tokens] + depth + 1], tokens

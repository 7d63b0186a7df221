"""The bytes that each token of a vocabulary stands for, and bytes back to tokens.

Text is what two tokenizers have in common, and its bytes are the finest measure of it: byte-level tokens cut
characters in the middle. So lengths of tokens are counted in bytes, from the tokens themselves; offsets that
a tokenizer reports are in characters, and two tokens that share a character both get all of it.

What a tokenizer does to a text before it cuts it is left out where it loses something (NFC, lower case,
stripping): a teacher reads the same bytes as the student. A space that it puts before a text is not counted.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from collegium.alignment.tokenizer_match import vocab_size_of, vocabulary_of
from collegium.base.digest import json_digest
from collegium.base.errors import DataError


KEPT_NORMALIZERS = ("Replace",)
"""What a text goes through that loses nothing; spaces become a mark, for instance."""

SPACE_MARK = "\u2581"


class TokenBytes:
    """A vocabulary as bytes.

    Args:
        tokenizer: A fast tokenizer whose tokens are pieces of text.

    Attributes:
        size: Number of token ids.
        pieces: Bytes of each token; None for those that stand for no text, such as BOS.
        lengths: Their number; 0 for None.
        bos: Token id that the tokenizer begins a text with by itself; None if it does not.
        eos: Token id that ends a text; None if there is none.
        left_out: Normalizers that lose something, such as NFC, which texts do not go through here.

    Raises:
        DataError: the tokenizer is not a fast one, or its tokens lose some of the text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, tokenizers.Tokenizer):
            raise DataError(
                f"{type(tokenizer).__name__} has no fast tokenizer, whose tokens can be read as bytes: "
                "convert it to a tokenizer.json"
            )
        tree = json.loads(backend.to_str())
        self._spells_bytes = "ByteLevel" in _kinds(tree["pre_tokenizer"]) | _kinds(tree["decoder"])
        if not self._spells_bytes and tree["model"]["type"] not in ("BPE", "Unigram"):
            raise DataError(
                f"{type(tokenizer).__name__} cuts text into {tree['model']['type']} tokens, which do not keep "
                "all of it: teachers and students need a BPE or Unigram tokenizer"
            )
        self.size = vocab_size_of(tokenizer)
        added = {int(id_): token for id_, token in backend.get_added_tokens_decoder().items()}
        self.pieces: list[bytes | None] = [None] * self.size
        for token, token_id in vocabulary_of(tokenizer).items():
            known = added.get(token_id)
            if token != f"[PAD{token_id}]":  # what fills up the vocabulary of a GGUF file
                self.pieces[token_id] = self._bytes_of(token) if known is None else _bytes_of_added(known)
        unknown = tree["model"].get("unk_id") if tree["model"]["type"] == "Unigram" else None
        for special in (unknown, tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id):
            if isinstance(special, int) and special < self.size:
                self.pieces[special] = None
        self.lengths: NDArray[np.int64] = np.array([len(piece or b"") for piece in self.pieces], np.int64)
        self.left_out = _left_out(tree["normalizer"])
        self._puts_space, self._backend = _lossless(tree)
        bos = tokenizer.bos_token_id
        eos = tokenizer.eos_token_id
        self.bos = bos if isinstance(bos, int) and tokenizer.encode("a")[:1] == [bos] else None
        self.eos = eos if isinstance(eos, int) else None

    @cached_property
    def fingerprint(self) -> str:
        """Identity of what decides tokens and their bytes."""
        special = [token_id for token_id, piece in enumerate(self.pieces) if piece is None]
        content = [self._backend.to_str(), special, self._puts_space, self.bos, self.eos]
        return json_digest(content)[:32]

    @cached_property
    def ids(self) -> dict[bytes, int]:
        """Token id of some bytes; of two with the same bytes the one that is not spelt `<0x..>`."""
        found: dict[bytes, int] = {}
        for token_id in sorted(self._plain, reverse=True):
            piece = self.pieces[token_id]
            if piece:
                found[piece] = token_id
        for token_id, piece in enumerate(self.pieces):
            if piece:
                found.setdefault(piece, token_id)
        return found

    @cached_property
    def _plain(self) -> list[int]:
        spelt = {f"<0x{byte:02X}>" for byte in range(256)}
        byte_ids = {self._backend.token_to_id(name) for name in spelt}
        return [token_id for token_id in range(self.size) if token_id not in byte_ids]

    def decode(self, tokens: Sequence[int] | NDArray[np.integer]) -> bytes:
        """The bytes of some tokens, one after another."""
        return b"".join(self.pieces[token] or b"" for token in tokens)

    def encode(self, contents: Sequence[bytes], *, begins: Sequence[bool] | None = None) -> list["TokenizedBytes"]:
        """Tokens of each content, and where they end in it.

        Bytes that do not make a whole character become tokens of single bytes. Those without a token belong to the
        token after them; at the very end they belong to none.

        Args:
            contents: UTF-8, or a part of some.
            begins: Which of them are the beginning of a text, before which the tokenizer puts a space if it is
                its custom; none if not given.
        """
        parts = [list(self._parts_of(content)) for content in contents]
        spaced = [
            self._puts_space and is_begun and bool(part) and _wants_space(part[0])
            for part, is_begun in zip(parts, begins or [False] * len(parts), strict=True)
        ]
        # All texts of all contents in one call: the tokenizer's threads share a batch, not a single text.
        texts = [
            " " * (space and i == 0) + part
            for content, space in zip(parts, spaced, strict=True)
            for i, part in enumerate(content)
            if isinstance(part, str)
        ]
        encodings = iter(self._backend.encode_batch(texts, add_special_tokens=False))
        return [self._joined(content, encodings, space) for content, space in zip(parts, spaced, strict=True)]

    def _parts_of(self, content: bytes) -> Iterator[str | bytes]:
        """Text, and bytes that would not be read as they are: no characters, or the mark for a space."""
        mark = b"" if self._spells_bytes else SPACE_MARK.encode()
        pieces = [content] if not mark else content.split(mark)
        for i, piece in enumerate(pieces):
            if i:
                yield mark
            yield from _whole_characters(piece)

    def _joined(
        self, parts: Sequence[str | bytes], encodings: Iterator[tokenizers.Encoding], spaced: bool
    ) -> "TokenizedBytes":
        tokens = [np.zeros(0, np.int64)]
        ends = [np.zeros(0, np.int64)]
        size = 0
        for i, part in enumerate(parts):
            if isinstance(part, str):
                space = spaced and i == 0
                ids, lengths = self._of_text(" " * space + part, next(encodings))
                if space:  # it was put there, so it is not among the bytes of the text
                    lengths[np.flatnonzero(lengths)[:1]] -= 1
            else:
                ids, lengths = self._of_bytes(part)
            tokens.append(ids)
            ends.append(size + np.cumsum(lengths))
            size += len(part.encode() if isinstance(part, str) else part)
        return TokenizedBytes(np.concatenate(tokens), np.concatenate(ends))

    def _of_text(self, text: str, encoding: tokenizers.Encoding) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        ids = np.array(encoding.ids, np.int64)
        sizes = self.lengths[ids]
        if self.decode(ids) == text.encode():
            return ids, sizes
        # A character that the vocabulary lacks: it is what lies between the ends of its neighbours.
        ends = np.array([0, *(len(text[:end].encode()) for _, end in encoding.offsets)])
        return ids, np.diff(np.maximum.accumulate(ends))

    def _of_bytes(self, content: bytes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        ids = [self.ids.get(bytes([byte]), self._backend.token_to_id(f"<0x{byte:02X}>")) for byte in content]
        known = np.array([token_id is not None for token_id in ids], bool)
        tokens = np.array([token_id or 0 for token_id in ids], np.int64)
        # A token's length reaches back to the token before it, over bytes that have none.
        return tokens[known], np.diff(np.flatnonzero(known) + 1, prepend=0)

    def _bytes_of(self, token: str) -> bytes | None:
        if self._spells_bytes:
            try:
                return bytes(_BYTE_OF[character] for character in token)
            except KeyError:
                return token.encode()
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            return bytes([int(token[3:5], 16)])
        return token.replace(SPACE_MARK, " ").encode()


@dataclass(frozen=True)
class TokenizedBytes:
    """Tokens of a text and where each ends in its bytes.

    Attributes:
        tokens: Token ids.
        ends: Bytes of the text up to the end of each. Bytes that no token stands for lie between two.
    """

    tokens: NDArray[np.int64]
    ends: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.tokens)


def _alphabet() -> dict[str, int]:
    """Byte of each character that stands for one in byte-level tokens: printable ones stand for themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTE_OF = _alphabet()


def _bytes_of_added(token: tokenizers.AddedToken) -> bytes | None:
    return None if token.special else str(token.content).replace(SPACE_MARK, " ").encode()


def _kinds(part: Any) -> set[str]:
    """Types of the parts of a normalizer, pre-tokenizer or decoder."""
    if not isinstance(part, dict):
        return set()
    nested = [inner for value in part.values() if isinstance(value, list) for inner in value]
    return {str(part.get("type"))}.union(*(_kinds(inner) for inner in nested))


def _lossless(tree: dict[str, Any]) -> tuple[bool, tokenizers.Tokenizer]:
    """Ask whether a tokenizer puts a space before a text; make one that neither does nor loses anything.

    Changes the tree, which was read for this; a copy would cost seconds for 262,144 tokens.
    """
    puts_space = "Prepend" in _kinds(tree["normalizer"])
    tree["normalizer"] = _kept(tree["normalizer"])
    for part in _nested(tree["pre_tokenizer"]):
        if part.get("type") == "Metaspace":
            puts_space |= part.get("prepend_scheme", "always") != "never"
            part["prepend_scheme"] = "never"
        if part.get("type") == "ByteLevel":
            puts_space |= bool(part.get("add_prefix_space"))
            part["add_prefix_space"] = False
    tree["truncation"] = tree["padding"] = None
    copied = tokenizers.Tokenizer.from_str(json.dumps(tree))
    copied.encode_special_tokens = True
    return puts_space, copied


def _kept(normalizer: Any) -> Any:
    kept = [part for part in _nested(normalizer) if part.get("type") in KEPT_NORMALIZERS]
    return {"type": "Sequence", "normalizers": kept} if kept else None


def _left_out(normalizer: Any) -> tuple[str, ...]:
    names = [str(part.get("type")) for part in _nested(normalizer)]
    return tuple(name for name in names if name not in (*KEPT_NORMALIZERS, "Prepend"))


def _nested(part: Any) -> list[dict[str, Any]]:
    """The parts themselves, without the sequences that hold them."""
    if not isinstance(part, dict):
        return []
    lists = [value for value in part.values() if isinstance(value, list)]
    if part.get("type") != "Sequence" or not lists:
        return [part]
    return [inner for item in lists[0] for inner in _nested(item)]


def _whole_characters(content: bytes) -> Iterator[str | bytes]:
    """The content as text, or as bytes where it is not text."""
    while content:
        try:
            yield content.decode()
            return
        except UnicodeDecodeError as error:
            if error.start:
                yield content[: error.start].decode()
            yield content[error.start : error.end]
            content = content[error.end :]


def _wants_space(part: str | bytes) -> bool:
    return isinstance(part, str) and not part[:1].isspace()

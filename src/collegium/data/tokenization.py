"""From documents to tokens, each with the number of UTF-8 bytes up to its end.

Bits per byte compares models with different tokenizers, so every byte must be counted once: a token
stands for what lies between the end of the token before it and its own end. Adding up offsets would
count twice a character that two byte-level tokens share, and not at all a blank that no token has.

A prompt and what follows it are tokenised each by itself, so no token lies across their border, and what follows
has the tokens that it has wherever it is scored after this prompt.

Ends are those of characters, as tokenizers report them. `boundaries` are exact to the byte wherever
the tokens spell the text, which is what two tokenizations of one text are joined by.
"""

import copy
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import tokenizers
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from collegium.alignment.token_bytes import TokenBytes
from collegium.base.digest import json_digest
from collegium.base.errors import DataError
from collegium.data.continuation import continuing
from collegium.data.documents import Document, cut_text


_BATCH_CHARACTERS = 2**19  # an encoding takes some 200 bytes a token until it is an array

PIECE_SIZE = 2**16
"""Characters tokenised at once; byte pair encoding of one long word is worse than linear."""


@dataclass(frozen=True)
class TokenizedDocument:
    """Tokens of one document.

    Attributes:
        tokens: Token ids.
        byte_ends: UTF-8 bytes of the document up to the end of the character that each token ends in.
        boundaries: UTF-8 bytes of the document before each token, and after the last one: one more
            than there are tokens; -1 where unknown.
        prompt_tokens: Tokens at the beginning that are given and not learnt, with BOS if there are any.
    """

    tokens: NDArray[np.int32]
    byte_ends: NDArray[np.int64]
    boundaries: NDArray[np.int64]
    prompt_tokens: int = 0

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, part: slice) -> "TokenizedDocument":
        start, stop, _ = part.indices(len(self))
        prompt_tokens = min(max(0, self.prompt_tokens - start), max(0, stop - start))
        boundaries = self.boundaries[start : stop + 1]
        return TokenizedDocument(self.tokens[part], self.byte_ends[part], boundaries, prompt_tokens)


class DocumentTokenizer:
    """A tokenizer for text as it comes: the text of special tokens in it stays text.

    Args:
        tokenizer: A fast tokenizer; it is copied and stays as it is.
        add_bos: Begin each document with BOS.
        add_eos: End each document with EOS.

    Raises:
        ValueError: if the tokenizer is not a fast one, or lacks BOS or EOS.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, add_bos: bool, add_eos: bool) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, tokenizers.Tokenizer):
            raise ValueError(
                f"{type(tokenizer).__name__} has no fast tokenizer, which gives the place of each "
                "token in the text: convert it to a tokenizer.json"
            )
        self._backend = copy.deepcopy(backend)
        self._backend.no_padding()
        self._backend.no_truncation()
        self._backend.encode_special_tokens = True
        self._tokenizer = tokenizer
        self._bos = _special_tokens(tokenizer, "bos", wanted=add_bos)
        self._eos = _special_tokens(tokenizer, "eos", wanted=add_eos)

    @property
    def bos(self) -> int | None:
        """Token that begins each document."""
        return int(self._bos[0]) if len(self._bos) else None

    @property
    def special_texts(self) -> list[str]:
        """Special tokens as they are spelt; in a text they stay text."""
        return [token.content for token in self._tokenizer.added_tokens_decoder.values() if token.special]

    @property
    def identity(self) -> str:
        """Hash of everything that decides the tokens of a text."""
        content = json.loads(self._backend.to_str())
        return json_digest([content, self._bos.tolist(), self._eos.tolist()])

    @cached_property
    def _pieces(self) -> TokenBytes | None:
        try:
            return TokenBytes(self._tokenizer)
        except DataError:  # its tokens do not keep all of the text
            return None

    def encode(self, texts: Sequence[str]) -> list[TokenizedDocument]:
        """Tokens of each text."""
        return self.encode_documents([Document(text) for text in texts])

    def encode_documents(self, documents: Sequence[Document]) -> list[TokenizedDocument]:
        """Tokens of each document, cut at the end of its prompt."""
        prompts = [_pieces(document.text[: document.prompt_characters]) for document in documents]
        others = [_pieces(document.text[document.prompt_characters :]) or [_Piece("")] for document in documents]
        both = list(zip(prompts, others, strict=True))
        encoded = self._encode_pieces([piece for parts in both for part in parts for piece in part])
        return [
            self._join([next(encoded) for _ in range(len(prompt) + len(other))], len(prompt))
            for prompt, other in both
        ]

    def _encode_pieces(self, pieces: Sequence["_Piece"]) -> Iterator[tuple[TokenizedDocument, int]]:
        """Tokens and UTF-8 bytes of each piece."""
        for batch in _batched(pieces):
            firsts = iter(_encoded([piece.text for piece in batch if not piece.continues], self._backend))
            for piece in batch:
                encoding = self._encode_rest(piece.text) if piece.continues else next(firsts)
                yield self._with_bytes(piece.text, encoding), len(piece.text.encode())

    def _encode_rest(self, text: str) -> tokenizers.Encoding:
        """Tokens of a piece that goes on after another one of the same text."""
        return _encoded([text], self._between_words if text.startswith(" ") else self._within_words)[0]

    @cached_property
    def _between_words(self) -> tokenizers.Tokenizer:
        return continuing(self._backend, " b")

    @cached_property
    def _within_words(self) -> tokenizers.Tokenizer:
        return continuing(self._backend, "b")

    def _with_bytes(self, text: str, encoding: tokenizers.Encoding) -> TokenizedDocument:
        tokens = np.array(encoding.ids, np.int32)
        ends = _bytes_before(text, np.fromiter((end for _, end in encoding.offsets), np.int64, len(encoding)))
        return TokenizedDocument(tokens, ends, np.concatenate([[0], self._spelt_ends(text, tokens, ends)]))

    def _spelt_ends(self, text: str, tokens: NDArray[np.int32], ends: NDArray[np.int64]) -> NDArray[np.int64]:
        """Ends of the bytes of each token if these are the text, but for a space put before it; else `ends`."""
        if self._pieces is None:
            return ends
        spelt = np.cumsum(self._pieces.lengths[tokens])
        if np.array_equal(spelt, ends):
            return ends
        content = b"".join([self._pieces.pieces[token] or b"" for token in tokens.tolist()])
        if content not in (text.encode(), b" " + text.encode()):
            return ends
        return np.maximum(spelt - (len(content) - len(text.encode())), 0)

    def _join(self, pieces: Sequence[tuple[TokenizedDocument, int]], num_prompt_pieces: int) -> TokenizedDocument:
        sizes = np.cumsum([0, *(num_bytes for _, num_bytes in pieces)])
        texts = [text for text, _ in pieces]
        ends = [text.byte_ends + size for text, size in zip(texts, sizes, strict=False)]
        boundaries = [text.boundaries[1:] + size for text, size in zip(texts, sizes, strict=False)]
        before = np.zeros(len(self._bos), np.int64)
        after = np.full(len(self._eos), sizes[-1])
        joined = [np.concatenate([before, *parts]) for parts in (ends, boundaries)]
        prompt_tokens = sum(len(text) for text in texts[:num_prompt_pieces])
        prompt_tokens += len(self._bos) if num_prompt_pieces else 0
        for places in joined:
            places[-1:] = sizes[-1]  # blanks that the tokenizer drops at the end belong to its last token
            if prompt_tokens:
                places[prompt_tokens - 1] = sizes[num_prompt_pieces]
        return TokenizedDocument(
            np.concatenate([self._bos, *(text.tokens for text in texts), self._eos]),
            np.concatenate([joined[0], after]),
            np.concatenate([[0], joined[1], after]),
            prompt_tokens,
        )


class _Piece(NamedTuple):
    """A part of a text that is tokenised at once, and whether another one comes before it."""

    text: str
    continues: bool = False


def _pieces(text: str) -> list[_Piece]:
    return [_Piece(piece, number > 0) for number, piece in enumerate(cut_text(text, PIECE_SIZE))] if text else []


def _batched(pieces: Sequence[_Piece]) -> Iterator[list[_Piece]]:
    batch: list[_Piece] = []
    num_characters = 0
    for piece in pieces:
        batch.append(piece)
        num_characters += len(piece.text)
        if num_characters >= _BATCH_CHARACTERS:
            yield batch
            batch = []
            num_characters = 0
    yield batch


def _encoded(texts: list[str], backend: tokenizers.Tokenizer) -> list[tokenizers.Encoding]:
    try:
        return backend.encode_batch(texts, add_special_tokens=False)
    except TypeError as error:  # what tokenizers says of text that is not Unicode
        raise DataError("text holds lone surrogates, which no tokenizer reads") from error


def _special_tokens(tokenizer: PreTrainedTokenizerBase, which: str, *, wanted: bool) -> NDArray[np.int32]:
    token: int | None = getattr(tokenizer, f"{which}_token_id")
    if wanted and token is None:
        raise ValueError(
            f"add_{which} is on, but {type(tokenizer).__name__} has no {which.upper()} token: "
            f"turn add_{which} off, or give the tokenizer a {which}_token"
        )
    return np.array([token] if wanted else [], np.int32)


def _bytes_before(text: str, indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """UTF-8 bytes of `text` before each character index."""
    if text.isascii():
        return indices
    characters = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    sizes = 1 + (characters > 0x7F) + (characters > 0x7FF) + (characters > 0xFFFF)
    return np.concatenate([[0], np.cumsum(sizes)])[indices]

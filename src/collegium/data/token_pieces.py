"""The bytes that each token of a vocabulary stands for."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import tokenizers
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TokenPieces:
    """A vocabulary as bytes.

    Attributes:
        pieces: Bytes of each token; None for those that stand for no text, such as BOS.
        lengths: Their number; 0 for None.
    """

    pieces: list[bytes | None]
    lengths: NDArray[np.int64]


def token_pieces(tokenizer: PreTrainedTokenizerBase) -> TokenPieces | None:
    """The bytes of a fast tokenizer's tokens, if they can be told.

    Tokens of byte-level tokenizers spell each byte as one character (GPT-2); of others nothing is known.
    """
    backend: tokenizers.Tokenizer = tokenizer.backend_tokenizer
    if '"ByteLevel"' not in json.dumps(json.loads(backend.to_str())["pre_tokenizer"]):
        return None
    added = {int(id_): token for id_, token in backend.get_added_tokens_decoder().items()}
    vocabulary = backend.get_vocab()
    pieces: list[bytes | None] = [None] * (max(vocabulary.values(), default=-1) + 1)
    for token, token_id in vocabulary.items():
        pieces[token_id] = _piece(token, added.get(token_id))
    return TokenPieces(pieces, np.array([len(piece or b"") for piece in pieces], np.int64))


def _piece(token: str, added: tokenizers.AddedToken | None) -> bytes | None:
    if added is not None:
        return None if added.special else str(added.content).encode()
    return bytes(_BYTES.get(character, 0) for character in token)


def _alphabet() -> Mapping[str, int]:
    """Printable bytes of Latin-1 are themselves, the others follow from U+0100 on."""
    itself = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)) - set(itself))
    return {chr(byte): byte for byte in itself} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _alphabet()

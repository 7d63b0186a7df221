"""The bytes that each token of a vocabulary stands for."""

import json
from collections.abc import Mapping

import tokenizers
from transformers import PreTrainedTokenizerBase


def token_pieces(tokenizer: PreTrainedTokenizerBase) -> list[bytes] | None:
    """Bytes of each token id, none for special tokens; None if its tokens do not say their bytes.

    Tokens of byte-level tokenizers spell each byte as one character (GPT-2); of others nothing is known.
    """
    backend: tokenizers.Tokenizer = tokenizer.backend_tokenizer
    if '"ByteLevel"' not in json.dumps(json.loads(backend.to_str())["pre_tokenizer"]):
        return None
    added = {int(id_): token for id_, token in backend.get_added_tokens_decoder().items()}
    vocabulary = backend.get_vocab()
    pieces = [b""] * (max(vocabulary.values(), default=-1) + 1)
    for token, token_id in vocabulary.items():
        pieces[token_id] = _piece(token, added.get(token_id))
    return pieces


def _piece(token: str, added: tokenizers.AddedToken | None) -> bytes:
    if added is not None:
        return b"" if added.special else str(added.content).encode()
    return bytes(_BYTES.get(character, 0) for character in token)


def _alphabet() -> Mapping[str, int]:
    """Printable bytes of Latin-1 are themselves, the others follow from U+0100 on."""
    itself = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)) - set(itself))
    return {chr(byte): byte for byte in itself} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _alphabet()

"""The bytes of byte-level tokens, found by asking the pre-tokenizer how it spells them."""

from collections.abc import Sequence

from tokenizers import pre_tokenizers
from transformers import PreTrainedTokenizerFast


def _spelling() -> dict[str, int]:
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    codes = [*range(0x800), *range(0x800, 0xD800, 0x400), 0xE000, 0xF000, *range(2**16, 0x110000, 2**16)]
    texts = [chr(code) for code in codes]
    spelt = {text: "".join(piece for piece, _ in spell.pre_tokenize_str(text)) for text in texts}
    return {mark: byte for text, marks in spelt.items() for mark, byte in zip(marks, text.encode(), strict=True)}


BYTE_OF = _spelling()


def bytes_of(tokenizer: PreTrainedTokenizerFast, tokens: Sequence[int]) -> bytes:
    """Bytes of some tokens, none for special ones."""
    texts = tokenizer.convert_ids_to_tokens([t for t in tokens if t not in tokenizer.all_special_ids])
    return bytes(BYTE_OF[mark] for text in texts for mark in text)

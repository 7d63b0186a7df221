"""Finds the tokens that begin a word, from a tokenizer's vocabulary: spans for losses that look at phrases.

No tagger or parser is needed, and no text: whether a token begins a word is a property of the token. Scripts
without spaces have words as long as what stands between two marks of punctuation.
"""

import unicodedata

import torch
from jaxtyping import Bool
from torch import Tensor
from transformers import PreTrainedTokenizerBase


SPACE = "▁"
"""SentencePiece's space, which decoding a single token drops; byte-level tokens decode to a space."""
CONTINUES = frozenset("LMN")
"""First letters of the Unicode categories inside words: letters, combining marks, numbers."""


def word_starts(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> Bool[Tensor, " V"]:
    """Mark tokens that begin with a space, a line break or punctuation, and special tokens.

    Punctuation begins a word of its own, to which a token without a space belongs: `(x` is one, ` x)` are two. A
    part of a character of several bytes continues what came before. Ids that the tokenizer does not
    know begin none.

    Args:
        tokenizer: The tokenizer of student and teachers.
        vocab_size: Number of logits; may be larger than the tokenizer's vocabulary.
    """
    starts = torch.zeros(vocab_size, dtype=torch.bool)
    special = set(tokenizer.all_special_ids)
    for token, index in tokenizer.get_vocab().items():
        if index < vocab_size:
            starts[index] = (
                index in special or token.startswith(SPACE) or _is_apart(str(tokenizer.decode([index])))
            )
    return starts


def _is_apart(text: str) -> bool:
    """True if text cannot continue a word; part of a character decodes to the replacement character."""
    if not text or text[0] == "\N{REPLACEMENT CHARACTER}":
        return False
    return unicodedata.category(text[0])[0] not in CONTINUES

"""Rows that are tokens already, padded or masked, as `transformers` and TRL make them.

What a mask leaves out is left out here too, or the row is refused: padding is dropped, and a beginning that is not
learnt is a prompt. Masks of other shapes, such as of a conversation of which some turns are learnt, are refused.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from collegium.alignment.tokenizer_match import vocab_size_of
from collegium.base.errors import DataError
from collegium.data.tokenization import TokenizedDocument
from collegium.signals.contracts import IGNORE_INDEX


_MASKS = ("completion_mask", "assistant_masks", "loss_mask")
"""Masks of TRL, transformers and others with 1 where a token is learnt."""

_LISTS = (list, tuple, np.ndarray, Tensor)


class GivenTokens:
    """Documents of rows with `input_ids`, for one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._vocab_size = vocab_size_of(tokenizer)
        ends = {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id}
        self._padding = None if tokenizer.pad_token_id in ends else tokenizer.pad_token_id

    def document(self, row: Mapping[str, Any], place: str) -> TokenizedDocument:
        """The tokens of a row without padding.

        Args:
            row: A row.
            place: Its name, for errors.

        Raises:
            DataError: a token is not one of the tokenizer's, or a mask leaves out more than padding and a prompt.
        """
        tokens = np.asarray(row["input_ids"], np.int64)
        kept = _mask(row, "attention_mask", tokens, place)
        learnt = _learnt(row, tokens, place) & kept
        if self._padding is not None:
            kept &= ~_at_the_ends(tokens == self._padding)
        tokens = tokens[kept]
        learnt = learnt[kept]
        self.require_known(tokens, place)
        return _document(tokens.astype(np.int32), learnt, place)

    def require_known(self, tokens: NDArray[np.int64], place: str) -> None:
        """See that tokens are of the vocabulary.

        Raises:
            DataError: one is not.
        """
        wrong = tokens[(tokens < 0) | (tokens >= self._vocab_size)]
        if len(wrong):
            raise DataError(
                f"{place}: token {wrong[0]} of 'input_ids' is not one of the tokenizer's {self._vocab_size:,}: "
                "make the tokens with this tokenizer, and mark what is not learnt in 'labels' only"
            )


def masks_tokens(row: Mapping[str, Any]) -> bool:
    """True if a row says which of its tokens are learnt."""
    return any(row.get(name) is not None for name in _MASKS) or isinstance(row.get("labels"), _LISTS)


def _document(tokens: NDArray[np.int32], learnt: NDArray[np.bool_], place: str) -> TokenizedDocument:
    places = np.flatnonzero(learnt)
    start, end = (places[0], places[-1] + 1) if len(places) else (len(tokens), len(tokens))
    if not learnt[start:end].all():
        raise DataError(
            f"{place}: the mask leaves out tokens between others that are learnt; only a prompt at the beginning "
            "and padding can be left out: make a row of each answer, with all before it as its prompt"
        )
    # Nothing is learnt of what follows the last one that is, and nothing reads it.
    tokens = tokens[:end]
    unknown = np.full(len(tokens) + 1, -1, np.int64)
    return TokenizedDocument(tokens, np.zeros(len(tokens), np.int64), unknown, int(start))


def _learnt(row: Mapping[str, Any], tokens: NDArray[np.int64], place: str) -> NDArray[np.bool_]:
    learnt = np.ones(len(tokens), np.bool_)
    for name in _MASKS:
        learnt &= _mask(row, name, tokens, place)
    labels = row.get("labels")
    if not isinstance(labels, _LISTS):  # a class, as of a task, is no mask
        return learnt
    if len(labels) != len(tokens):
        raise DataError(
            f"{place}: there are {len(labels)} 'labels' for {len(tokens)} 'input_ids'; give one for each"
        )
    given = np.asarray(labels, np.int64)
    learnt &= given != IGNORE_INDEX
    if (given != tokens)[learnt].any():
        raise DataError(
            f"{place}: 'labels' are other tokens than 'input_ids'; give the same ones (they are shifted here), "
            f"with {IGNORE_INDEX} where nothing is learnt"
        )
    return learnt


def _mask(row: Mapping[str, Any], name: str, tokens: NDArray[np.int64], place: str) -> NDArray[np.bool_]:
    mask = row.get(name)
    if mask is None:
        return np.ones(len(tokens), np.bool_)
    if len(mask) != len(tokens):
        raise DataError(
            f"{place}: {name!r} has {len(mask)} values for {len(tokens)} 'input_ids'; give one for each"
        )
    kept: NDArray[np.bool_] = np.asarray(mask) != 0
    return kept


def _at_the_ends(is_padding: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The padding before the first other token and after the last one."""
    others = np.flatnonzero(~is_padding)
    inside: NDArray[np.bool_] = np.zeros(len(is_padding), np.bool_)
    if len(others):
        inside[others[0] : others[-1] + 1] = True
    inside[:] = is_padding & ~inside
    return inside

"""Finds the row of a cache for a block of text: the one with the same tokens, cut the same way.

A key is a hash of the content, so that order, batch size, epoch and number of processes do not matter,
and a cache of other text is noticed at the first block.
"""

import numpy as np
import xxhash
from numpy.typing import NDArray


def key_of(input_ids: NDArray[np.integer], position_ids: NDArray[np.integer]) -> int:
    """Key of a block, given its tokens and the position of each in its segment, without padding."""
    state = xxhash.xxh3_64(np.ascontiguousarray(input_ids, np.int32).data)
    state.update(np.ascontiguousarray(position_ids, np.int32).data)
    return state.intdigest()


def keys_of(
    input_ids: NDArray[np.integer], attention_mask: NDArray[np.bool_], position_ids: NDArray[np.integer]
) -> list[int]:
    """Keys of the blocks of a batch, [B S] each."""
    rows = zip(input_ids, attention_mask, position_ids, strict=True)
    return [key_of(tokens[mask], positions[mask]) for tokens, mask, positions in rows]

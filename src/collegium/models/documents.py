"""Documents of packed blocks, read one by one: for models that would let them see each other in a block.

Each document gets a row of its own, padded on the right, where a causal model sees nothing of it. So recurrent
models, models that count positions by themselves, and FlashAttention, which keeps documents apart in batches of
one row only, say of each document what they say of it alone. Documents of like length share a batch, of at most as
many tokens as the blocks have; the padding is what it costs.
"""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor


def document_starts(position_ids: Int[Tensor, "B S"]) -> Tensor:
    """Mark the tokens [B S] with which a document begins: positions do not go on from the token before."""
    starts = torch.ones_like(position_ids, dtype=torch.bool)
    starts[:, 1:] = position_ids[:, 1:] != position_ids[:, :-1] + 1
    return starts


def states_by_document(
    read: Callable[[Tensor], Tensor], input_ids: Int[Tensor, "B S"], position_ids: Int[Tensor, "B S"]
) -> Float[Tensor, "B S D"]:
    """Hidden states of packed blocks, with each document in a row of its own.

    Args:
        read: Hidden states of rows of tokens that all begin at position 0.
        input_ids: Tokens of the blocks.
        position_ids: Their places in documents.
    """
    tokens = input_ids.flatten()
    firsts = document_starts(position_ids).flatten().nonzero().squeeze(-1)
    lengths = torch.cat([firsts[1:], firsts.new_tensor([len(tokens)])]) - firsts
    order = lengths.argsort(descending=True, stable=True)
    states = []
    places = []
    for group in _groups(lengths[order].tolist(), len(tokens)):
        own = lengths[order[group]]  # the longest is the first
        steps = torch.arange(int(own[0]), device=tokens.device)
        index = firsts[order[group]][:, None] + torch.minimum(steps, own[:, None] - 1)  # padded by its last token
        is_text = steps < own[:, None]
        states.append(read(tokens[index])[is_text])
        places.append(index[is_text])
    flat = torch.cat(states)[torch.cat(places).argsort()]
    return flat.view(*input_ids.shape, -1)


def _groups(lengths: list[int], num_tokens: int) -> Iterator[slice]:
    """Cut decreasing lengths into rows that fit into as many tokens with their padding."""
    start = 0
    while start < len(lengths):
        stop = min(len(lengths), start + max(1, num_tokens // lengths[start]))
        yield slice(start, stop)
        start = stop

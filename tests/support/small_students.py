"""Small students with a byte-level tokenizer, and a few steps of training for them."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerFast

from tests.support.small_tokenizers import LINES


NUM_TOKENS = 420
LINES_TEXT = LINES[:5]


def small_config(**changes) -> dict:
    values = {
        "vocab_size": NUM_TOKENS + 8,  # rows that no token uses, as after padding to a round number
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    return {**values, **changes}


def text_tokens(tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    return [tokenizer.encode(line) for line in LINES[:5]]


def learn(model: torch.nn.Module, texts: Sequence[Sequence[int]], steps: int = 60) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(steps):
        tokens = torch.tensor([list(texts[step % len(texts)])])
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

"""A student that has learnt a few lines, so that its first choices are clear ones, as a trained student's are."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from small_tokenizers import LINES, byte_level
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from collegium.export.student_folder import Student, load_student


NUM_TOKENS = 420


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


@pytest.fixture(scope="session")
def student(tmp_path_factory) -> Student:
    """A Llama with tied embeddings and a byte-level tokenizer, in a folder."""
    folder: Path = tmp_path_factory.mktemp("run") / "student"
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**small_config())).train()
    learn(model, text_tokens(byte_level(NUM_TOKENS)))
    model.save_pretrained(folder)
    byte_level(NUM_TOKENS).save_pretrained(folder)
    return load_student(folder, "small")


@pytest.fixture(scope="session")
def segments() -> list[list[int]]:
    return text_tokens(byte_level(NUM_TOKENS))

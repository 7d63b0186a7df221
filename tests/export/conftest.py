"""A student that has learnt a few lines, so that its first choices are clear ones, as a trained student's are."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from collegium.export.student_folder import Student, load_student
from tests.support.small_students import NUM_TOKENS, learn, small_config, text_tokens
from tests.support.small_tokenizers import byte_level


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

"""Fixtures made of pico models; nothing is downloaded.

Hypothesis draws 50 fixed examples a test; `COLLEGIUM_HYPOTHESIS=nightly` draws 2000.
"""

import os
import signal


os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # under nohup; what tests start is to hear it all the same
    signal.signal(signal.SIGHUP, lambda *_: None)

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from transformers import PreTrainedTokenizerFast

from collegium.data.blocks import PackedBlocks, pack_documents
from tests.support.pico import TEXTS, byte_tokenizer, pico_llama


settings.register_profile("ci", max_examples=50, deadline=None, derandomize=True)
settings.register_profile("nightly", max_examples=2000, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("COLLEGIUM_HYPOTHESIS", "ci"))


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


@pytest.fixture(scope="session")
def blocks(tokenizer: PreTrainedTokenizerFast) -> PackedBlocks:
    """Packed blocks of 32 tokens, the last one shorter."""
    return pack_documents([{"text": text} for text in TEXTS], tokenizer, block_size=32)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Saves a pico model with its tokenizer, as a Hugging Face folder."""

    def save(name: str, seed: int = 0, *, layers: int = 2, width: int = 32) -> Path:
        folder = tmp_path_factory.mktemp("models") / name
        pico_llama(seed, layers=layers, width=width).save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
        return folder

    return save

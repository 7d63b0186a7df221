"""Models for measuring whole steps: random weights of real sizes, and a tokenizer that needs no download."""

from collections.abc import Mapping
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast


VOCAB_SIZE = 49_152

TEACHER = {
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
}
"""SmolLM2-135M: 134.5 million parameters."""

STUDENT = {
    "hidden_size": 384,
    "num_hidden_layers": 8,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 1024,
}
"""31.5 million parameters, 18.9 of them in the embedding that is also the head."""


def build_model(sizes: Mapping[str, Any], *, seed: int, vocab_size: int = VOCAB_SIZE) -> PreTrainedModel:
    """A Llama with tied embeddings and seeded random weights, in float32."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        **sizes,
        vocab_size=vocab_size,
        tie_word_embeddings=True,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
    )
    return LlamaForCausalLM(config)


def build_tokenizer(vocab_size: int = VOCAB_SIZE) -> PreTrainedTokenizerFast:
    """A word-level tokenizer with a vocabulary of the right size."""
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(vocab_size)}, unk_token="w0"))
    return PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="w0", bos_token="w0", eos_token="w0", pad_token="w1"
    )


def num_parameters(model: PreTrainedModel) -> int:
    """Parameters, a tied one once."""
    return sum(parameter.numel() for parameter in model.parameters())

"""Pico models and a byte tokenizer, made in code: nothing is downloaded."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


VOCAB_SIZE = 260


def pico_llama(
    seed: int = 0,
    *,
    width: int = 32,
    layers: int = 2,
    vocab_size: int = VOCAB_SIZE,
    dropout: float = 0.0,
    dtype: torch.dtype = torch.float32,
    tied: bool = True,
) -> LlamaForCausalLM:
    """A Llama of some ten thousand parameters with random weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        attention_dropout=dropout,
        initializer_range=0.2,
        bos_token_id=256,
        eos_token_id=257,
        pad_token_id=258,
    )
    return LlamaForCausalLM(config).to(dtype).eval()


def byte_tokenizer(*, extra: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """One token a byte, and four special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {character: index for index, character in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    fast.add_special_tokens({"additional_special_tokens": ["<x>", *extra]})
    return fast


TEXTS = [
    "the cat sat on the mat and looked at the dog",
    "a much longer document, which goes on for a while and says very little of interest to anyone at all",
    "def f(x): return x + 1",
    "numbers: 1 2 3 4 5 6 7 8 9 10",
    "short one",
    "the dog looked back at the cat, then at the mat, and went to sleep",
] * 4

"""Special tokens without a row in the embedding do not count; others above it refuse the model."""

import pytest
import torch

from collegium.alignment.token_bytes import TokenBytes
from collegium.alignment.tokenizer_match import (
    tokenizer_difference,
    tokenizer_fingerprint,
    vocab_size_of,
    vocabulary_of,
)
from collegium.base.errors import DataError
from collegium.data.blocks import pack_documents
from collegium.data.collate import padding_id
from collegium.models.pretrained import load_model, load_tokenizer
from collegium.models.probe import check_model
from tests.support.pico import byte_tokenizer, pico_llama


def saved(folder, tokenizer, **sizes):
    pico_llama(**sizes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_tokenizer(str(folder)), load_model(str(folder), dtype=torch.float32)


def test_a_special_token_without_a_row_does_not_count(tmp_path):
    tokenizer, model = saved(tmp_path, byte_tokenizer(extra=("<image>",)))
    assert max(tokenizer.get_vocab().values()) == 260
    assert vocab_size_of(tokenizer) == 260 and "<image>" not in vocabulary_of(tokenizer)
    check_model(model, vocab_size_of(tokenizer), name="student")
    assert TokenBytes(tokenizer).size == 260


def test_its_text_is_text(tmp_path):
    tokenizer, _ = saved(tmp_path, byte_tokenizer(extra=("<image>",)))
    blocks = pack_documents([{"text": "see <image> here"}] * 4, tokenizer, block_size=16)
    assert max(int(max(blocks[i]["input_ids"])) for i in range(len(blocks))) < 260


def test_a_padding_token_without_a_row_is_not_used(tmp_path):
    base = byte_tokenizer()
    base.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer, _ = saved(tmp_path, base)
    assert tokenizer.pad_token_id == 260
    assert vocab_size_of(tokenizer) == 260 and padding_id(tokenizer) == tokenizer.eos_token_id


def test_models_with_and_without_the_row_have_one_tokenizer(tmp_path):
    tokenizers = [
        saved(tmp_path / str(size), byte_tokenizer(extra=("<image>",)), vocab_size=size)[0] for size in (260, 264)
    ]
    assert [vocab_size_of(tokenizer) for tokenizer in tokenizers] == [260, 261]
    assert tokenizer_difference(*tokenizers) is None and tokenizer_difference(*tokenizers[::-1]) is None
    assert tokenizer_fingerprint(tokenizers[0]) == tokenizer_fingerprint(byte_tokenizer(extra=("<image>",)))


def test_real_tokens_above_the_rows_are_refused(tmp_path):
    base = byte_tokenizer()
    base.add_tokens(["cat"])
    tokenizer, model = saved(tmp_path, base)
    assert vocab_size_of(tokenizer) == 261
    with pytest.raises(DataError, match="260 token embeddings, but the tokenizer has 261 tokens"):
        check_model(model, vocab_size_of(tokenizer), name="student")


def test_a_token_that_ends_documents_counts(tmp_path):
    base = byte_tokenizer()
    base.add_special_tokens({"eos_token": "<|end|>"})
    tokenizer, _ = saved(tmp_path, base)
    assert vocab_size_of(tokenizer) == 261

"""Data sets of the Python interface: masks beside text, and what is no data set of rows."""

import itertools

import datasets
import pytest
import torch

from collegium.base.errors import DataError
from collegium.data.blocks import pack_documents
from collegium.data.collate import BlockCollator
from tests.support.pico import byte_tokenizer


IDS = list(range(10, 20))


def learnt(row):
    """Tokens of a row that are predicted."""
    blocks = pack_documents([row], byte_tokenizer(), block_size=32)
    labels = BlockCollator(pad_token_id=258)([blocks[i] for i in range(len(blocks))])["labels"]
    return labels[labels != -100].tolist()


@pytest.mark.parametrize(
    "columns",
    [
        {"loss_mask": [0] * 4 + [1] * 6},
        {"labels": torch.tensor([-100] * 4 + IDS[4:])},
        {"text": "not read, as the mask is of the tokens", "labels": [-100] * 4 + IDS[4:]},
    ],
)
def test_masks_hold_whatever_they_are_made_of(columns):
    assert learnt({"input_ids": IDS, **columns}) == IDS[4:]


def test_tokens_of_packed_rows_are_of_the_vocabulary():
    with pytest.raises(DataError, match="row 0: token 999 of 'input_ids' is not one of the tokenizer's 260"):
        learnt({"segment_lengths": [2], "input_ids": [1, 999]})


def endless():
    for i in itertools.count():
        assert i < 10, "a stream is read"
        yield {"text": "abc"}


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        (datasets.IterableDataset.from_generator(endless), "it is a stream .IterableDataset."),
        (endless(), "it is a stream .generator."),
        (
            datasets.DatasetDict({"train": datasets.Dataset.from_list([{"text": "a"}])}),
            "it holds the splits train",
        ),
        ({"text": ["a", "b"]}, "it is a dict with the keys text"),
        (["a", "b"], "row 0 is a str: rows are dicts"),
        ("some text", "it is text: give rows"),
    ],
)
def test_what_is_no_data_set_of_rows_is_named_and_no_stream_is_read(dataset, words):
    with pytest.raises(DataError, match=words):
        pack_documents(dataset, byte_tokenizer(), block_size=8)

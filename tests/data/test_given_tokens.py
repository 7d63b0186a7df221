"""Rows that are tokens already: padding and masks are kept to, or the row is refused."""

import pytest

from collegium.base.errors import DataError
from collegium.data.blocks import pack_documents
from collegium.data.collate import BlockCollator
from tests.support.pico import byte_tokenizer


def packed(*rows):
    return pack_documents(list(rows), byte_tokenizer(), block_size=16)


def segments(blocks):
    """Tokens of each document and the labels that are learnt of it."""
    found = {}
    for index in range(len(blocks)):
        row = blocks[index]
        labels, start = BlockCollator(pad_token_id=0)([row])["labels"][0].tolist(), 0
        for length, document in zip(row["segment_lengths"], row["segment_documents"], strict=True):
            found[document] = (row["input_ids"][start : start + length], labels[start : start + length])
            start += length
    return found


IDS = [11, 12, 13, 14, 15]
PAD = byte_tokenizer().pad_token_id
PADDED = [
    {"input_ids": [*IDS, 0, 0], "attention_mask": [1] * 5 + [0] * 2},
    {"input_ids": [0, 0, *IDS], "attention_mask": [0] * 2 + [1] * 5},
    {"input_ids": [*IDS, 9, 9], "labels": [*IDS, -100, -100]},
]


@pytest.mark.parametrize("row", PADDED)
def test_padding_is_not_learnt(row):
    tokens, labels = segments(packed(row))[0]
    assert tokens == IDS and labels == [-100, *IDS[1:]]


@pytest.mark.parametrize(
    "mask",
    [
        {"labels": [-100, -100, *IDS[2:]]},
        {"completion_mask": [0, 0, 1, 1, 1]},
        {"assistant_masks": [0, 0, 1, 1, 1]},
        {"labels": [-100, -100, *IDS[2:], -100], "input_ids": [*IDS, 0], "attention_mask": [1] * 5 + [0]},
    ],
)
def test_a_masked_beginning_is_a_prompt(mask):
    tokens, labels = segments(packed({"input_ids": IDS, **mask}))[0]
    assert tokens == IDS and labels == [-100, -100, *IDS[2:]]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"input_ids": IDS, "completion_mask": [1, 0, 1, 1, 1]}, "row 1: the mask leaves out tokens between"),
        ({"input_ids": IDS, "labels": [*IDS[1:], -100]}, "row 1: 'labels' are other tokens than 'input_ids'"),
        ({"input_ids": IDS, "labels": IDS[:4]}, "row 1: there are 4 'labels' for 5 'input_ids'"),
        ({"input_ids": IDS, "attention_mask": [1]}, "row 1: 'attention_mask' has 1 values for 5 'input_ids'"),
        ({"input_ids": [*IDS, -100]}, "row 1: token -100 of 'input_ids' is not one of the tokenizer's"),
        ({"input_ids": [*IDS, 10**6]}, "row 1: token 1000000 of 'input_ids' is not one of the tokenizer's"),
        ({"messages": [{"role": "user", "content": "a"}]}, "row 1: there is no key 'text'.*'messages' are chats"),
        ({"prompt": "a", "completion": "b"}, "set prompt_column='prompt' and text_column='completion'"),
        ({"text": None}, "row 1: 'text' is null, not text"),
        ({"text": 7}, "row 1: 'text' is the number 7, not text"),
        ({"text": "a\0b"}, "row 1: there is a zero byte"),
    ],
)
def test_other_rows_are_refused(row, message):
    with pytest.raises(DataError, match=message):
        packed({"input_ids": IDS}, row)


def test_a_class_is_no_mask_and_a_null_prompt_is_none():
    blocks = pack_documents(
        [{"text": "some text", "label": 1, "labels": 0, "p": None}],
        byte_tokenizer(),
        block_size=16,
        prompt_column="p",
    )
    assert segments(blocks)[0][1][1:] == segments(blocks)[0][0][1:]


def test_an_empty_data_set_is_said():
    with pytest.raises(DataError, match="nothing to predict in 0 documents: the data set is empty"):
        packed()

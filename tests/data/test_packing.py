"""Packing: nothing lost, nothing reordered, nothing above the block size."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collegium.base.errors import DataError
from collegium.data.blocks import pack_documents
from collegium.data.packing import Packer, blocks_to_table
from collegium.data.tokenization import DocumentTokenizer, TokenizedDocument
from tests.support.byte_level import bytes_of


def document_of(length: int, first: int) -> TokenizedDocument:
    """Tokens `first`, `first + 1`, ..., of 1, 2, 3, 1, 2, 3, ... bytes."""
    tokens = np.arange(first, first + length, dtype=np.int32)
    ends = np.cumsum(tokens.astype(np.int64) % 3 + 1)
    return TokenizedDocument(tokens, ends, np.concatenate([[0], ends]))


@settings(deadline=None)
@given(st.lists(st.integers(2, 40), max_size=30), st.integers(3, 17))
def test_all_tokens_in_order_in_full_blocks(lengths, block_size):
    packer = Packer(block_size=block_size, domain="d")
    documents = [document_of(n, 100 * i) for i, n in enumerate(lengths)]
    blocks, last_of_document = [], {}
    for number, document in enumerate(documents):
        for block, num_packed in packer.add(number, document):
            blocks.append(block)
            last_of_document[len(blocks) - 1] = (number, num_packed)
    blocks += packer.flush()
    rows = blocks_to_table(blocks).to_pylist()

    segments = [
        (number, segment.tokens.tolist(), segment.num_bytes)
        for block in blocks
        for segment in block.segments
        for number in [segment.document]
    ]
    found = [token for _, tokens, _ in segments for token in tokens]
    expected = [t for document in documents for t in document.tokens.tolist()]
    assert found == expected[: len(found)]
    assert len(expected) - len(found) <= 1  # one token alone predicts nothing and is left out
    assert all(len(row["input_ids"]) == block_size for row in rows[:-1])
    for row in rows:
        assert sum(row["segment_lengths"]) == len(row["input_ids"]) <= block_size
        assert max(row["segment_lengths"]) > 1
        assert min(row["segment_lengths"]) > 0
        assert row["domain"] == "d"
        parts = zip(row["segment_lengths"], row["segment_documents"], strict=True)
        start = 0
        for length, number in parts:
            assert all(t // 100 == number for t in row["input_ids"][start : start + length])
            start += length
    for _, tokens, num_bytes in segments:
        assert num_bytes == sum(token % 3 + 1 for token in tokens[1:])
    for row in rows:
        first = 0
        columns = ("segment_lengths", "segment_documents", "segment_starts", "segment_ends")
        for length, number, start, end in zip(*(row[name] for name in columns), strict=True):
            before = range(100 * number, row["input_ids"][first])
            assert start == sum(token % 3 + 1 for token in before)
            assert end - start == sum(t % 3 + 1 for t in row["input_ids"][first : first + length])
            first += length
    for index, (number, num_packed) in last_of_document.items():
        last = blocks[index].segments[-1]
        assert last.document == number
        assert last.tokens[-1] == documents[number].tokens[num_packed - 1]


def test_blocks_that_predict_nothing_are_left_out():
    packer = Packer(block_size=2, domain="d")
    lengths = [1, 1, 3, 1, 2, 1]
    documents = [document_of(length, 10 * i) for i, length in enumerate(lengths)]
    blocks = [b for i, d in enumerate(documents) for b, _ in packer.add(i, d)] + [*packer.flush()]
    assert [row["input_ids"] for row in blocks_to_table(blocks).to_pylist()] == [[20, 21], [40, 41]]


def test_pack_documents_from_text(tokenizer, prose, document_texts):
    texts = prose(20)
    blocks = pack_documents([{"text": t} for t in texts], tokenizer, block_size=32)
    assert document_texts(list(blocks)) == dict(enumerate(texts))
    num_bytes = sum(sum(row["segment_bytes"]) for row in blocks)
    assert 0 < num_bytes < len("".join(texts).encode())
    assert [row["sample_id"] for row in blocks] == list(range(len(blocks)))


TEXT = st.text("aé€漢🙂🙃 \n1", min_size=1, max_size=40)


@settings(deadline=None)
@given(st.data(), st.lists(TEXT, min_size=1, max_size=4), st.integers(2, 9), st.booleans(), st.booleans())
def test_predicted_and_first_tokens_have_all_bytes_of_a_text(
    tokenizer, other_tokenizer, data, texts, block_size, add_bos, add_eos
):
    """Whatever the tokens: each byte of a character that several share counts for the token that has it."""
    used = data.draw(st.sampled_from([tokenizer, other_tokenizer]))  # one of single bytes, one across characters
    encoder = DocumentTokenizer(used, add_bos=add_bos, add_eos=add_eos)
    packer = Packer(block_size=block_size, domain="d")
    documents = encoder.encode(texts)
    blocks = [b for i, d in enumerate(documents) for b, _ in packer.add(i, d)] + [*packer.flush()]
    for block in blocks:
        for segment in block.segments:
            own = [len(bytes_of(used, [token])) for token in segment.tokens.tolist()]
            assert segment.num_bytes == sum(own[1:])
            assert segment.num_bytes + own[0] == segment.end - segment.start
    for number, text in enumerate(texts):
        parts = [s for block in blocks for s in block.segments if s.document == number]
        if sum(len(part.tokens) for part in parts) == len(documents[number]):  # one token alone is left out
            firsts = sum(len(bytes_of(used, part.tokens[:1].tolist())) for part in parts)
            assert sum(part.num_bytes for part in parts) + firsts == len(text.encode())


def test_pack_documents_with_marks_counts_all_bytes_of_a_whole_document(tokenizer):
    rows = [{"body": "the way of water"}]
    [row] = pack_documents(
        rows, tokenizer, block_size=64, text_column="body", add_bos=True, add_eos=True, domain="x"
    )
    assert row["segment_bytes"] == row["segment_ends"] == [len("the way of water")]
    assert row["segment_starts"] == [0]
    assert (row["input_ids"][0], row["input_ids"][-1]) == (0, 1)
    assert row["domain"] == "x"


def test_pack_documents_from_tokens_and_from_packed_rows(tokenizer):
    blocks = pack_documents([{"input_ids": [1, 2, 3]}, {"input_ids": [4, 5]}], tokenizer, block_size=4)
    assert [row["input_ids"] for row in blocks] == [[1, 2, 3, 4]]
    assert [row["segment_lengths"] for row in blocks] == [[3, 1]]
    assert [(row["segment_starts"], row["segment_ends"]) for row in blocks] == [([-1, -1], [-1, -1])]
    again = pack_documents(blocks.dataset, tokenizer, block_size=2)
    assert [row["input_ids"] for row in again] == [[1, 2, 3, 4]]
    listed = pack_documents(list(blocks.dataset), tokenizer, block_size=2)
    assert list(listed) == list(again)


def test_pack_documents_refuses_what_cannot_be_packed(tokenizer):
    with pytest.raises(DataError, match="row 0: there is no key 'text'; there are body"):
        pack_documents([{"body": "x"}], tokenizer, block_size=4)
    with pytest.raises(DataError, match="nothing to predict in 1 documents"):
        pack_documents([{"input_ids": [1]}], tokenizer, block_size=4)
    with pytest.raises(DataError, match="nothing to predict in 0 documents"):
        pack_documents([], tokenizer, block_size=4)


def test_take_is_evenly_spaced_and_keeps_numbers(tokenizer, prose):
    blocks = pack_documents([{"text": t} for t in prose(20)], tokenizer, block_size=8)
    some = blocks.take(5)
    numbers = [row["sample_id"] for row in some]
    assert len(some) == 5
    assert numbers == [i * len(blocks) // 5 for i in range(5)]
    assert [row["input_ids"] for row in some] == [blocks[n]["input_ids"] for n in numbers]
    assert [row["sample_id"] for row in some.take(2)] == [numbers[0], numbers[2]]
    assert len(blocks.take(10**6)) == len(blocks)
    assert len(blocks.take(0)) == 0


def test_every_segment_begins_with_bos_if_asked(tokenizer):
    """A document that goes on in another block begins there with BOS too, and every byte of it is predicted."""
    texts = ["the cat sat on the mat and looked", "at the dog", "x"]
    document_tokenizer = DocumentTokenizer(tokenizer, add_bos=True, add_eos=False)
    bos = document_tokenizer.bos
    packer = Packer(block_size=8, domain="d", bos=bos)
    blocks = []
    for number, document in enumerate(document_tokenizer.encode(texts)):
        blocks += [block for block, _ in packer.add(number, document)]
    blocks += packer.flush()
    segments = [segment for block in blocks for segment in block.segments]
    begun = [segment for segment in segments if segment.tokens[0] == bos]
    assert all(block.num_tokens == 8 for block in blocks[:-1])
    assert all(len(segment.tokens) == 1 for segment in segments if segment.tokens[0] != bos)
    for number, text in enumerate(texts):
        own = [segment for segment in segments if segment.document == number]
        assert (own[0].start, own[-1].end) == (0, len(text.encode()))
        assert all(a.end == b.start for a, b in pairwise(own))
    assert all(segment.num_bytes == segment.end - segment.start for segment in begun)

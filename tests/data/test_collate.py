"""Labels, positions and padding, read the way the loss reads them."""

from multiprocessing.reduction import ForkingPickler
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from collegium.data.collate import BlockCollator, padding_id
from collegium.signals.contracts import IGNORE_INDEX, Batch, predicted_positions


PAD = 63

segments_of_rows = st.lists(
    st.lists(st.lists(st.integers(0, PAD), min_size=1, max_size=6), min_size=1, max_size=5),
    min_size=1,
    max_size=4,
)


def make_rows(segments_of_rows):
    rows, number = [], 0
    for sample_id, segments in enumerate(segments_of_rows):
        rows.append(
            {
                "input_ids": [token for segment in segments for token in segment],
                "segment_lengths": [len(segment) for segment in segments],
                "segment_documents": list(range(number, number + len(segments))),
                "sample_id": sample_id + 1000,
            }
        )
        number += len(segments)
    return rows


def predictions(inputs):
    """(document, offset, predicting token, label) of every predicted position."""
    positions = predicted_positions(Batch.from_inputs(inputs))
    documents = inputs["document_ids"].flatten()[positions.index].tolist()
    tokens = inputs["input_ids"].flatten()[positions.index].tolist()
    offsets, labels = positions.offsets.tolist(), positions.labels.tolist()
    return list(zip(documents, offsets, tokens, labels, strict=True))


@settings(deadline=None)
@given(segments_of_rows, st.sampled_from(["left", "right"]), st.integers(0, 7))
def test_predictions_are_the_pairs_inside_segments(segments_of_rows, side, extra):
    rows = make_rows(segments_of_rows)
    pad_to = max(len(row["input_ids"]) for row in rows) + extra
    inputs = BlockCollator(pad_token_id=PAD, padding_side=side, pad_to=pad_to)(rows)
    assert inputs["input_ids"].shape == (len(rows), pad_to)
    all_segments = [segment for segments in segments_of_rows for segment in segments]
    assert predictions(inputs) == [
        (document, offset, segment[offset], segment[offset + 1])
        for document, segment in enumerate(all_segments)
        for offset in range(len(segment) - 1)
    ]


@settings(deadline=None)
@given(segments_of_rows)
def test_padding_side_changes_nothing_but_places(segments_of_rows):
    rows = make_rows(segments_of_rows)
    left = BlockCollator(pad_token_id=PAD, padding_side="left")(rows)
    right = BlockCollator(pad_token_id=PAD)(rows)
    assert predictions(left) == predictions(right)
    for key in ("input_ids", "labels", "position_ids", "document_ids"):
        text = [batch[key][batch["attention_mask"]].tolist() for batch in (left, right)]
        assert text[0] == text[1]
        padding = [batch[key][~batch["attention_mask"]].tolist() for batch in (left, right)]
        assert padding[0] == padding[1]


def test_tensors_of_one_small_batch():
    rows = make_rows([[[5, 6, 7], [8, 9]], [[4]]])
    inputs = BlockCollator(pad_token_id=0, pad_to=6)(rows)
    assert inputs["input_ids"].tolist() == [[5, 6, 7, 8, 9, 0], [4, 0, 0, 0, 0, 0]]
    assert inputs["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0], [0, 0, 1, 2, 3, 4]]
    i = IGNORE_INDEX
    assert inputs["labels"].tolist() == [[i, 6, 7, i, 9, i], [i, i, i, i, i, i]]
    assert inputs["document_ids"].tolist() == [[0, 0, 0, 1, 1, -1], [2, -1, -1, -1, -1, -1]]
    assert inputs["attention_mask"].sum(1).tolist() == [5, 1]
    assert inputs["sample_ids"].tolist() == [1000, 1001]
    assert inputs["attention_mask"].dtype == torch.bool
    integers = ("input_ids", "labels", "position_ids", "document_ids", "sample_ids")
    assert all(inputs[key].dtype == torch.int64 for key in integers)


@pytest.mark.parametrize("side", ["left", "right"])
def test_bytes_of_segments_stand_beside_their_tokens(side):
    rows = make_rows([[[5, 6, 7], [8, 9]], [[4]]])
    known = {"segment_starts": [4, 0], "segment_ends": [9, 3]}
    inputs = BlockCollator(pad_token_id=0, padding_side=side, pad_to=6)([{**rows[0], **known}, rows[1]])
    text = inputs["attention_mask"]
    assert inputs["segment_starts"][text].tolist() == [4, 4, 4, 0, 0, -1]
    assert inputs["segment_ends"][text].tolist() == [9, 9, 9, 3, 3, -1]
    for key in ("segment_starts", "segment_ends"):
        assert inputs[key].dtype == torch.int64 and set(inputs[key][~text].tolist()) == {-1}


def test_too_small_pad_to_is_refused():
    with pytest.raises(ValueError, match="pad_to=2 is too small for a block of 3"):
        BlockCollator(pad_token_id=0, pad_to=2)(make_rows([[[1, 2, 3]]]))


def test_collator_can_be_sent_to_workers():
    rows = make_rows([[[1, 2, 3]]])
    collator = BlockCollator(pad_token_id=0, pad_to=5)
    assert ForkingPickler.dumps(collator)
    assert collator(rows)["input_ids"].tolist() == [[1, 2, 3, 0, 0]]


def test_domains_are_numbered_in_the_order_given():
    rows = [row | {"domain": name} for row, name in zip(make_rows([[[1, 2]], [[3, 4, 5]]]), "ba", strict=True)]
    inputs = BlockCollator(pad_token_id=0, domains=["a", "b"])(rows)
    positions = predicted_positions(Batch.from_inputs(inputs))
    assert inputs["domain_ids"].tolist() == [1, 0]
    assert positions.domains is not None and positions.domains.tolist() == [1, 0, 0]
    assert predicted_positions(Batch.from_inputs(BlockCollator(pad_token_id=0)(rows))).domains is None
    with pytest.raises(ValueError, match="of domain 'b', the domains are a: name all"):
        BlockCollator(pad_token_id=0, domains=["a"])(rows)


@pytest.mark.parametrize(("pad", "eos", "expected"), [(7, 5, 7), (None, 5, 5), (None, None, 0), (0, 5, 0)])
def test_padding_id_is_that_of_the_tokenizer_else_its_eos_else_0(pad, eos, expected):
    words = {str(token_id): token_id for token_id in range(8)}
    assert padding_id(SimpleNamespace(pad_token_id=pad, eos_token_id=eos, get_vocab=lambda: words)) == expected

"""Where a batch predicts: padding, packing, borders of documents and labels that are left out."""

import random

import pytest
import torch

from collegium.signals.contracts import IGNORE_INDEX, Batch, predicted_positions
from collegium.signals.signals import DenseSignal, ProjectedSignal


PAD = 0


def pack(rows, size, *, side="right", hidden=()):
    """Batch of blocks of packed documents, lists of token ids; tokens in `hidden` get no label.

    Every token of a document has its own id as label, the first one too; padding is a segment.
    """
    inputs = {"input_ids": [], "attention_mask": [], "labels": [], "position_ids": []}
    for documents in rows:
        segments = [(tokens, True) for tokens in documents]
        padding = ([PAD] * (size - sum(len(tokens) for tokens in documents)), False)
        segments = [padding, *segments] if side == "left" else [*segments, padding]
        block = [
            (token, is_text, token if is_text and token not in hidden else IGNORE_INDEX, position)
            for tokens, is_text in segments
            for position, token in enumerate(tokens)
        ]
        for name, column in zip(inputs, zip(*block, strict=True), strict=True):
            inputs[name].append(list(column))
    tensors = {name: torch.tensor(values) for name, values in inputs.items()}
    return Batch.from_inputs(tensors | {"sample_ids": torch.arange(len(rows))})


def predictions(batch):
    """What is predicted: (token, label, offset), and the segments numbered from 0."""
    positions = predicted_positions(batch)
    tokens = batch.input_ids.flatten()[positions.index]
    numbers = {segment: i for i, segment in enumerate(dict.fromkeys(positions.segments.tolist()))}
    columns = tokens.tolist(), positions.labels.tolist(), positions.offsets.tolist()
    return list(zip(*columns, strict=True)), [numbers[s] for s in positions.segments.tolist()]


def expected_predictions(rows, hidden=()):
    pairs, segments, number = [], [], 0
    for tokens in (tokens for documents in rows for tokens in documents):
        in_document = [
            (tokens[i], tokens[i + 1], i) for i in range(len(tokens) - 1) if tokens[i + 1] not in hidden
        ]
        pairs += in_document
        segments += [number] * len(in_document)
        number += bool(in_document)
    return pairs, segments


def draw_rows(seed, size):
    generator = random.Random(seed)
    token, rows = 0, []
    for _ in range(generator.randint(1, 3)):
        documents, left = [], size
        while left and generator.random() < 0.8:
            length = generator.randint(1, left)
            documents.append([token := token + 1 for _ in range(length)])
            left -= length
        rows.append(documents)
    return rows


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("seed", range(40))
def test_each_document_predicts_its_own_tokens(seed, side):
    rows = draw_rows(seed, size=12)
    batch = pack(rows, 12, side=side)
    assert predictions(batch) == expected_predictions(rows)
    hidden = set(random.Random(seed).sample(range(1, 37), 12))
    assert predictions(pack(rows, 12, side=side, hidden=hidden)) == expected_predictions(rows, hidden)


def test_index_and_fields_of_a_small_batch():
    batch = pack([[[1, 2, 3], [4, 5]], [[6], [7, 8]]], 6)
    positions = predicted_positions(batch)
    assert len(positions) == 4
    assert positions.index.tolist() == [0, 1, 3, 7]
    assert positions.labels.tolist() == [2, 3, 5, 8]
    assert positions.offsets.tolist() == [0, 1, 0, 0]
    assert positions.segments.diff().tolist() == [0, 1, 3]  # past a padding and a document of one token
    states = torch.arange(12.0).reshape(2, 6, 1).expand(2, 6, 4)
    assert positions.select(states)[:, 0].tolist() == [0, 1, 3, 7]


def test_padding_sides_differ_in_the_index_only():
    rows = [[[1, 2, 3], [4, 5]], [[6, 7]]]
    left, right = (pack(rows, 8, side=side) for side in ("left", "right"))
    assert predictions(left) == predictions(right)
    assert predicted_positions(left).index.tolist() != predicted_positions(right).index.tolist()


def test_a_first_token_is_never_predicted_though_it_has_a_label():
    batch = pack([[[1, 2], [3, 4]], [[5, 6]]], 4)
    assert batch.labels[0].tolist() == [1, 2, 3, 4]
    assert predicted_positions(batch).labels.tolist() == [2, 4, 6]


def test_the_same_document_on_two_rows_is_two_segments():
    segments = predicted_positions(pack([[[1, 2, 3, 4]], [[1, 2, 3, 4]]], 4)).segments
    assert (segments[:3] == segments[0]).all() and (segments[3:] == segments[3]).all()
    assert segments[0] != segments[3]


@pytest.mark.parametrize("size", [1, 5])
@pytest.mark.parametrize("rows", [[[], []], [[[3]], [[4]]]], ids=["padding", "one token each"])
def test_nothing_to_predict(rows, size):
    positions = predicted_positions(pack(rows, size))
    assert len(positions) == 0
    assert positions.select(torch.ones(2, size, 3)).shape == (0, 3)
    assert positions.labels.shape == positions.segments.shape == positions.offsets.shape == (0,)


def test_labels_left_out_everywhere_predict_nothing():
    assert len(predicted_positions(pack([[[1, 2, 3]]], 3, hidden={1, 2, 3}))) == 0


def test_from_inputs_takes_an_integer_mask_and_names_that_it_does_not_know():
    batch = pack([[[1, 2]]], 3)
    inputs = {**vars(batch), "attention_mask": batch.attention_mask.long(), "other": torch.ones(1)}
    again = Batch.from_inputs(inputs)
    assert again.attention_mask.dtype == torch.bool
    tensors = {name: value for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    assert all(torch.equal(getattr(again, name), value) for name, value in tensors.items())


def test_signals_hand_out_the_logits_of_rows():
    hidden, projection = torch.randn(6, 3), torch.randn(5, 3)
    projected = ProjectedSignal(hidden, lambda states: states @ projection.T)
    assert len(projected) == 6
    torch.testing.assert_close(projected.logits(slice(2, 4)), (hidden @ projection.T)[2:4])
    dense = DenseSignal(torch.randn(6, 5).log_softmax(-1))
    assert len(dense) == 6
    torch.testing.assert_close(dense.logits(slice(2, 4)).log_softmax(-1), dense.logprobs[2:4])

"""Attention between the tokens of two models, a row at a time; and what gets no gradient."""

import math

import torch
from torch import nn

from collegium.losses.cross_model_attention import attend, frozen, keys_of, scaled_by_segment


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


SEGMENTS, KEY_SEGMENTS = torch.tensor([1, 1, 2, 4, 4]), torch.tensor([1, 2, 2, 2, 4, 4, 5])


def test_attention_is_a_loop_within_segments():
    queries, keys, values = draw(5, 6), draw(7, 6, seed=1), draw(7, 3, seed=2)
    expected = []
    for i in range(5):
        inside = [j for j in range(7) if KEY_SEGMENTS[j] == SEGMENTS[i]]
        scores = [math.exp(float(queries[i] @ keys[j]) / math.sqrt(6)) for j in inside]
        expected.append(sum(w / sum(scores) * values[j] for w, j in zip(scores, inside, strict=True)))
    found = attend(queries, keys, values, SEGMENTS, KEY_SEGMENTS)
    torch.testing.assert_close(found, torch.stack(expected))


def test_a_query_without_keys_reads_nothing():
    queries, keys, values = (draw(3, 4, seed=i).requires_grad_() for i in range(3))
    alone = attend(queries, keys, values, torch.tensor([7, 8, 9]), torch.tensor([1, 1, 1]))
    none = attend(queries, keys[:0], values[:0], torch.tensor([1, 1, 1]), torch.tensor([], dtype=torch.int64))
    assert torch.equal(alone, torch.zeros(3, 4, dtype=torch.float64))
    assert torch.equal(none, torch.zeros(3, 4, dtype=torch.float64))
    (alone + none).sum().backward()
    assert all(float(x.grad.abs().max()) == 0.0 for x in (queries, keys, values))


def test_attention_gradient():
    inputs = [draw(*shape, seed=i).requires_grad_() for i, shape in enumerate([(5, 6), (7, 6), (7, 3)])]
    assert torch.autograd.gradcheck(lambda q, k, v: attend(q, k, v, SEGMENTS, KEY_SEGMENTS), inputs)


def test_keys_of_some_queries_hold_all_of_their_segments():
    assert keys_of(SEGMENTS[1:3], KEY_SEGMENTS) == slice(0, 4)
    assert keys_of(SEGMENTS[3:], KEY_SEGMENTS) == slice(4, 6)
    assert keys_of(SEGMENTS[:0], KEY_SEGMENTS) == slice(0, 0)
    assert keys_of(SEGMENTS, KEY_SEGMENTS[:0]) == slice(0, 0)


def test_each_segment_has_a_deviation_of_one():
    states, segments = draw(6, 4) * 7 + 3, torch.tensor([0, 0, 0, 1, 3, 3])
    scaled = scaled_by_segment(states, segments, 4)
    for segment in (0, 1, 3):
        rows = segments == segment
        torch.testing.assert_close(scaled[rows], states[rows] / states[rows].std())
    assert bool(scaled_by_segment(torch.zeros(2, 3), torch.tensor([0, 0]), 1).isfinite().all())


def test_a_frozen_map_has_a_gradient_for_its_inputs_alone():
    head = nn.Sequential(nn.Linear(4, 5), nn.Tanh()).double()
    inputs = draw(3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: frozen(head, x), (inputs,))
    frozen(head, inputs).square().sum().backward()
    assert all(parameter.grad is None for parameter in head.parameters())
    plain = draw(3, 4).requires_grad_()
    head(plain).square().sum().backward()
    torch.testing.assert_close(inputs.grad, plain.grad)

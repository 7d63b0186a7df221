"""ULD, GOLD's hybrid and ALM against loops over plain probabilities, in float64."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from collegium.losses.cross_tokenizer import (
    binary_kl,
    chunk_of_spans,
    hybrid,
    in_order,
    label_and_boundary,
    sorted_l1,
    sum_by,
    with_chain,
    with_path,
)


def draw(rows, size, seed=0, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, size, generator=generator, dtype=torch.float64) * scale).log_softmax(-1)


def l1_by_hand(student, teacher):
    left, right = sorted(student, reverse=True), sorted(teacher, reverse=True)
    size = max(len(left), len(right))
    left, right = (part + [0.0] * (size - len(part)) for part in (left, right))
    return sum(abs(a - b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("sizes", [(7, 7), (5, 9), (9, 5), (1, 4)])
def test_sorted_l1_is_a_loop(sizes):
    student, teacher = draw(6, sizes[0]).exp(), draw(6, sizes[1], seed=1).exp()
    expected = [l1_by_hand(q, p) for q, p in zip(student.tolist(), teacher.tolist(), strict=True)]
    torch.testing.assert_close(sorted_l1(student, teacher), torch.tensor(expected, dtype=torch.float64))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 12))
def test_sorted_l1_forgets_names_and_lies_between_0_and_2(seed, size, other):
    student, teacher = draw(4, size, seed).exp(), draw(4, other, seed + 1).exp()
    distance = sorted_l1(student, teacher)
    shuffled = student[:, torch.randperm(size, generator=torch.Generator().manual_seed(seed))]
    torch.testing.assert_close(sorted_l1(shuffled, teacher), distance)
    torch.testing.assert_close(sorted_l1(teacher, student), distance)
    assert bool((distance <= 2.0 + 1e-12).all())
    assert bool((sorted_l1(student, shuffled) == 0).all())
    padded = torch.nn.functional.pad(student, (0, 3))
    torch.testing.assert_close(sorted_l1(padded, teacher), distance)


def test_order_and_its_gradient_are_those_of_torch():
    values, upstream = draw(4, 9).requires_grad_(), draw(4, 9, seed=1)
    (found,) = torch.autograd.grad(in_order(values), values, upstream)
    (expected,) = torch.autograd.grad(values.sort(-1).values, values, upstream)
    assert torch.equal(found, expected)
    for probs in (values, values.detach(), values.detach().float()):
        assert torch.equal(in_order(probs), probs.sort(-1).values)
    assert in_order(values[:0]).shape == (0, 9)


def test_sorted_l1_gradient():
    logits = draw(3, 6).requires_grad_()
    teacher = draw(3, 8, seed=1).exp()
    assert torch.autograd.gradcheck(lambda z: sorted_l1(z.softmax(-1), teacher), (logits,))


SHARED = torch.tensor([[0, 3], [2, 1], [4, 0]])


def hybrid_by_hand(q, p, beta):
    matched = 0.0
    for mine, theirs in SHARED.tolist():
        a, b = float(q[mine]), float(p[theirs])
        if beta == 0.0:
            matched += b * math.log(b / a)
        elif beta == 1.0:
            matched += a * math.log(a / b)
        else:
            m = beta * b + (1 - beta) * a
            matched += beta * b * math.log(b / m) + (1 - beta) * a * math.log(a / m)
    rest = [[float(x) for i, x in enumerate(d) if i not in ids] for d, ids in ((q, {0, 2, 4}), (p, {3, 1, 0}))]
    return matched, l1_by_hand(*rest)


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 1.0])
def test_hybrid_is_a_loop(beta):
    student, teacher = draw(5, 7), draw(5, 6, seed=1)
    path = draw(1, 5, seed=2)[0]
    found = hybrid(with_path(student, path), with_path(teacher, path * 0.5), SHARED, beta)
    for i in range(5):
        q, p = student[i].exp() * path[i].exp(), teacher[i].exp() * (0.5 * path[i]).exp()
        expected = hybrid_by_hand(q, p, beta)
        assert [float(part[i]) for part in found] == pytest.approx(list(expected), rel=1e-10, abs=1e-12)


def test_hybrid_gradient():
    logits, teacher = draw(3, 7).requires_grad_(), draw(3, 6, seed=1)
    assert torch.autograd.gradcheck(lambda z: hybrid(z.log_softmax(-1), teacher, SHARED, 0.5), (logits,))


def test_of_one_vocabulary_the_hybrid_is_a_divergence_alone():
    student, teacher = draw(4, 6), draw(4, 6, seed=1)
    same = torch.arange(6).unsqueeze(-1).expand(-1, 2)
    matched, rest = hybrid(student, teacher, same, 0.5)
    q, p = student.exp(), teacher.exp()
    m = (p + q) / 2
    expected = 0.5 * (p * (p / m).log() + q * (q / m).log()).sum(-1)
    torch.testing.assert_close(matched, expected)
    assert torch.equal(rest, torch.zeros(4, dtype=torch.float64))


def test_hybrid_survives_what_is_ruled_out_and_nothing_shared():
    student, teacher = draw(2, 7), draw(2, 6, seed=1)
    teacher[0, 1] = -torch.inf
    teacher[1, 3] = -torch.inf
    student.requires_grad_()
    matched, rest = hybrid(student, teacher, SHARED, 0.5)
    (matched + rest).sum().backward()
    assert bool(matched.isfinite().all()) and bool(student.grad.isfinite().all())
    nothing, everything = hybrid(student, teacher, SHARED[:0], 0.5)
    assert bool((nothing == 0).all())
    torch.testing.assert_close(everything, sorted_l1(student.exp(), teacher.exp()))


def test_merges_are_the_chain_rule():
    """Entry of the span's text: both merges give the probability of all of its tokens."""
    first, last = draw(1, 5)[0], draw(1, 5, seed=1)[0]
    labels = torch.tensor([2])
    of_text = first[2] + last[4]
    assert float(with_path(last[None], first[2:3])[0, 4]) == pytest.approx(float(of_text))
    chained = with_chain(first[None], labels, last[4:5])[0]
    assert float(chained[2]) == pytest.approx(float(of_text))
    others = torch.tensor([0, 1, 3, 4])
    assert torch.equal(chained[others], first[others])


@pytest.mark.parametrize("tau", [1.0, 3.0, 100.0])
def test_binary_kl_is_the_formula(tau):
    q, p = (draw(1, 8, seed)[0] * 3 for seed in (0, 1))
    x, y = (p / tau - 1e-6).exp(), (q / tau - 1e-6).exp()
    expected = x * (x / y).log() + (1 - x) * ((1 - x) / (1 - y)).log()
    torch.testing.assert_close(binary_kl(q, p, tau), expected, rtol=1e-9, atol=1e-12)


def test_binary_kl_gradient():
    logprobs, teacher = draw(1, 6)[0].requires_grad_(), draw(1, 6, seed=1)[0]
    for tau in (1.0, 100.0):
        assert torch.autograd.gradcheck(lambda q, t=tau: binary_kl(q, teacher, t), (logprobs,))


@settings(max_examples=100, deadline=None)
@given(st.floats(-200, 0), st.floats(-200, 0), st.sampled_from([1.0, 10.0, 100.0]))
def test_binary_kl_is_0_only_where_both_agree(q, p, tau):
    left, right = (torch.tensor([value], dtype=torch.float64) for value in (q, p))
    divergence = float(binary_kl(left, right, tau))
    assert divergence >= -1e-12
    assert float(binary_kl(left, left, tau)) == 0.0


@pytest.mark.parametrize("value", [0.0, 1e-9, -1e-12, -torch.inf])
def test_binary_kl_is_finite_at_the_ends(value):
    for dtype in (torch.float32, torch.float64):
        student = torch.tensor([value, -1.0], dtype=dtype, requires_grad=True)
        result = binary_kl(student, torch.tensor([-1.0, value], dtype=dtype), 100.0)
        result.sum().backward()
        assert bool(result.isfinite().all()) and bool(student.grad.isfinite().all())


def chunks_by_hand(boundary, adjoins, threshold):
    numbers, number = [], 0
    for probability, goes_on in zip(boundary, adjoins, strict=True):
        numbers.append(number)
        if not (goes_on and probability <= threshold):
            number += 1
    return numbers


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(1e-6, 1), st.booleans()), max_size=12), st.floats(0, 1))
def test_chunks_end_where_a_boundary_is_likely(spans, threshold):
    boundary, adjoins = ([pair[i] for pair in spans] for i in (0, 1))
    logprobs = torch.tensor(boundary, dtype=torch.float64).log()
    found = chunk_of_spans(logprobs, torch.tensor(adjoins, dtype=torch.bool), threshold).tolist()
    assert found == chunks_by_hand([math.exp(x) for x in logprobs.tolist()], adjoins, threshold)
    assert all(b - a in (0, 1) for a, b in pairwise(found))


def test_an_unknown_boundary_ends_a_chunk():
    boundary, adjoins = torch.tensor([math.nan, math.nan, -50.0]), torch.tensor([True, True, True])
    assert chunk_of_spans(boundary, adjoins, 0.1).tolist() == [0, 1, 2]


def test_label_and_boundary():
    logprobs, labels = draw(3, 6), torch.tensor([1, 5, 0])
    of_label, of_boundary = label_and_boundary(logprobs, labels, torch.tensor([0, 4]))
    assert of_label.tolist() == [float(logprobs[i, y]) for i, y in enumerate(labels)]
    torch.testing.assert_close(of_boundary.exp(), logprobs.exp()[:, 0] + logprobs.exp()[:, 4])
    assert bool(label_and_boundary(logprobs, labels, None)[1].isnan().all())
    ruled_out = torch.full((1, 6), -torch.inf, dtype=torch.float64)
    assert bool(label_and_boundary(ruled_out, labels[:1], torch.tensor([0]))[1].isfinite().all())


def test_sum_by_leaves_out_what_belongs_nowhere():
    values = torch.tensor([1.0, math.nan, 2.0, 4.0])
    assert sum_by(values, torch.tensor([1, -1, 0, 1]), 3).tolist() == [2.0, 5.0, 0.0]

"""Fusion against products and sums of probabilities, its two identities, and absent teachers."""

import math
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from collegium.losses.divergences import entropy, forward_kl, reverse_kl
from collegium.losses.fusion import geometric_logprobs, mixture_logprobs


FUSIONS = {"mixture": mixture_logprobs, "geometric": geometric_logprobs}
each_fusion = pytest.mark.parametrize("name", FUSIONS)
seeds = st.integers(0, 2**32 - 1)


def reference(name, teacher_probs, weights):
    """Fused probabilities [n V] from M x [n V] and [n M]."""
    if name == "mixture":
        return sum(w[:, None] * p for p, w in zip(teacher_probs, weights.T, strict=True))
    product = math.prod(p ** w[:, None] for p, w in zip(teacher_probs, weights.T, strict=True))
    return product / product.sum(-1, keepdim=True)


def draw_teachers(seed, num_teachers, num_positions=4, vocab_size=11):
    """Log-probabilities M x [n V] and weights [n M] whose rows sum to 1."""
    generator = torch.Generator().manual_seed(seed)
    shape = num_teachers, num_positions, vocab_size
    logits = 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
    weights = torch.rand(num_positions, num_teachers, generator=generator, dtype=torch.float64)
    return list(logits.log_softmax(-1)), weights / weights.sum(-1, keepdim=True)


def draw_student(seed, like):
    generator = torch.Generator().manual_seed(seed + 1)
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).log_softmax(-1)


@each_fusion
@given(seed=seeds, num_teachers=st.integers(1, 9))
def test_equals_the_formula_in_probabilities(name, seed, num_teachers):
    teachers, weights = draw_teachers(seed, num_teachers)
    expected = reference(name, [t.exp() for t in teachers], weights).log()
    found = FUSIONS[name](teachers, weights)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(found.logsumexp(-1), torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-13)


@given(seed=seeds, num_teachers=st.integers(1, 6))
def test_kl_to_each_is_kl_to_the_mixture_and_the_conflict(seed, num_teachers):
    teachers, weights = draw_teachers(seed, num_teachers)
    student = draw_student(seed, teachers[0])
    mixture = mixture_logprobs(teachers, weights)
    columns = list(weights.T)
    each = sum(w * forward_kl(student, t) for t, w in zip(teachers, columns, strict=True))
    conflict = sum(w * forward_kl(mixture, t) for t, w in zip(teachers, columns, strict=True))
    torch.testing.assert_close(each, forward_kl(student, mixture) + conflict, rtol=1e-12, atol=1e-13)
    by_entropy = entropy(mixture) - sum(w * entropy(t) for t, w in zip(teachers, columns, strict=True))
    torch.testing.assert_close(conflict, by_entropy, rtol=1e-11, atol=1e-13)


@given(seed=seeds, num_teachers=st.integers(1, 6))
def test_reverse_kl_to_each_is_that_to_the_geometric_mean_and_its_norm(seed, num_teachers):
    teachers, weights = draw_teachers(seed, num_teachers)
    student = draw_student(seed, teachers[0])
    geometric = geometric_logprobs(teachers, weights)
    columns = list(weights.T)
    each = sum(w * reverse_kl(student, t) for t, w in zip(teachers, columns, strict=True))
    norm = math.prod(t.exp() ** w[:, None] for t, w in zip(teachers, columns, strict=True)).sum(-1)
    expected = reverse_kl(student, geometric) - norm.log()
    torch.testing.assert_close(each, expected, rtol=1e-12, atol=1e-13)
    assert (norm <= 1 + 1e-13).all()


@each_fusion
@given(seed=seeds, num_teachers=st.integers(2, 7), data=st.data())
def test_the_order_of_teachers_is_of_no_matter(name, seed, num_teachers, data):
    teachers, weights = draw_teachers(seed, num_teachers)
    order = data.draw(st.permutations(range(num_teachers)))
    found = FUSIONS[name]([teachers[m] for m in order], weights[:, order])
    torch.testing.assert_close(found, FUSIONS[name](teachers, weights), rtol=1e-12, atol=1e-13)


@each_fusion
@given(seed=seeds, num_copies=st.integers(1, 7))
def test_copies_of_a_teacher_are_that_teacher(name, seed, num_copies):
    teachers, weights = draw_teachers(seed, num_copies)
    found = FUSIONS[name]([teachers[0]] * num_copies, weights)
    torch.testing.assert_close(found, teachers[0], rtol=1e-12, atol=1e-13)


@each_fusion
@pytest.mark.parametrize("ruled_out", ["nothing", "some", "all but one"])
@given(seed=seeds, num_teachers=st.integers(1, 8), data=st.data())
def test_weight_0_is_absent_bit_for_bit(name, ruled_out, seed, num_teachers, data):
    teachers, weights = draw_teachers(seed, num_teachers)
    absent = draw_student(seed, teachers[0])
    if ruled_out != "nothing":
        absent[:, 1 if ruled_out == "all but one" else -3 :] = -math.inf
        teachers[0][:, 2] = -math.inf
    place = data.draw(st.integers(0, num_teachers))
    with_absent = [*teachers[:place], absent, *teachers[place:]]
    zeros = weights.new_zeros(len(weights), 1)
    wider = torch.cat([weights[:, :place], zeros, weights[:, place:]], -1)
    assert torch.equal(FUSIONS[name](with_absent, wider), FUSIONS[name](teachers, weights))


@each_fusion
@given(seed=seeds, num_teachers=st.integers(2, 6))
def test_each_position_may_miss_other_teachers(name, seed, num_teachers):
    teachers, weights = draw_teachers(seed, num_teachers, num_positions=num_teachers)
    weights.fill_diagonal_(0.0)
    found = FUSIONS[name](teachers, weights)
    for i in range(num_teachers):
        present = [m for m in range(num_teachers) if m != i]
        alone = FUSIONS[name]([teachers[m] for m in present], weights[:, present])
        assert torch.equal(found[i], alone[i])


@each_fusion
def test_takes_a_generator_and_keeps_one_teacher_alive(name):
    teachers, weights = draw_teachers(0, 5)
    made = []

    def make(logprobs):
        assert all(earlier() is None for earlier in made), "an earlier teacher is still alive"
        logprobs = logprobs.clone()
        made.append(weakref.ref(logprobs))
        return logprobs

    found = FUSIONS[name]((make(logprobs) for logprobs in teachers), weights)
    assert len(made) == 5
    assert torch.equal(found, FUSIONS[name](teachers, weights))


@each_fusion
@pytest.mark.parametrize("num_given", [0, 2, 4])
def test_wants_as_many_teachers_as_weights(name, num_given):
    teachers, weights = draw_teachers(0, 4)
    with pytest.raises((AssertionError, IndexError)):
        FUSIONS[name](teachers[:num_given], weights[:, :3])


@given(seed=seeds, num_teachers=st.integers(1, 6))
def test_mixture_is_at_most_minus_log_w_worse_than_a_teacher(seed, num_teachers):
    teachers, weights = draw_teachers(seed, num_teachers)
    mixture = mixture_logprobs(teachers, weights)
    for logprobs, weight in zip(teachers, weights.T, strict=True):
        assert (-mixture <= -logprobs - weight.log()[:, None] + 1e-12).all()


def test_geometric_obeys_a_veto_and_survives_that_of_every_token():
    inf = math.inf
    first = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64).log()
    second = torch.tensor([[0.0, 0.5, 0.5], [0.0, 1.0, 0.0]], dtype=torch.float64).log()
    fused = geometric_logprobs([first, second], torch.tensor([[0.9, 0.1], [0.9, 0.1]], dtype=torch.float64))
    assert first[0, 2] == -inf and second[0, 0] == -inf
    torch.testing.assert_close(fused.exp(), torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64))


def test_mixture_of_one_hot_teachers():
    teachers = torch.tensor([[[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]]], dtype=torch.float64).log()
    fused = mixture_logprobs(list(teachers), torch.tensor([[0.25, 0.75]], dtype=torch.float64))
    torch.testing.assert_close(fused.exp(), torch.tensor([[0.25, 0.75, 0.0]], dtype=torch.float64))


@each_fusion
def test_gradient_of_learned_weights_and_teachers(name):
    teachers, weights = draw_teachers(0, 3)
    scores = weights.log().requires_grad_()
    inputs = [t.clone().requires_grad_() for t in teachers]
    assert torch.autograd.gradcheck(
        lambda s, *ts: FUSIONS[name]([t.log_softmax(-1) for t in ts], s.softmax(-1)),
        (scores, *inputs),
    )


@each_fusion
@pytest.mark.parametrize("place", range(3))
def test_learned_weights_pass_over_an_absent_teacher_and_ruled_out_tokens(name, place):
    teachers, weights = draw_teachers(0, 3)
    for logprobs in teachers:
        logprobs[:, 4] = -math.inf
    teachers[1][:, 6] = -math.inf
    present = [m for m in range(3) if m != place]

    def gradient(teachers, columns):
        scores = weights[:, present].log().requires_grad_()
        spread = torch.zeros(len(weights), columns.stop, dtype=torch.float64)
        spread[:, present if columns.stop == 3 else [0, 1]] = scores.softmax(-1)
        student = draw_student(3, teachers[0])
        loss = forward_kl(student, FUSIONS[name](teachers, spread)).sum()
        return torch.autograd.grad(loss, scores)[0]

    found = gradient(teachers, range(3))
    assert found.isfinite().all() and found.abs().max() > 0
    torch.testing.assert_close(found, gradient([teachers[m] for m in present], range(2)))

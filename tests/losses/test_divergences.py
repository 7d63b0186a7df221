"""Divergences against sums written out in probabilities, and what must hold of each."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from collegium.losses.divergences import entropy, forward_kl, generalized_jsd, reverse_kl, total_variation


DIVERGENCES = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jsd_0.1": partial(generalized_jsd, beta=0.1),
    "jsd_0.5": partial(generalized_jsd, beta=0.5),
    "jsd_0.9": partial(generalized_jsd, beta=0.9),
    "total_variation": total_variation,
}
each_divergence = pytest.mark.parametrize("name", DIVERGENCES)


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def reference(name, q, p):
    """One position, student's probabilities q and teacher's p as lists of floats."""
    if name == "forward_kl":
        return kl(p, q)
    if name == "reverse_kl":
        return kl(q, p)
    if name == "total_variation":
        return sum(abs(a - b) for a, b in zip(p, q, strict=True)) / 2
    beta = float(name.removeprefix("jsd_"))
    m = [beta * a + (1 - beta) * b for a, b in zip(p, q, strict=True)]
    return beta * kl(p, m) + (1 - beta) * kl(q, m)


@st.composite
def logit_pairs(draw):
    """Logits [n V] of a student and of a teacher."""
    shape = draw(st.integers(1, 4)), draw(st.integers(2, 9))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    return tuple(
        torch.randn(shape, generator=generator, dtype=torch.float64) * scale
        for scale in (
            draw(st.sampled_from([0.1, 1.0, 6.0])),
            draw(st.sampled_from([0.1, 1.0, 6.0])),
        )
    )


@st.composite
def extreme_pairs(draw):
    """Logits with +-1e4 and -inf among them, or all -inf but one; never a row of -inf only."""
    vocab_size = draw(st.integers(2, 6))
    values = st.sampled_from([0.0, 1.5, -3.0, 1e4, -1e4, -math.inf])
    row = st.lists(values, min_size=vocab_size, max_size=vocab_size).filter(
        lambda entries: max(entries) > -math.inf
    )
    return tuple(torch.tensor([draw(row), draw(row)], dtype=torch.float64, requires_grad=True) for _ in range(2))


@each_divergence
@given(pair=logit_pairs())
def test_equals_the_sum_over_probabilities(name, pair):
    student, teacher = pair
    found = DIVERGENCES[name](student.log_softmax(-1), teacher.log_softmax(-1))
    expected = [
        reference(name, q, p)
        for q, p in zip(student.softmax(-1).tolist(), teacher.softmax(-1).tolist(), strict=True)
    ]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)


@each_divergence
def test_gradients_of_student_and_teacher(name):
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 7, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda s, t: DIVERGENCES[name](s.log_softmax(-1), t.log_softmax(-1)), (student, teacher)
    )


@each_divergence
@given(pair=logit_pairs())
def test_is_not_negative(name, pair):
    student, teacher = (logits.log_softmax(-1) for logits in pair)
    assert (DIVERGENCES[name](student, teacher) > -1e-14).all()


@each_divergence
@given(pair=logit_pairs())
def test_is_zero_without_gradient_only_at_the_teacher(name, pair):
    teacher = (0.2 * pair[1]).log_softmax(-1)
    student = (teacher + 3.0).requires_grad_()
    value = DIVERGENCES[name](student.log_softmax(-1), teacher)
    (gradient,) = torch.autograd.grad(value.sum(), student)
    assert value.abs().max() < 1e-13
    if name != "total_variation":  # it has a corner there
        assert gradient.abs().max() < 1e-13
    moved = student.detach().clone()
    moved[:, 0] += 1.0
    assert (DIVERGENCES[name](moved.log_softmax(-1), teacher) > 1e-9).all()


@given(pair=logit_pairs())
def test_jsd_ends_are_the_two_kls_exactly(pair):
    student, teacher = (logits.log_softmax(-1) for logits in pair)
    assert torch.equal(generalized_jsd(student, teacher, 0.0), forward_kl(student, teacher))
    assert torch.equal(generalized_jsd(student, teacher, 1.0), reverse_kl(student, teacher))


@given(pair=logit_pairs())
def test_jsd_over_beta_tends_to_the_kls(pair):
    student, teacher = (logits.log_softmax(-1) for logits in pair)
    p, q, beta = teacher.exp(), student.exp(), 1e-6
    to_forward = generalized_jsd(student, teacher, beta) / beta
    to_reverse = generalized_jsd(student, teacher, 1 - beta) / beta
    # The next term of the expansion in beta is at most a chi-squared distance.
    error = 1e-9 + 2 * beta * ((p - q).square() / torch.minimum(p, q)).sum(-1)
    assert ((to_forward - forward_kl(student, teacher)).abs() < error).all()
    assert ((to_reverse - reverse_kl(student, teacher)).abs() < error).all()


@given(pair=logit_pairs())
def test_jsd_is_symmetric_at_one_half_and_at_most_log_2(pair):
    student, teacher = (logits.log_softmax(-1) for logits in pair)
    value = generalized_jsd(student, teacher, 0.5)
    swapped = generalized_jsd(teacher, student, 0.5)
    torch.testing.assert_close(value, swapped, rtol=1e-12, atol=1e-15)
    assert (value <= math.log(2) + 1e-14).all()


@pytest.mark.parametrize("beta", [-0.1, 1.1, math.nan])
def test_jsd_rejects_a_beta_outside_0_and_1(beta):
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        generalized_jsd(torch.zeros(1, 2), torch.zeros(1, 2), beta)


@given(pair=logit_pairs())
def test_total_variation_is_a_distance_between_0_and_1(pair):
    student, teacher = (logits.log_softmax(-1) for logits in pair)
    value = total_variation(student, teacher)
    assert ((value >= 0) & (value <= 1 + 1e-15)).all()
    assert torch.equal(value, total_variation(teacher, student))
    assert (value.square() <= forward_kl(student, teacher) / 2 + 1e-14).all()  # Pinsker


def test_disjoint_distributions_are_as_far_apart_as_can_be():
    one, other = torch.tensor([[[0.0, -math.inf]], [[-math.inf, 0.0]]], dtype=torch.float64)
    assert total_variation(one, other).item() == 1.0
    assert generalized_jsd(one, other, 0.5).item() == pytest.approx(math.log(2))


@each_divergence
@given(pair=logit_pairs(), seed=st.integers(0, 2**32 - 1))
def test_the_order_of_the_vocabulary_is_of_no_matter(name, pair, seed):
    student, teacher = (logits.log_softmax(-1) for logits in pair)
    order = torch.randperm(student.shape[1], generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(
        DIVERGENCES[name](student[:, order], teacher[:, order]),
        DIVERGENCES[name](student, teacher),
        rtol=1e-11,
        atol=1e-14,
    )


@each_divergence
@given(pair=logit_pairs(), shifts=st.tuples(*[st.floats(-1e3, 1e3)] * 2))
def test_a_constant_added_to_logits_changes_nothing(name, pair, shifts):
    plain = [logits.log_softmax(-1) for logits in pair]
    moved = [(z + c).log_softmax(-1) for z, c in zip(pair, shifts, strict=True)]
    torch.testing.assert_close(DIVERGENCES[name](*moved), DIVERGENCES[name](*plain), rtol=1e-9, atol=1e-11)


@each_divergence
@given(pair=extreme_pairs())
def test_extreme_logits_give_a_finite_loss_and_gradient(name, pair):
    value = DIVERGENCES[name](*(logits.log_softmax(-1) for logits in pair))
    gradients = torch.autograd.grad(value.sum(), pair)
    assert value.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert (value > -1e-10).all()


@each_divergence
@given(pair=logit_pairs(), num_ruled_out=st.integers(1, 3))
def test_tokens_that_both_rule_out_might_as_well_not_exist(name, pair, num_ruled_out):
    def value_and_gradient(student, teacher):
        student = student.clone().requires_grad_()
        value = DIVERGENCES[name](student.log_softmax(-1), teacher.log_softmax(-1))
        return value, torch.autograd.grad(value.sum(), student)[0]

    vocab_size = pair[0].shape[1]
    value, gradient = value_and_gradient(*pair)
    wide = (torch.nn.functional.pad(logits, (0, num_ruled_out), value=-math.inf) for logits in pair)
    wide_value, wide_gradient = value_and_gradient(*wide)
    torch.testing.assert_close(wide_value, value, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(wide_gradient[:, :vocab_size], gradient, rtol=1e-11, atol=1e-14)
    assert (wide_gradient[:, vocab_size:] == 0).all()


@pytest.mark.parametrize("name", ["reverse_kl", "jsd_0.5"])
def test_a_student_is_told_to_leave_a_token_that_the_teacher_rules_out(name):
    student = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[0.0, 0.0, -math.inf]], dtype=torch.float64).log_softmax(-1)
    value = DIVERGENCES[name](student.log_softmax(-1), teacher).sum()
    (gradient,) = torch.autograd.grad(value, student)
    assert gradient[0, 2] > 0 and (gradient[0, :2] < 0).all()


@each_divergence
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_keeps_the_dtype(name, dtype):
    logprobs = torch.zeros(2, 3, dtype=dtype).log_softmax(-1)
    assert DIVERGENCES[name](logprobs, logprobs).dtype == dtype


@given(pair=logit_pairs())
def test_entropy_equals_its_sum_and_lies_between_0_and_log_v(pair):
    logits = pair[0]
    found = entropy(logits.log_softmax(-1))
    expected = [-sum(p * math.log(p) for p in row if p > 0) for row in logits.softmax(-1).tolist()]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)
    assert ((found >= 0) & (found <= math.log(logits.shape[1]) + 1e-14)).all()


def test_entropy_of_one_hot_uniform_and_masked_rows():
    inf = math.inf
    logits = torch.tensor([[0.0, -inf, -inf], [0.0, 0.0, 0.0], [0.0, 0.0, -inf]], dtype=torch.float64)
    logits.requires_grad_()
    found = entropy(logits.log_softmax(-1))
    torch.testing.assert_close(found, torch.tensor([1.0, 3.0, 2.0], dtype=torch.float64).log())
    assert torch.autograd.grad(found.sum(), logits)[0].isfinite().all()


def test_entropy_gradient():
    torch.manual_seed(0)
    logits = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: entropy(z.log_softmax(-1)), (logits,))

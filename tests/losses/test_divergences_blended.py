"""Blended, powered and decoupled divergences against the papers' formulas on lists of floats or on softmaxes."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from collegium.losses.blended_divergences import (
    adaptive_kl,
    adaptive_share,
    detached_skew_reverse_kl,
    head_mask,
    skew_forward_kl,
    skew_reverse_kl,
    taid,
    todi,
)
from collegium.losses.divergences import alpha_beta, decoupled, entropy, forward_kl, reverse_kl
from collegium.losses.positional_divergences import Blend, Decoupled, SkewPair


LABELS = torch.tensor([0, 2, 1])


def labelled(student, teacher, alpha=1.0, beta=2.0):
    return decoupled(student, teacher, LABELS[: len(student)], alpha, beta)


DIVERGENCES = {
    "skew_forward_kl": partial(skew_forward_kl, alpha=0.1),
    "skew_forward_kl_tensor": lambda s, t: skew_forward_kl(s, t, torch.full_like(s[:, 0], 0.3)),
    "skew_reverse_kl": partial(skew_reverse_kl, alpha=0.1),
    "detached_skew_reverse_kl": partial(detached_skew_reverse_kl, alpha=0.1),
    "distillm2": lambda s, t: SkewPair(0.1).at(
        s, t, s[:, 0].long(), torch.where(torch.arange(len(s)) % 2 == 0, 1.25, -0.75)
    ),
    "adaptive_kl": partial(adaptive_kl, mu=0.5),
    "alpha_beta": partial(alpha_beta, alpha=0.2, beta=0.7),
    "alpha_beta_0.5_0": partial(alpha_beta, alpha=0.5, beta=0.0),
    "alpha_beta_0_0.5": partial(alpha_beta, alpha=0.0, beta=0.5),
    "alpha_beta_0_0": partial(alpha_beta, alpha=0.0, beta=0.0),
    "todi": todi,
    "taid": partial(taid, t=0.4),
    "decoupled": labelled,
}
BLENDED = {"detached_skew_reverse_kl", "distillm2", "adaptive_kl", "todi", "taid"}
"""A part of these passes no gradient, so differences do not show it."""
each_divergence = pytest.mark.parametrize("name", DIVERGENCES)


def kl(p, q):
    return (p * (p / q).log()).sum(-1)


def official(name, student, teacher):
    """From logits, following the papers' repositories: softmaxes, sorts and detached parts."""
    q, p = student.softmax(-1), teacher.softmax(-1)
    if name.startswith("skew_forward_kl"):
        share = 0.3 if name.endswith("tensor") else 0.1
        return kl(p, share * p + (1 - share) * q)
    if name == "skew_reverse_kl":
        return kl(q, 0.1 * q + 0.9 * p)
    if name == "detached_skew_reverse_kl":
        return kl(q, 0.1 * q.detach() + 0.9 * p)
    if name == "distillm2":
        given, own = kl(p, 0.1 * p + 0.9 * q), kl(q, 0.1 * q.detach() + 0.9 * p)
        return torch.stack([0.75 * given[i] if i % 2 else 1.25 * own[i] for i in range(len(q))])
    if name == "adaptive_kl":
        ordered, index = p.sort(dim=-1, descending=True)
        tail = ordered.cumsum(-1) > 0.5
        tail[:, 0] = False
        errors = (ordered - q.detach().gather(-1, index)).abs()
        head_gap, tail_gap = errors.masked_fill(tail, 0.0).sum(-1), errors.masked_fill(~tail, 0.0).sum(-1)
        return (head_gap * kl(p, q) + tail_gap * kl(q, p)) / (head_gap + tail_gap)
    if name == "alpha_beta":
        inner = p**0.2 * q**0.7 - 0.2 / 0.9 * p**0.9 - 0.7 / 0.9 * q**0.9
        return -inner.sum(-1) / (0.2 * 0.7)
    if name == "alpha_beta_0.5_0":
        return 4 * (p.sqrt() * (p.sqrt() / q.sqrt()).log() - p.sqrt() + q.sqrt()).sum(-1)
    if name == "alpha_beta_0_0.5":
        return 4 * (q.sqrt() * (q.sqrt() / p.sqrt()).log() - q.sqrt() + p.sqrt()).sum(-1)
    if name == "alpha_beta_0_0":
        return 0.5 * ((p / q).log() ** 2).sum(-1)
    if name == "todi":
        weight = torch.sigmoid((p / q).log()).detach()
        return (weight * p * (p / q).log() + (1 - weight) * q * (q / p).log()).sum(-1)
    if name == "taid":
        blend = (0.6 * student.detach() + 0.4 * teacher).softmax(-1)
        return (blend * (blend.log() - student.log_softmax(-1))).sum(-1)
    target = F.one_hot(LABELS[: len(q)], q.shape[-1]).bool()
    binary = [torch.stack([x[target], x.masked_fill(target, 0).sum(-1)], -1) for x in (p, q)]
    others = [(x - 1000.0 * target).softmax(-1) for x in (teacher, student)]
    nckd = (others[0] * (others[0] / others[1].clamp_min(1e-300)).clamp_min(1e-300).log()).sum(-1)
    return kl(*binary) + 2.0 * nckd


@st.composite
def logit_pairs(draw):
    """Logits [n V] of a student and of a teacher."""
    shape = draw(st.integers(1, 3)), draw(st.integers(3, 9))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    scales = [draw(st.sampled_from([0.1, 1.0, 4.0])) for _ in range(2)]
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) * scale for scale in scales)


def value_and_gradient(function, student):
    student = student.clone().requires_grad_()
    value = function(student)
    return value.detach(), torch.autograd.grad(value.sum(), student)[0]


@each_divergence
@given(pair=logit_pairs())
def test_equals_the_official_code_with_its_gradient(name, pair):
    student, teacher = pair
    found = value_and_gradient(lambda s: DIVERGENCES[name](s.log_softmax(-1), teacher.log_softmax(-1)), student)
    wanted = value_and_gradient(lambda s: official(name, s, teacher), student)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("name", sorted(DIVERGENCES.keys() - BLENDED))
def test_gradients_of_student_and_teacher(name):
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 7, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda s, t: DIVERGENCES[name](s.log_softmax(-1), t.log_softmax(-1)), (student, teacher)
    )


@each_divergence
def test_a_functional_gradient_and_a_compiler_find_the_same(name):
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 7, dtype=torch.float64)
    teacher = teacher.log_softmax(-1)

    def function(logits):
        return DIVERGENCES[name](logits.log_softmax(-1), teacher)

    value, gradient = value_and_gradient(function, student)
    torch.testing.assert_close(torch.func.grad(lambda z: function(z).sum())(student), gradient)
    _, pull_back = torch.func.vjp(function, student)
    torch.testing.assert_close(pull_back(torch.ones_like(value))[0], gradient)
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="eager")
    torch.testing.assert_close(compiled(student), value)


@each_divergence
@given(pair=logit_pairs())
def test_is_not_negative(name, pair):
    student, teacher = (logits.log_softmax(-1) for logits in pair)
    assert (DIVERGENCES[name](student, teacher) > -1e-13).all()


@each_divergence
@given(pair=logit_pairs(), shifts=st.tuples(*[st.floats(-100, 100)] * 2))
def test_is_zero_without_gradient_at_the_teacher_wherever_logits_lie(name, pair, shifts):
    teacher = (0.2 * pair[1] + shifts[0]).log_softmax(-1)
    value, gradient = value_and_gradient(
        lambda s: DIVERGENCES[name]((s + shifts[1]).log_softmax(-1), teacher), 0.2 * pair[1]
    )
    assert value.abs().max() < 1e-12
    assert gradient.abs().max() < 1e-12
    moved = (teacher + torch.eye(teacher.shape[1], dtype=torch.float64)[0]).log_softmax(-1)
    assert (DIVERGENCES[name](moved, teacher) > 1e-9).all()


@each_divergence
def test_tokens_that_are_ruled_out_and_sure_ones_leave_everything_finite(name):
    inf = math.inf
    rows = [[0.0, -inf, 1.5, -inf], [1e4, 0.0, -1e4, -inf], [-inf, 0.0, -inf, -inf], [0.0, 0.0, 0.0, 0.0]]
    for dtype in (torch.float32, torch.float64):
        for i in range(len(rows)):
            for j in range(len(rows)):
                pair = [torch.tensor([rows[k]] * 3, dtype=dtype, requires_grad=True) for k in (i, j)]
                value = DIVERGENCES[name](*(logits.log_softmax(-1) for logits in pair))
                gradients = torch.autograd.grad(value.sum(), pair, allow_unused=True)
                assert value.dtype == dtype and value.isfinite().all()
                assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)


@given(pair=logit_pairs())
def test_a_skew_of_0_is_the_plain_kl_and_a_small_one_is_near(pair):
    student, teacher = (logits.log_softmax(-1) for logits in pair)
    assert torch.equal(skew_forward_kl(student, teacher, 0.0), forward_kl(student, teacher))
    assert torch.equal(skew_reverse_kl(student, teacher, 0.0), reverse_kl(student, teacher))
    near = skew_forward_kl(student, teacher, 1e-12)
    torch.testing.assert_close(near, forward_kl(student, teacher), rtol=1e-6, atol=1e-8)


def test_a_skew_bounds_what_a_missed_token_costs():
    one, other = torch.tensor([[[0.0, -math.inf]], [[-math.inf, 0.0]]], dtype=torch.float64)
    assert skew_forward_kl(one, other, 0.1).item() == pytest.approx(-math.log(0.1))
    assert skew_reverse_kl(one, other, 0.1).item() == pytest.approx(-math.log(0.1))


@given(pair=logit_pairs())
def test_alpha_beta_ends_are_the_kls_and_zeros_are_limits(pair):
    student, teacher = (logits.log_softmax(-1) for logits in pair)
    assert torch.equal(alpha_beta(student, teacher, 1.0, 0.0), forward_kl(student, teacher))
    assert torch.equal(alpha_beta(student, teacher, 0.0, 1.0), reverse_kl(student, teacher))
    small = 1e-5
    for alpha, beta in ((0.5, 0.0), (0.0, 0.5), (1.0, 0.0), (0.0, 1.0), (0.0, 0.0)):
        near = alpha_beta(student, teacher, alpha or small, beta or small)
        torch.testing.assert_close(near, alpha_beta(student, teacher, alpha, beta), rtol=1e-2, atol=1e-4)


@given(pair=logit_pairs())
def test_todi_has_the_value_of_both_kls_together(pair):
    student, teacher = (logits.log_softmax(-1) for logits in pair)
    both = forward_kl(student, teacher) + reverse_kl(student, teacher)
    torch.testing.assert_close(todi(student, teacher), both, rtol=1e-10, atol=1e-12)


@given(pair=logit_pairs())
def test_taid_goes_from_nothing_to_the_forward_kl(pair):
    student, teacher = (logits.log_softmax(-1) for logits in pair)
    assert taid(student, teacher, 0.0).abs().max() < 1e-13
    torch.testing.assert_close(taid(student, teacher, 1.0), forward_kl(student, teacher), rtol=1e-11, atol=1e-13)
    shares = torch.linspace(0.1, 0.9, len(student), dtype=torch.float64)
    each = torch.cat([taid(s[None], t[None], x) for s, t, x in zip(student, teacher, shares, strict=True)])
    torch.testing.assert_close(taid(student, teacher, shares), each)


@given(pair=logit_pairs())
def test_the_kl_is_tckd_plus_the_rest_of_nckd(pair):
    student, teacher = (logits.log_softmax(-1) for logits in pair)
    labels = LABELS[: len(student)]
    of_label = teacher.gather(-1, labels[:, None]).squeeze(-1).exp()
    whole = labelled(student, teacher, 1.0, 0.0) + (1 - of_label) * labelled(student, teacher, 0.0, 1.0)
    torch.testing.assert_close(whole, forward_kl(student, teacher), rtol=1e-10, atol=1e-12)


def test_nckd_is_right_where_the_label_is_sure_to_machine_precision():
    others = torch.tensor([[0.5, 0.2, 0.3], [0.1, 0.1, 0.8]], dtype=torch.float64)
    student, teacher = (F.pad(row.log() - 60.0, (1, 0))[None] for row in others)  # label's logit 0, rest -60
    student, teacher = student.float().log_softmax(-1), teacher.float().log_softmax(-1)
    nckd = decoupled(student, teacher, torch.tensor([0]), 0.0, 1.0)
    torch.testing.assert_close(nckd.double(), kl(others[1], others[0])[None], rtol=1e-4, atol=0)


def sorted_head(probs, mu):
    order = probs.sort(stable=True, dim=-1, descending=True)
    tail = order.values.cumsum(-1) > mu
    tail[:, 0] = False
    return torch.zeros_like(probs, dtype=torch.bool).scatter(1, order.indices, ~tail)


@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(2, 300),
    scale=st.sampled_from([0.01, 1.0, 8.0]),
    mu=st.sampled_from([0.01, 0.3, 0.5, 0.9, 0.999]),
)
def test_the_head_is_what_sorting_finds(seed, size, scale, mu):
    generator = torch.Generator().manual_seed(seed)
    probs = (torch.randn(5, size, generator=generator, dtype=torch.float64) * scale).softmax(-1)
    assert torch.equal(head_mask(probs, mu), sorted_head(probs, mu))


@given(seed=st.integers(0, 2**32 - 1), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_equal_tokens_enter_the_head_in_their_order(seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, 4, (6, 16), generator=generator) + F.one_hot(torch.arange(6), 16)
    probs = (counts / 64.0).to(dtype)  # exact, with many ties
    assert torch.equal(head_mask(probs, 19.5 / 64), sorted_head(probs, 19.5 / 64))
    assert torch.equal(head_mask(probs, 12 / 64), sorted_head(probs, 12 / 64))


@given(pair=logit_pairs())
def test_adaptive_kl_lies_between_the_kls_that_its_share_weighs(pair):
    student, teacher = (logits.log_softmax(-1) for logits in pair)
    share = adaptive_share(student, teacher)
    assert ((share >= 0) & (share <= 1)).all()
    ends = torch.stack([forward_kl(student, teacher), reverse_kl(student, teacher)])
    value = adaptive_kl(student, teacher)
    assert ((value >= ends.amin(0) - 1e-12) & (value <= ends.amax(0) + 1e-12)).all()


@pytest.mark.parametrize(
    ("function", "parameters", "message"),
    [
        (skew_forward_kl, (1.0,), r"skew alpha is 1.0; it must lie in \[0, 1\)"),
        (detached_skew_reverse_kl, (-0.1,), r"must lie in \[0, 1\)"),
        (adaptive_kl, (1.0,), r"mu is 1.0"),
        (alpha_beta, (-1.0, 0.5), r"both must be 0 or more"),
        (alpha_beta, (0.5, math.nan), r"both must be 0 or more"),
    ],
)
def test_rejects_parameters_outside_their_bounds(function, parameters, message):
    logprobs = torch.zeros(1, 2).log_softmax(-1)
    with pytest.raises(ValueError, match=message):
        function(logprobs, logprobs, *parameters)


def test_a_head_needs_full_precision():
    with pytest.raises(ValueError, match="float32 or float64"):
        head_mask(torch.full((1, 4), 0.25, dtype=torch.bfloat16))


def test_blend_is_the_cross_entropy_that_the_official_code_minimises():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 6, dtype=torch.float64).log_softmax(-1)
    share = torch.tensor([0.4, 0.7, 1.0], dtype=torch.float64)
    found = Blend().at(student, teacher, LABELS, share)
    blend = ((1 - share[:, None]) * student + share[:, None] * teacher).softmax(-1)
    torch.testing.assert_close(found, -(blend * student).sum(-1), rtol=1e-12, atol=0)
    torch.testing.assert_close(found - entropy(blend.log()), taid(student, teacher, share), rtol=1e-10, atol=1e-12)


def test_decoupled_sets_the_label_apart():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 6, dtype=torch.float64).log_softmax(-1)
    found = Decoupled(1.0, 2.0).at(student, teacher, LABELS, torch.zeros(3))
    torch.testing.assert_close(found, labelled(student, teacher))

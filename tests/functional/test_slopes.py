"""Gradients that are written out, against autograd through the divergences."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from collegium.functional import blended_divergences, divergences, slopes


NUM_ROWS, VOCAB_SIZE = 4, 11
SHARES = torch.tensor([0.02, 0.1, 0.5, 0.9], dtype=torch.float64)
LABELS = torch.tensor([0, 3, 10, 3])
OWN = torch.tensor([True, False, False, True])

PAIRS = {
    "forward_kl": (slopes.forward_kl, divergences.forward_kl, ()),
    "reverse_kl": (slopes.reverse_kl, divergences.reverse_kl, ()),
    "todi": (slopes.todi, blended_divergences.todi, ()),
    "adaptive_kl_0.5": (slopes.adaptive_kl, blended_divergences.adaptive_kl, (0.5,)),
    "adaptive_kl_0.9": (slopes.adaptive_kl, blended_divergences.adaptive_kl, (0.9,)),
    "taid_0.4": (slopes.taid, blended_divergences.taid, (0.4,)),
    "taid_tensor": (slopes.taid, blended_divergences.taid, (SHARES,)),
    "distillm2": (slopes.distillm2, blended_divergences.distillm2, (OWN, SHARES, 1.25)),
    "decoupled": (slopes.decoupled, divergences.decoupled, (LABELS, 1.0, 2.0)),
    **{
        f"{name}_{alpha}": (getattr(slopes, name), getattr(blended_divergences, name), (alpha,))
        for name in ("skew_forward_kl", "skew_reverse_kl", "detached_skew_reverse_kl")
        for alpha in (0.0, 0.1, 0.9)
    },
    **{
        f"{name}_tensor": (getattr(slopes, name), getattr(blended_divergences, name), (SHARES,))
        for name in ("skew_forward_kl", "skew_reverse_kl", "detached_skew_reverse_kl")
    },
    **{
        f"alpha_beta_{alpha}_{beta}": (slopes.alpha_beta, divergences.alpha_beta, (alpha, beta))
        for alpha, beta in [(0.2, 0.7), (0.5, 0.5), (1, 0), (0, 1), (0.5, 0), (0, 0.5), (0, 0), (1.5, 2)]
    },
}
each_pair = pytest.mark.parametrize("name", PAIRS)


def by_autograd(function, student, teacher):
    student = student.clone().requires_grad_()
    value = function(student.log_softmax(-1), teacher)
    return value.detach(), torch.autograd.grad(value.sum(), student)[0]


def written_out(name, student, teacher):
    slope, _, parameters = PAIRS[name]
    student = student.log_softmax(-1).clamp_min(divergences.LOG_ZERO)
    return slope(student, teacher.exp(), teacher.clamp_min(divergences.LOG_ZERO), *parameters)


def expected(name, student, teacher):
    _, divergence, parameters = PAIRS[name]
    return by_autograd(lambda s, t: divergence(s, t, *parameters), student, teacher)


@each_pair
@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([0.1, 1.0, 6.0]))
def test_equals_autograd(name, seed, scale):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, NUM_ROWS, VOCAB_SIZE, generator=generator, dtype=torch.float64) * scale
    teacher = teacher.log_softmax(-1)
    for found, wanted in zip(written_out(name, student, teacher), expected(name, student, teacher), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


@each_pair
def test_tokens_that_are_ruled_out_and_sure_ones(name):
    inf = math.inf
    student = torch.zeros(NUM_ROWS, VOCAB_SIZE, dtype=torch.float64)
    teacher = torch.zeros_like(student)
    student[0, 1:3], teacher[0, 2:4] = -inf, -inf  # by one, by both, by the other
    student[1, 3], teacher[1, 3] = 60.0, 1e4  # the label, and nothing else
    student[2, 0], teacher[2, 10] = 1e4, 1e4
    student[3] = torch.linspace(-4, 4, VOCAB_SIZE)
    teacher = teacher.log_softmax(-1)
    value, gradient = written_out(name, student, teacher)
    wanted_value, wanted_gradient = expected(name, student, teacher)
    assert value.isfinite().all() and gradient.isfinite().all()
    torch.testing.assert_close(value, wanted_value, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-9, atol=1e-10)


@each_pair
def test_is_one_graph_of_a_compiler(name):
    slope, _, parameters = PAIRS[name]
    torch.manual_seed(0)
    student, teacher = torch.randn(2, NUM_ROWS, VOCAB_SIZE, dtype=torch.float64).log_softmax(-1)
    torch._dynamo.reset()
    compiled = torch.compile(slope, fullgraph=True, dynamic=True, backend="eager")
    for found, wanted in zip(
        compiled(student, teacher.exp(), teacher, *parameters),
        slope(student, teacher.exp(), teacher, *parameters),
        strict=True,
    ):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("beta", [0.5, 8.0])
def test_decoupled_gradient_of_a_sure_label_is_exact_in_float32(beta):
    student = torch.tensor([[30.0, 0.0, 1.0, 2.0]])
    teacher = torch.tensor([[25.0, 2.0, 0.5, 0.0]])
    labels = torch.tensor([0])

    def run(dtype):
        logprobs = teacher.to(dtype).log_softmax(-1)
        return slopes.decoupled(student.to(dtype).log_softmax(-1), logprobs.exp(), logprobs, labels, 1.0, beta)

    for found, wanted in zip(run(torch.float32), run(torch.float64), strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=0)


def test_a_partial_fits_where_a_slope_is_asked_for():
    student, teacher = torch.randn(2, 2, 5).log_softmax(-1)
    value, gradient = partial(slopes.skew_forward_kl, alpha=0.1)(student, teacher.exp(), teacher)
    assert value.shape == (2,) and gradient.shape == (2, 5)

"""The loss against formulas that others use: GKD's as TRL computes it, and torch's kl_div."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import kl_div, linear

from collegium.fused import chunked, fused
from collegium.fused.chunked import KdTarget
from collegium.losses.divergences import forward_kl, generalized_jsd, reverse_kl
from collegium.losses.fusion import geometric_logprobs, mixture_logprobs
from collegium.losses.weighting import Weighting
from collegium.signals.contracts import Batch, predicted_positions
from collegium.signals.signals import ProjectedSignal
from tests.support.heads import WeightHead


B, S, D, V = 3, 9, 16, 50


def gkd_loss(student_logits, teacher_logits, labels, beta, temperature):
    """GKD (arXiv:2306.13649) on a padded batch: a mean over predicted tokens, without temperature^2.

    As TRL's `generalized_jsd_loss`: the two KLs at beta 0 and 1, the mixture by a log-sum-exp of a stack.
    """
    predicts = labels[:, 1:] != -100
    student = (student_logits[:, :-1] / temperature).log_softmax(-1)[predicts]
    teacher = (teacher_logits[:, :-1] / temperature).log_softmax(-1)[predicts]
    pointwise = partial(kl_div, reduction="none", log_target=True)  # its first argument is the approximation
    if beta == 0:
        divergence = pointwise(student, teacher)
    elif beta == 1:
        divergence = pointwise(teacher, student)
    else:
        mixture = torch.stack([student + math.log(1 - beta), teacher + math.log(beta)]).logsumexp(0)
        divergence = beta * pointwise(mixture, teacher) + (1 - beta) * pointwise(mixture, student)
    return divergence.sum() / predicts.sum()


def draw_batch():
    """Prompts of 2 tokens that are not predicted, and padding on the right."""
    labels = torch.randint(V, (B, S))
    labels[:, :2] = labels[0, 6:] = labels[1, 8:] = -100
    return Batch(
        input_ids=torch.randint(V, (B, S)),
        attention_mask=torch.ones(B, S, dtype=torch.bool),
        labels=labels,
        position_ids=torch.arange(S).expand(B, S),
        sample_ids=torch.arange(B),
    )


@pytest.mark.parametrize("driver", [chunked.distillation_loss, fused.distillation_loss])
@pytest.mark.parametrize("fusion", [mixture_logprobs, geometric_logprobs])
@pytest.mark.parametrize("temperature", [1.0, 0.9])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 0.1])
def test_one_teacher_is_gkd(beta, temperature, fusion, driver):
    torch.manual_seed(0)
    batch = draw_batch()
    positions = predicted_positions(batch)
    states, teacher_states = torch.randn(2, B, S, D)
    heads = torch.randn(2, V, D) / 4

    def gradients(loss_of):
        hidden, head_weight = states.clone().requires_grad_(), heads[0].clone().requires_grad_()
        loss = loss_of(hidden, head_weight)
        return loss, torch.autograd.grad(loss, (hidden, head_weight))

    def ours(hidden, head_weight):
        sums = driver(
            positions.select(hidden),
            WeightHead(head_weight),
            positions,
            [ProjectedSignal(positions.select(teacher_states), partial(linear, weight=heads[1]))],
            Weighting("uniform"),
            kd_weight=1.0,
            target=KdTarget(
                partial(generalized_jsd, beta=beta), fusion, temperature, scale_by_squared_temperature=False
            ),
            chunk_size=5,
        )
        return sums.loss / len(positions)

    def theirs(hidden, head_weight):
        return gkd_loss(hidden @ head_weight.T, teacher_states @ heads[1].T, batch.labels, beta, temperature)

    (loss, found), (expected_loss, expected) = gradients(ours), gradients(theirs)
    assert loss > 0.01
    torch.testing.assert_close(loss, expected_loss, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@given(seed=st.integers(0, 2**32 - 1))
def test_kls_equal_those_of_torch(seed):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 5, V, generator=generator, dtype=torch.float64).log_softmax(-1)
    expected = kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(forward_kl(student, teacher), expected, rtol=1e-12, atol=1e-14)
    expected = kl_div(teacher, student, reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(reverse_kl(student, teacher), expected, rtol=1e-12, atol=1e-14)

"""Rewards, returns and weights of positions, against plain loops written from the papers and their code."""

import math
from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from collegium.losses.divergences import reverse_kl
from collegium.losses.policy import (
    agreement,
    discounted_returns,
    geometric_verdict,
    mixture_verdict,
    moments,
    policy_weights,
    rewards,
    routed_verdict,
    surrogate_weights,
    whitened,
)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_verdicts_are_what_the_fused_teachers_say():
    teachers, weights = randn(6, 3).log_softmax(-1), randn(6, 3, seed=1).softmax(-1)
    mixed, summed = [], []
    for own, shares in zip(teachers.tolist(), weights.tolist(), strict=True):
        mixed.append(math.log(sum(w * math.exp(p) for w, p in zip(shares, own, strict=True))))
        summed.append(sum(w * p for w, p in zip(shares, own, strict=True)))
    assert mixture_verdict(teachers, weights).tolist() == pytest.approx(mixed, rel=1e-10)
    assert geometric_verdict(teachers, weights).tolist() == pytest.approx(summed, rel=1e-10)
    best = [row[int(w.argmax())] for row, w in zip(teachers, weights, strict=True)]
    assert torch.equal(routed_verdict(teachers, weights), torch.stack(best))


def test_a_teacher_of_weight_0_may_say_anything():
    teachers = torch.tensor([[-1.0, -math.inf], [-2.0, -math.inf]])
    weights = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    for verdict in (mixture_verdict, geometric_verdict, routed_verdict):
        assert torch.equal(verdict(teachers, weights), teachers[:, 0])


def test_rewards_are_scaled_then_clipped_and_0_without_teachers():
    verdict, student = torch.tensor([-1.0, -200.0, -1.0]), torch.tensor([-2.0, -1.0, -5.0])
    covered = torch.tensor([True, True, False])
    assert rewards(verdict, student, covered=covered, scale=0.5, clip=100.0).tolist() == [2.0, -100.0, 0.0]


def test_agreement_is_of_all_valid_teachers():
    teachers = torch.tensor([[-1.0, -1.0], [-1.0, -3.0], [-3.0, -3.0], [-1.0, -3.0], [-1.0, -1.0]])
    valid = torch.tensor([[True, True], [True, True], [True, True], [True, False], [False, False]])
    assert agreement(teachers, torch.full((5,), -2.0), valid).tolist() == [True, False, True, True, False]


def returns_of_the_official_code(rewards: torch.Tensor, mask: torch.Tensor, gamma: float) -> torch.Tensor:
    """`_get_advantages_and_returns` of minillm/losses.py: backwards, and divided by what is left."""
    result = torch.zeros_like(rewards)
    for row in range(len(rewards)):
        length, last = int(mask[row].sum()), 0.0
        for t in reversed(range(length)):
            last = float(rewards[row, t]) + gamma * last
            result[row, t] = last / (length - t)
    return result


@given(st.floats(0, 1), st.lists(st.integers(0, 7), min_size=1, max_size=4), st.integers(0, 9))
def test_returns_are_those_of_the_official_code(gamma, lengths, seed):
    given_rewards = randn(len(lengths), 7, seed=seed)
    mask = torch.arange(7) < torch.tensor(lengths).unsqueeze(-1)
    ours = discounted_returns(given_rewards, mask, gamma)
    assert torch.allclose(ours, returns_of_the_official_code(given_rewards, mask, gamma), atol=1e-10)
    garbage = given_rewards.masked_fill(~mask, math.nan)
    assert torch.equal(discounted_returns(garbage, mask, gamma), ours), "what is beyond the end does not count"


def test_gamma_0_leaves_each_token_its_own_reward():
    values, mask = randn(2, 3), torch.ones(2, 3, dtype=torch.bool)
    assert torch.equal(discounted_returns(values, mask, 0.0), values / torch.tensor([3.0, 2.0, 1.0]))


def test_whitening_is_of_the_whole_step_however_it_is_cut():
    values = 3 * randn(20) + 5
    expected = (values - values.mean()) / (values.var(unbiased=False) + 1e-8).sqrt()
    parts = values.split([0, 7, 12, 1])
    total = sum(moments(part) for part in parts)
    ours = torch.cat([whitened(part, total) for part in parts])
    assert torch.allclose(ours, expected, atol=1e-10)


def test_whitening_one_value_or_none_is_finite():
    assert whitened(torch.tensor([3.0]), moments(torch.tensor([3.0]))).tolist() == [0.0]
    assert whitened(torch.zeros(0), moments(torch.zeros(0))).tolist() == []


def surrogate_of_the_official_code(logprobs, old_logprobs, advantages, importance, clip):
    """`_pg_loss` of minillm/losses.py, as a sum."""
    ratio = torch.exp(logprobs - old_logprobs) * importance
    unclipped, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip)
    return torch.max(unclipped, clipped).sum()


@pytest.mark.parametrize("moved", [0.0, 0.05, 0.6], ids=["first update", "near", "far"])
def test_weighted_log_likelihood_has_the_gradient_of_the_clipped_surrogate(moved):
    """Through a whole softmax, in float64, for rho = 1 and others."""
    n, vocab = 64, 7
    logits, labels = randn(n, vocab).requires_grad_(), torch.arange(n) % vocab
    old = (logits.detach() + moved * randn(n, vocab, seed=1)).log_softmax(-1)
    old_logprobs = old.gather(-1, labels[:, None]).squeeze(-1)
    advantages, log_importance = randn(n, seed=2), 0.3 * randn(n, seed=3)
    logprobs = logits.log_softmax(-1).gather(-1, labels[:, None]).squeeze(-1)
    surrogate = surrogate_of_the_official_code(logprobs, old_logprobs, advantages, log_importance.exp(), 0.2)
    (expected,) = torch.autograd.grad(surrogate, logits, retain_graph=True)
    weights = surrogate_weights(advantages, log_importance, (logprobs - old_logprobs).detach(), clip=0.2)
    (ours,) = torch.autograd.grad((weights * -logprobs).sum(), logits)
    assert torch.allclose(ours, expected, atol=1e-10)
    assert 0 < (weights == 0).sum() < n, "some are clipped, some not"


def test_the_policy_gradient_is_the_reverse_kls_on_average():
    """Over all tokens of the vocabulary, reward and single step agree: -E[r] = KL(q || p), and so do gradients."""
    logits, teacher = randn(1, 9).requires_grad_(), randn(1, 9, seed=1).log_softmax(-1)
    logprobs = logits.log_softmax(-1)[0]
    (expected,) = torch.autograd.grad(reverse_kl(logprobs[None], teacher).sum(), logits, retain_graph=True)
    reward = rewards(teacher[0], logprobs.detach(), covered=torch.ones(9, dtype=torch.bool), scale=1.0)
    # Without a clip, and with sampling replaced by its expectation.
    weights = surrogate_weights(reward, torch.zeros(9, dtype=torch.float64), clip=1e9)
    (ours,) = torch.autograd.grad((logprobs.detach().exp() * weights * -logprobs).sum(), logits)
    assert torch.allclose(ours, expected, atol=1e-10)


class TestPositionWeights:
    MASK = torch.tensor([True, True, False, False, False, False])
    HALVES: ClassVar = {"kd_weight": 0.5, "ce_weight": 0.5}

    def test_each_kind_of_text_is_a_mean_over_its_own(self):
        weights = policy_weights(self.MASK, None, torch.tensor([2.0, 4.0]), fraction=0.5, **self.HALVES)
        divergence = torch.tensor([1.0, 3.0, 1.0, 1.0, 1.0, 5.0])
        loss = float((weights.kd * divergence).sum() / 6)
        assert loss == pytest.approx(0.5 * 2.0 + 0.5 * (0.5 * 2.0))
        nll = torch.tensor([math.pi, math.e, 1.0, 2.0, 3.0, 6.0])
        assert float((weights.ce * nll).sum() / 6) == pytest.approx(0.5 * (0.5 * 3.0)), "none on the student's"

    @pytest.mark.parametrize("mask", [torch.ones(3, dtype=torch.bool), torch.zeros(3, dtype=torch.bool)])
    def test_one_kind_alone_is_a_plain_mean(self, mask):
        totals = torch.tensor([float(mask.sum()), float((~mask).sum())])
        weights = policy_weights(mask, None, totals, fraction=0.3, kd_weight=0.25, ce_weight=0.75)
        assert weights.kd.tolist() == ([1.0] * 3 if mask[0] else [0.25] * 3)
        assert weights.ce.tolist() == ([0.0] * 3 if mask[0] else [0.75] * 3)

    def test_surrogate_is_read_on_policy_only(self):
        surrogate = torch.tensor([2.0, -3.0, math.nan, math.nan, math.nan, math.nan])
        weights = policy_weights(
            self.MASK,
            surrogate,
            torch.tensor([2.0, 0.0]),
            fraction=1.0,
            kd_weight=0.5,
            ce_weight=0.5,
            single_step_weight=0.7,
        )
        assert weights.ce[:2].tolist() == [2.0, -3.0]
        assert torch.isfinite(weights.ce).all()
        assert weights.kd.tolist() == pytest.approx([0.7, 0.7, 0.5, 0.5, 0.5, 0.5])

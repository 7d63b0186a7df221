"""Learning from one's own text: rewards, returns, and the policy gradient as weights of positions.

The reward of a token is how much more probable the teachers find it than the student who wrote it:
r_t = log p(y_t) - log q(y_t). Its expectation under the student is -KL(q || p), so that maximising it
minimises the reverse KL (MiniLLM, arXiv:2306.08543; on-policy distillation with several teachers,
arXiv:2601.02780 and arXiv:2609.33791).

The gradient of PPO's clipped surrogate is that of a negative log-likelihood with one weight a position, which
may be negative. So a loss that takes weights of positions, sum_t a_t nll_t + sum_t k_t D_t, is all that a policy
gradient needs, and logits stay where they are: in the loss's chunks.

All of it is without gradient. R rollouts of at most T tokens; N = all their tokens, in reading order.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from collegium.losses.divergences import LOG_ZERO
from collegium.signals.contracts import PositionWeights


JudgeName = Literal["mixture", "route", "consensus"]


def mixture_verdict(teacher_logprobs: Float[Tensor, "N M"], weights: Float[Tensor, "N M"]) -> Float[Tensor, " N"]:
    """log sum_m w_m p_m(y): the token under the arithmetic mixture."""
    absent = weights == 0
    terms = teacher_logprobs.clamp_min(LOG_ZERO) + weights.masked_fill(absent, 1.0).log()
    return terms.masked_fill(absent, -torch.inf).logsumexp(-1)


def geometric_verdict(
    teacher_logprobs: Float[Tensor, "N M"], weights: Float[Tensor, "N M"]
) -> Float[Tensor, " N"]:
    """sum_m w_m log p_m(y): the normaliser is left out, as it does not depend on the token."""
    terms = weights * teacher_logprobs.clamp_min(LOG_ZERO)
    return terms.masked_fill(weights == 0, 0.0).sum(-1)


def routed_verdict(teacher_logprobs: Float[Tensor, "N M"], weights: Float[Tensor, "N M"]) -> Float[Tensor, " N"]:
    """log p_m(y) of the teacher of greatest weight; of the first of them where several are equal."""
    chosen = weights.argmax(-1, keepdim=True)
    return teacher_logprobs.gather(-1, chosen).squeeze(-1).clamp_min(LOG_ZERO)


def rewards(
    verdict: Float[Tensor, " N"],
    student_logprobs: Float[Tensor, " N"],
    *,
    covered: Bool[Tensor, " N"],
    scale: float = 0.5,
    clip: float = 100.0,
) -> Float[Tensor, " N"]:
    """(log p - log q) / scale, within +-clip; 0 where no teacher has any weight.

    Args:
        verdict: Log-probability of each token under the judging teachers.
        student_logprobs: Under the student that wrote it, at temperature 1.
        covered: Where some teacher has weight.
        scale: Divides the reward (MiniLLM: 0.5; whitening makes it matter for the clipping only).
        clip: Bound of a single reward after scaling (MiniLLM's scripts: 100).
    """
    ratio = (verdict - student_logprobs) / scale
    return torch.where(covered, ratio, 0.0).clamp(-clip, clip)


def agreement(
    teacher_logprobs: Float[Tensor, "N M"], student_logprobs: Float[Tensor, " N"], valid: Bool[Tensor, "N M"]
) -> Bool[Tensor, " N"]:
    """Mark tokens that all valid teachers like better than the student does, or all like less.

    The consensus rule of arXiv:2609.33791 without its tolerance; a reward is kept there and 0 elsewhere.
    """
    ratios = teacher_logprobs - student_logprobs.unsqueeze(-1)
    better = ((ratios > 0) | ~valid).all(-1)
    worse = ((ratios < 0) | ~valid).all(-1)
    return (better | worse) & valid.any(-1)


def discounted_returns(
    rewards: Float[Tensor, "R T"], mask: Bool[Tensor, "R T"], gamma: float
) -> Float[Tensor, "R T"]:
    """R_t = sum_{t' >= t} gamma^(t' - t) r_t' / (number of tokens from t on); 0 beyond the end.

    The token itself is part of its return, as in `minillm/losses.py` of microsoft/LMOps; the paper writes the
    sum from t + 1 and leaves the first term to the single-step loss.
    """
    num_tokens = rewards.shape[1]
    steps = torch.arange(num_tokens, device=rewards.device)
    ahead = steps.unsqueeze(0) - steps.unsqueeze(1)  # [T T], t' - t
    powers = torch.where(ahead >= 0, torch.pow(gamma, ahead.clamp_min(0).to(rewards.dtype)), 0.0)
    returns = rewards.masked_fill(~mask, 0.0) @ powers.T
    remaining = mask.flip(-1).cumsum(-1).flip(-1).clamp_min(1)
    return (returns / remaining).masked_fill(~mask, 0.0)


def moments(values: Float[Tensor, " N"]) -> Float[Tensor, "3"]:
    """Count, sum and sum of squares in float64, to be added over micro-batches and ranks."""
    wide = values.double()
    return torch.stack([torch.ones_like(wide).sum(), wide.sum(), (wide**2).sum()])


def whitened(values: Float[Tensor, " N"], total_moments: Float[Tensor, "3"]) -> Float[Tensor, " N"]:
    """(value - mean) / sqrt(variance + 1e-8) with the moments of a whole step, so that no cut of it matters.

    The variance is that of the population, as in the official code over several ranks; but padding, which that
    code counts in as zeros, is left out.
    """
    count, total, squares = total_moments.unbind()
    mean = total / count.clamp_min(1.0)
    variance = (squares / count.clamp_min(1.0) - mean**2).clamp_min(0.0)
    return ((values.double() - mean) * torch.rsqrt(variance + 1e-8)).to(values.dtype)


def surrogate_weights(
    advantages: Float[Tensor, " N"],
    log_importance: Float[Tensor, " N"],
    log_ratio: Float[Tensor, " N"] | float = 0.0,
    *,
    clip: float = 0.2,
) -> Float[Tensor, " N"]:
    """Weights a_t such that sum_t a_t nll_t has the gradient of the clipped surrogate.

    The surrogate is sum_t -min(w rho A, clip(w rho, 1 - clip, 1 + clip) A) with w = q_old / p~ and
    rho = q / q_old (arXiv:2306.08543, algorithm 1; `_pg_loss` in `minillm/losses.py`). Since d rho = rho d log q,
    its gradient is -w rho A d log q where the first branch is the smaller, and 0 where the clipped one is.

    Args:
        advantages: A, whitened returns.
        log_importance: log w, the student that sampled against what was sampled from.
        log_ratio: log rho, the student of now against the one that sampled: 0 at the first update.
        clip: Half-width of the range of w rho.
    """
    ratio = (log_importance + log_ratio).exp()
    clipped = torch.where(advantages > 0, ratio > 1.0 + clip, ratio < 1.0 - clip)
    return (advantages * ratio).masked_fill(clipped, 0.0)


def policy_weights(
    on_policy: Bool[Tensor, " N"],
    surrogate: Float[Tensor, " N"] | None,
    totals: Float[Tensor, "2"],
    *,
    fraction: float,
    kd_weight: float,
    ce_weight: float,
    single_step_weight: float = 1.0,
) -> PositionWeights:
    """Weights of the divergence and of the cross-entropy at each position of a micro-batch.

    A rollout's positions have divergence 1 and no cross-entropy (GKD), or `single_step_weight` and the
    surrogate (MiniLLM); the corpus has kd_weight and ce_weight. In a step that holds both, each is a mean
    over its own tokens, weighted by fraction and 1 - fraction, whatever the lengths: divided by all
    tokens of the step, as every term is, it comes to that.

    Args:
        on_policy: Positions whose label the student wrote.
        surrogate: Surrogate of each position, read where `on_policy`; None for a divergence alone.
        totals: Positions of rollouts and of the corpus in the whole step.
        fraction: Weight of the rollouts.
        kd_weight: Weight of the divergence on the corpus.
        ce_weight: Weight of the cross-entropy on the corpus.
        single_step_weight: Weight of the divergence on rollouts beside a surrogate.
    """
    rolled, plain = totals.double().unbind()
    both = (rolled > 0) & (plain > 0)
    share_rolled = torch.where(both, fraction * (rolled + plain) / rolled.clamp_min(1.0), 1.0)
    share_plain = torch.where(both, (1.0 - fraction) * (rolled + plain) / plain.clamp_min(1.0), 1.0)
    dtype = torch.float32 if surrogate is None else surrogate.dtype
    scale = torch.where(on_policy, share_rolled, share_plain).to(dtype)
    own_kd = 1.0 if surrogate is None else single_step_weight
    own_ce = torch.zeros_like(scale) if surrogate is None else surrogate
    kd = torch.where(on_policy, own_kd, kd_weight) * scale
    ce = torch.where(on_policy, own_ce, ce_weight) * scale
    return PositionWeights(kd, ce)

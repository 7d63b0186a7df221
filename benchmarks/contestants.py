"""Ours and the two programs that one writes without a library: all logits at once, and plain autograd.

All three compute the same loss (half fused forward KL, half cross-entropy, teachers weighted by their
entropy over windows of 128 tokens) and leave its gradient in the student's hidden states and head;
`gradient_differences` says how far apart they are.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import kl_div, nll_loss

from benchmarks.problem import Problem
from collegium.fused.chunked import KdTarget
from collegium.fused.fused import distillation_loss
from collegium.losses.divergences import forward_kl
from collegium.losses.fusion import mixture_logprobs
from collegium.losses.teacher_weights import entropy_weights, group_mean
from collegium.losses.weighting import Weighting
from collegium.models.head import ProjectionHead
from collegium.training.chunk_size import default_chunk_size


Contestant = Callable[[Problem], None]
"""Leaves a gradient in the problem's student hidden states and head."""

KD_WEIGHT = 0.5
_WEIGHTING = Weighting()


def ours(problem: Problem) -> None:
    """The fused loss, with the defaults of the package."""
    device = problem.student_hidden.device
    sums = distillation_loss(
        problem.student_hidden,
        ProjectionHead(problem.student_head, problem.vocab_size),
        problem.positions,
        problem.signals,
        _WEIGHTING,
        kd_weight=KD_WEIGHT,
        target=KdTarget(forward_kl, mixture_logprobs),
        chunk_size=default_chunk_size(problem.vocab_size, device),
    )
    (sums.loss / problem.num_positions).backward()


def naive_loop(problem: Problem) -> None:
    """All logits of one teacher after the other, added up with unnormalised weights."""
    mixture = torch.zeros(problem.num_positions, problem.vocab_size)
    total = torch.zeros(problem.num_positions, 1)
    for m in range(problem.num_teachers):
        probs, score = _scored_probs(problem, m)
        mixture.addcmul_(probs, score)
        total += score
        del probs
    _train_on(problem, mixture.div_(total))


def naive_stacked(problem: Problem) -> None:
    """All logits of all teachers in one tensor [M N V]."""
    logprobs = torch.stack([problem.teacher_logits(m) for m in range(problem.num_teachers)]).log_softmax(-1)
    probs = logprobs.exp()
    entropies = -(probs * logprobs).sum(-1).t()  # [N M]
    weights = entropy_weights(_window_mean(problem, entropies), tau=_WEIGHTING.tau)
    _train_on(problem, torch.einsum("nm,mnv->nv", weights, probs))


def gradient_differences(problem: Problem, contestant: Contestant, reference: Contestant) -> tuple[float, float]:
    """Largest difference of the two gradients (hidden states, head), relative to the largest entry."""
    gradients = []
    for call in (contestant, reference):
        problem.clear_gradients()
        call(problem)
        gradients.append(problem.gradients())
    problem.clear_gradients()
    hidden, head = (float((a - b).abs().max() / b.abs().max()) for a, b in zip(*gradients, strict=True))
    return hidden, head


def _scored_probs(problem: Problem, m: int) -> tuple[Tensor, Tensor]:
    """Probabilities [N V] of one teacher and exp(-entropy / tau) [N 1], scaled away from 0."""
    logprobs = problem.teacher_logits(m).log_softmax(-1)
    probs = logprobs.exp()
    entropies = -(probs * logprobs).sum(-1, keepdim=True)  # [N 1]
    distance = math.log(problem.vocab_size) - _window_mean(problem, entropies)
    return probs, (distance / _WEIGHTING.tau).exp()


def _window_mean(problem: Problem, entropies: Tensor) -> Tensor:
    groups = _WEIGHTING.groups(problem.positions)
    assert groups is not None, "the default weighting averages over windows"
    return group_mean(entropies, torch.ones_like(entropies, dtype=torch.bool), groups)[0]


def _train_on(problem: Problem, target: Tensor) -> None:
    """Half KL(target || student), half cross-entropy, and its gradient."""
    logprobs = problem.student_head(problem.student_hidden).log_softmax(-1)
    kd = kl_div(logprobs, target, reduction="batchmean")
    cross_entropy = nll_loss(logprobs, problem.positions.labels)
    (KD_WEIGHT * kd + (1.0 - KD_WEIGHT) * cross_entropy).backward()

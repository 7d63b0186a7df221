"""Drawing the next token, as a function of the distribution and of numbers drawn beforehand.

Nothing here draws random numbers: a token is the inverse of the cumulative distribution at a given number
in [0, 1), so that what a block is continued with does not depend on its neighbours, on the device's
generator or on how many numbers were drawn before.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor


def shaped_logprobs(
    logits: Float[Tensor, "n V"], *, temperature: float = 1.0, top_p: float = 1.0
) -> Float[Tensor, "n V"]:
    """Log-probabilities after temperature and nucleus (arXiv:1904.09751), in the type of `logits`.

    The nucleus is the smallest set of most probable tokens that holds at least `top_p`; it always has one.
    """
    logprobs = (logits if temperature == 1.0 else logits / temperature).log_softmax(-1)
    if top_p >= 1.0:
        return logprobs
    ordered, order = logprobs.sort(dim=-1, descending=True, stable=True)
    before = ordered.exp().cumsum(-1) - ordered.exp()  # mass of what is more probable
    outside = torch.zeros_like(order, dtype=torch.bool).scatter_(-1, order, before >= top_p)
    return logprobs.masked_fill(outside, -torch.inf).log_softmax(-1)


def mixed_logprobs(
    student_logprobs: Float[Tensor, "n V"], teacher_logprobs: Float[Tensor, "n V"], teacher_share: float
) -> Float[Tensor, "n V"]:
    """log(a p + (1 - a) q), a being the teacher's share (MiniLLM, arXiv:2306.08543, section 2.2)."""
    if teacher_share <= 0.0:
        return student_logprobs
    if teacher_share >= 1.0:
        return teacher_logprobs
    own = student_logprobs + math.log1p(-teacher_share)
    return torch.logaddexp(own, teacher_logprobs + math.log(teacher_share))


def draw(logprobs: Float[Tensor, "n V"], uniforms: Float[Tensor, " n"]) -> Int[Tensor, " n"]:
    """The first token whose cumulative probability exceeds `uniforms`, which lie in [0, 1).

    Summed in float64: over 50,000 tokens float32 is off by 1e-4, enough to draw one of probability 0.
    """
    total = logprobs.double().exp().cumsum(-1)  # [n V]
    heights = uniforms.double().unsqueeze(-1) * total[:, -1:]
    return torch.searchsorted(total, heights, right=True).squeeze(-1).clamp_max_(logprobs.shape[-1] - 1)


def at(logprobs: Float[Tensor, "n V"], tokens: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Log-probability of one token in each row."""
    return logprobs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)

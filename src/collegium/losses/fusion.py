"""Fusion of M teachers' distributions into one target, per position, in log space.

Both fusions take the teachers as an iterable and use them one at a time, so a generator keeps one
teacher's [n V] tensor alive whatever M is. A teacher of weight 0 leaves the result unchanged bit
for bit, and so may hold anything but NaN and +inf there; where all weights are 0 the target is
undefined and the caller must not use it.
"""

from collections.abc import Callable, Iterable
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from collegium.losses.divergences import LOG_ZERO


class Fusion(Protocol):
    """Fuses teachers' log-probabilities: (M x [n V], [n M]) -> [n V]."""

    def __call__(
        self, teacher_logprobs: Iterable[Float[Tensor, "n V"]], weights: Float[Tensor, "n M"]
    ) -> Float[Tensor, "n V"]:
        """Log-probabilities of the fused target."""


def mixture_logprobs(
    teacher_logprobs: Iterable[Float[Tensor, "n V"]], weights: Float[Tensor, "n M"]
) -> Float[Tensor, "n V"]:
    """The arithmetic mixture, log sum_m w_m p_m.

    Its negative log-likelihood is at every token at most -log w_m worse than teacher m's.
    """
    return _fold(add_to_mixture, teacher_logprobs, weights)


def geometric_logprobs(
    teacher_logprobs: Iterable[Float[Tensor, "n V"]], weights: Float[Tensor, "n M"]
) -> Float[Tensor, "n V"]:
    """Normalised log prod_m p_m^{w_m}: the minimiser of sum_m w_m KL(student || teacher m).

    One teacher that rules a token out vetoes it; unlike the mixture it has no log-likelihood floor.
    Where every token is vetoed, those that the least weight speaks against remain.
    """
    return _fold(add_to_product, teacher_logprobs, weights).log_softmax(-1)


def add_to_mixture(
    mixture: Float[Tensor, "n V"] | None,
    logprobs: Float[Tensor, "n V"],
    weight: Float[Tensor, " n"],
) -> Float[Tensor, "n V"]:
    """One more term of `mixture_logprobs`: log(exp(mixture) + weight * exp(logprobs))."""
    absent = weight == 0  # filled before the log too: its gradient there is 1/0
    log_weight = weight.masked_fill(absent, 1.0).log().masked_fill(absent, -torch.inf)
    term = logprobs.clamp_min(LOG_ZERO) + log_weight.unsqueeze(-1)
    return term if mixture is None else torch.logaddexp(mixture, term)


def add_to_product(
    product: Float[Tensor, "n V"] | None,
    logprobs: Float[Tensor, "n V"],
    weight: Float[Tensor, " n"],
) -> Float[Tensor, "n V"]:
    """One more term of `geometric_logprobs`, not normalised: product + weight * logprobs."""
    term = logprobs.clamp_min(LOG_ZERO) * weight.unsqueeze(-1)
    return term if product is None else product + term


def _fold(
    add: Callable[[Tensor | None, Tensor, Tensor], Tensor],
    teacher_logprobs: Iterable[Tensor],
    weights: Tensor,
) -> Tensor:
    fused: Tensor | None = None
    columns = [*weights.unbind(-1)][::-1]
    for logprobs in teacher_logprobs:
        fused = add(fused, logprobs, columns.pop())
        del logprobs  # else it lives, as in the tuple of a zip, while the next teacher's is made
    assert fused is not None and not columns, "as many weights as teachers, and at least one"
    return fused

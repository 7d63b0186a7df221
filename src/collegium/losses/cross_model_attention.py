"""Hidden states of one model made into those of another by attention between their tokens (DSKD).

Two tokenizations of a text have no common positions. DSKD (arXiv:2406.17328, section 3.3) lets the tokens of
the student attend to the teacher's: what a position reads and what it is to predict is the query, the same of
the teacher the key. Rows attend within their segment only, to its past and future.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from collegium.losses.divergences import LOG_ZERO


def attend(
    queries: Float[Tensor, "n K"],
    keys: Float[Tensor, "u K"],
    values: Float[Tensor, "u W"],
    segments: Int[Tensor, " n"],
    key_segments: Int[Tensor, " u"],
) -> Float[Tensor, "n W"]:
    """softmax(queries keys^T / sqrt(K)) values within segments; 0 for a query that has no key.

    Equation 9 of the paper, whose scale sqrt(2 E) is that of its keys, which are two embeddings side by side.
    """
    same = segments.unsqueeze(-1) == key_segments  # [n u]
    scores = queries @ keys.T / math.sqrt(queries.shape[-1])
    # Finite, since a row of nothing but -inf has no softmax.
    weights = scores.masked_fill(~same, LOG_ZERO).softmax(-1).masked_fill(~same, 0.0)
    return weights @ values


def keys_of(segments: Int[Tensor, " n"], key_segments: Int[Tensor, " U"]) -> slice:
    """The keys that queries of these segments may attend to, and maybe others; segments are in order."""
    if not len(segments) or not len(key_segments):
        return slice(0, 0)
    ends = torch.stack([segments[0], segments[-1] + 1])
    first, last = torch.searchsorted(key_segments, ends).tolist()
    return slice(first, last)


def scaled_by_segment(
    states: Float[Tensor, "U K"], segments: Int[Tensor, " U"], num_segments: int
) -> Float[Tensor, "U K"]:
    """Each segment's states divided by the standard deviation of all of their numbers.

    The official code takes that of the whole batch, padding included, so that a step depends on how it is cut.

    Args:
        states: One row a position.
        segments: Segment of each, from 0 on.
        num_segments: How many there are.
    """
    count = torch.bincount(segments, minlength=num_segments) * states.shape[-1]
    total = states.new_zeros(num_segments)
    mean = total.index_add(0, segments, states.sum(-1)) / count.clamp_min(1)
    squares = (states - mean[segments].unsqueeze(-1)).square().sum(-1)
    variance = total.index_add(0, segments, squares) / (count - 1).clamp_min(1)
    deviation = variance.sqrt().clamp_min(torch.finfo(states.dtype).tiny)
    return states / deviation[segments].unsqueeze(-1)


class _Frozen(torch.autograd.Function):
    """A map whose own parameters get no gradient, whatever it is made of."""

    @staticmethod
    def forward(ctx: Any, function: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
        device = inputs.device.type
        ctx.function = function
        ctx.autocast = (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
        ctx.save_for_backward(inputs)
        with torch.no_grad():
            return function(inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        (inputs,) = ctx.saved_tensors
        with torch.enable_grad(), torch.autocast(*ctx.autocast):
            inputs = inputs.detach().requires_grad_()
            outputs = ctx.function(inputs)
        (of_inputs,) = torch.autograd.grad(outputs, inputs, gradients[0])
        return None, of_inputs


def frozen(function: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """function(inputs), with a gradient for `inputs` and none for the function's parameters.

    For a head that may hold adapters, hooks or sharded weights, of which no detached copy can be made; it is
    called a second time in backward.
    """
    result: Tensor = _Frozen.apply(function, inputs)  # type: ignore[no-untyped-call]
    return result

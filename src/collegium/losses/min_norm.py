"""Teacher weights where the teachers' pulls on the student agree best: the shortest common gradient.

For a forward KL the gradient with respect to the student's logits is q - p_k for each teacher k. The weights
are the point of the simplex whose combination is shortest, so no teacher is followed against the others; a
cap keeps one that is almost learned, and so pulls least, from taking all (AE-KD, NeurIPS 2020: Agree to
Disagree: Adaptive Ensemble Knowledge Distillation in Gradient Space).

Only the K x K products of gradients are needed. They take a pass over student and teachers of its own, on rows
so few that all K teachers fit into one chunk's buffer, then a solver whose work does not depend on V: 5 ms for
1,024 positions of three teachers on one core, 105 ms of eight. With V = 16,384 and three teachers a loss takes
3.6 times as long as with uniform weights.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from collegium.losses.stretches import Stretches
from collegium.signals.contracts import Positions


@dataclass(frozen=True)
class MinNormWeighting:
    """The weights a that minimise the norm of sum_k a_k (q - p_k), sum a = 1, 0 <= a <= `max_weight`.

    Over a stretch of several positions the gradient is that of all their logits, so its products are summed.
    Reads no labels, but the student; the weights carry no gradient.

    Attributes:
        granularity: Stretch that shares its weights; as in `Weighting`.
        max_weight: C of the paper; where it is below 1 / K it counts as 1 / K, and weights are uniform.
    """

    granularity: str = "sequence"
    max_weight: float = 0.6

    def weights(
        self, gram: Float[Tensor, "N M M"], valid: Bool[Tensor, "N M"], positions: Positions
    ) -> Float[Tensor, "N M"]:
        """Weights from the products of gradients at each position, 0 where a teacher is not valid."""
        num_teachers = valid.shape[-1]
        counts = valid.to(gram.dtype)
        stretches = Stretches(positions, self.granularity)
        sums = stretches.sums(torch.cat((gram.flatten(1), counts), -1), slice(0, len(positions)))
        gram = sums[:, :-num_teachers].unflatten(-1, (num_teachers, num_teachers))
        # Of teachers that are valid at different positions: gradients of comparable length, and the matrix
        # stays positive semi-definite.
        size = sums[:, -num_teachers:].clamp_min(1.0).rsqrt()
        return min_norm_weights(gram * size.unsqueeze(-1) * size.unsqueeze(-2), valid, self.max_weight)


def gradient_products(
    student: Callable[[slice], Float[Tensor, "r V"]],
    teachers: Sequence[Callable[[slice, Tensor], Float[Tensor, "r V"]]],
    num_positions: int,
    *,
    num_rows: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Float[Tensor, "N M M"]:
    """Return <q - p_k, q - p_l> at each position.

    Args:
        student: Makes log-probabilities of some rows, at the target's temperature.
        teachers: Make the same of each teacher, given the student's.
        num_positions: N.
        num_rows: Rows of all teachers together that are alive at once.
        dtype: Type of the result.
        device: Device of the result.
    """
    num_teachers = len(teachers)
    gram = torch.zeros(num_positions, num_teachers, num_teachers, dtype=dtype, device=device)
    step = max(1, num_rows // (num_teachers + 1))
    for start in range(0, num_positions, step):
        rows = slice(start, min(start + step, num_positions))
        logprobs = student(rows)
        prediction = logprobs.exp()
        gradients = [prediction - teacher(rows, logprobs).exp() for teacher in teachers]
        for k, first in enumerate(gradients):
            for m in range(k + 1):
                gram[rows, k, m] = gram[rows, m, k] = (first * gradients[m]).sum(-1).to(dtype)
    return gram


_RIDGE = 1e-12
"""Part of the mean diagonal that is added to it: equal teachers share equally."""


def min_norm_weights(
    gram: Float[Tensor, "n M M"], valid: Bool[Tensor, "n M"], max_weight: float = 1.0
) -> Float[Tensor, "n M"]:
    """Minimise a' G a over sum a = 1, 0 <= a <= max_weight, among valid teachers; 0 in a row without one.

    An active-set method on all rows at once, in float64: from uniform weights walk to the minimum among
    those that are free, stop at the first bound and hold it; at the minimum, free the held one that gains
    most. The number of rounds is fixed, so nothing is read back from the device.

    Raises:
        ValueError: max_weight is not in (0, 1].
    """
    if not 0.0 < max_weight <= 1.0:
        raise ValueError(f"max_weight is {max_weight}; it must lie in (0, 1]")
    dtype = gram.dtype
    gram = torch.where(valid.unsqueeze(-1) & valid.unsqueeze(-2), gram.double(), 0.0)
    count = valid.sum(-1, keepdim=True).clamp_min(1).double()  # [n 1]
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    mean = _sum(diagonal) / count
    gram = gram / torch.where(mean > 0, mean, 1.0).unsqueeze(-1)
    ridge = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device) * _RIDGE
    problem = _Problem(gram + ridge, valid, count.reciprocal().clamp_min(max_weight))
    walk = _Walk(valid.to(gram.dtype) / count, valid)
    for _ in range(4 * gram.shape[-1]):
        walk = _advanced(problem, walk)
    return walk.weights.to(dtype)


class _Problem(NamedTuple):
    """Minimise a' G a in every row, over valid teachers and up to a cap."""

    gram: Float[Tensor, "n M M"]
    valid: Bool[Tensor, "n M"]
    cap: Float[Tensor, "n 1"]


class _Walk(NamedTuple):
    """The weights that every row has come to, and those that no bound holds."""

    weights: Float[Tensor, "n M"]
    free: Bool[Tensor, "n M"]


def _advanced(problem: _Problem, walk: _Walk) -> _Walk:
    """Take one step, then hold or free one weight; rows at their minimum stay there."""
    gram, valid, cap = problem
    index = torch.arange(valid.shape[-1], device=valid.device)
    target, pull = _minimum(gram, walk)
    step = torch.where(walk.free, target - walk.weights, 0.0)
    room = torch.where(step < 0, walk.weights, cap - walk.weights)
    reach = torch.where(step != 0, room / step.abs().clamp_min(1e-300), torch.inf)
    length, blocking = reach.min(-1, keepdim=True)
    blocked = length < 1.0
    moved = walk.weights + length.clamp_max(1.0) * step
    stopped = blocked & (index == blocking)
    bound = torch.where(step < 0, 0.0, cap.expand_as(step))
    weights = torch.where(stopped, bound, moved)
    # A row at its minimum frees the held weight that gains most by moving off its bound.
    slope = _product(gram, weights)
    gain = torch.where(weights > 0.5 * cap, slope - pull, pull - slope)
    gain = torch.where(valid & ~walk.free, gain, -torch.inf)
    most, freed = gain.max(-1, keepdim=True)
    released = ~blocked & (most > 1e-13) & (index == freed)
    return _Walk(weights, (walk.free & ~stopped) | released)


def _minimum(gram: Float[Tensor, "n M M"], walk: _Walk) -> tuple[Tensor, Tensor]:
    """Find where the free weights are best, and the slope that they have in common there."""
    both = walk.free.unsqueeze(-1) & walk.free.unsqueeze(-2)
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    matrix = torch.where(both, gram, identity)
    held = torch.where(walk.free, 0.0, walk.weights)
    push = _product(gram, held)
    sides = torch.where(walk.free.unsqueeze(-1), torch.stack((torch.ones_like(push), push), -1), 0.0)
    unit, answer = _solved(matrix, sides).unbind(-1)
    total = _sum(unit)
    pull = (1.0 - _sum(held) + _sum(answer)) / torch.where(total > 0, total, 1.0)
    return pull * unit - answer, pull


def _sum(values: Float[Tensor, "n M"]) -> Float[Tensor, "n 1"]:
    """Add up teachers one after another: an absent one's 0 leaves the sum as it is."""
    columns: Sequence[Tensor] = values.split(1, -1)
    return reduce(torch.add, columns)


def _product(matrix: Float[Tensor, "n M M"], vector: Float[Tensor, "n M"]) -> Float[Tensor, "n M"]:
    columns: Sequence[Tensor] = [
        column * factor for column, factor in zip(matrix.unbind(-1), vector.split(1, -1), strict=True)
    ]
    return reduce(torch.add, columns)


def _solved(matrix: Float[Tensor, "n M M"], sides: Float[Tensor, "n M c"]) -> Float[Tensor, "n M c"]:
    """Return matrix^-1 sides by Gauss-Jordan elimination; positive definite matrices need no pivoting."""
    joined = torch.cat((matrix, sides), -1)
    size = matrix.shape[-1]
    for i in range(size):
        row = joined[:, i : i + 1] / joined[:, i : i + 1, i : i + 1]
        rest = joined - joined[:, :, i : i + 1] * row
        joined = torch.cat((rest[:, :i], row, rest[:, i + 1 :]), 1)
    return joined[:, :, size:]

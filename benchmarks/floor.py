"""The bare matrix products of the loss, by the fastest calls found: what no implementation can beat.

M teacher heads, the student's head, the gradient of its hidden states and the gradient of the head.
Which call is fastest depends on the machine and on the rows it gets, so candidates are timed on a slice
of the problem first and every product gets its own winner. The numbers in the buffers mean nothing.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from benchmarks.problem import Problem


Product = Callable[[Tensor, Tensor], Tensor]
"""(x [n K], W [L K]) -> x W^T [n L]."""

_TILE = 4096  # rows of the head's gradient that are added to at a time


@dataclass(frozen=True)
class Choice:
    """The fastest call of one kind of product, and the rows it is given at a time."""

    name: str
    chunk_size: int
    call: Callable[..., Any]

    def __str__(self) -> str:
        return f"{self.name} by {self.chunk_size}"


@dataclass(frozen=True)
class Floor:
    """A contestant that multiplies and does nothing else."""

    head: Choice
    grad_hidden: Choice
    grad_head: Choice

    def __call__(self, problem: Problem) -> None:
        """All products of one loss; the gradients are buffers of the right size."""
        weight = problem.student_head.weight.detach()
        hidden = problem.student_hidden.detach()
        for states, head in zip(problem.teacher_hidden, problem.teacher_heads, strict=True):
            _heads(self.head, states, head.weight)
        _heads(self.head, hidden, weight)
        problem.student_hidden.grad = _grad_hidden(self.grad_hidden, len(hidden), weight)
        problem.student_head.weight.grad = _grad_head(self.grad_head, hidden, weight)

    def __str__(self) -> str:
        return f"heads {self.head}, hidden gradient {self.grad_hidden}, head gradient {self.grad_head}"

    @classmethod
    def find(cls, problem: Problem, *, chunk_sizes: Iterable[int], rows: int, repeats: int = 3) -> "Floor":
        """Time the candidates on the first `rows` positions."""
        weight = problem.student_head.weight.detach()
        hidden = problem.student_hidden.detach()[:rows]
        sizes = [size for size in chunk_sizes if size <= rows]
        heads = {name: partial(_heads, x=hidden, weight=weight) for name in _PRODUCTS}
        backs = {name: partial(_grad_hidden, num_positions=rows, weight=weight) for name in _PRODUCTS}
        adders = {name: partial(_grad_head, hidden=hidden, weight=weight) for name in _ADDERS}
        return cls(
            head=_fastest(heads, _PRODUCTS, sizes, repeats),
            grad_hidden=_fastest(backs, _PRODUCTS, sizes, repeats),
            grad_head=_fastest(adders, _ADDERS, sizes, repeats),
        )


def _heads(choice: Choice, x: Tensor, weight: Tensor) -> None:
    with torch.no_grad():
        for chunk in x.split(choice.chunk_size):
            choice.call(chunk, weight)


def _grad_hidden(choice: Choice, num_positions: int, weight: Tensor) -> Tensor:
    """Rows [n V] of a gradient times the head, for all positions."""
    rows = torch.ones(min(choice.chunk_size, num_positions), len(weight))
    gradient = torch.empty(num_positions, weight.shape[1])
    with torch.no_grad():
        for chunk in gradient.split(choice.chunk_size):
            chunk.copy_(choice.call(rows[: len(chunk)], weight.t()))
    return gradient


def _grad_head(choice: Choice, hidden: Tensor, weight: Tensor) -> Tensor:
    """Transposed rows of a gradient times hidden states, added up over chunks."""
    rows = torch.ones(min(choice.chunk_size, len(hidden)), len(weight))
    gradient = torch.zeros_like(weight)
    with torch.no_grad():
        for chunk in hidden.split(choice.chunk_size):
            choice.call(gradient, rows[: len(chunk)], chunk)
    return gradient


def _fastest(
    runs: Mapping[str, Callable[[Choice], object]],
    calls: Mapping[str, Callable[..., object]],
    chunk_sizes: list[int],
    repeats: int,
) -> Choice:
    choices = [Choice(name, size, calls[name]) for name in runs for size in chunk_sizes]
    best = {choice: float("inf") for choice in choices}
    for _ in range(repeats):
        for choice in choices:
            start = time.perf_counter()
            runs[choice.name](choice)
            best[choice] = min(best[choice], time.perf_counter() - start)
    return min(best, key=best.__getitem__)


def _onednn(x: Tensor, weight: Tensor) -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return result


def _mm(x: Tensor, weight: Tensor) -> Tensor:
    return torch.mm(x, weight.t())


def _addmm(gradient: Tensor, rows: Tensor, hidden: Tensor) -> None:
    gradient.addmm_(rows.t(), hidden)


def _addmm_tiles(gradient: Tensor, rows: Tensor, hidden: Tensor) -> None:
    for start in range(0, len(gradient), _TILE):
        gradient[start : start + _TILE].addmm_(rows[:, start : start + _TILE].t(), hidden)


def _onednn_tiles(gradient: Tensor, rows: Tensor, hidden: Tensor) -> None:
    for start in range(0, len(gradient), _TILE):
        tile = gradient[start : start + _TILE]
        tile.add_(_onednn(rows[:, start : start + _TILE].t(), hidden.t()))


def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


_PRODUCTS: dict[str, Callable[..., object]] = {"linear": linear, "mm": _mm}
_ADDERS: dict[str, Callable[..., object]] = {"addmm": _addmm, "addmm in tiles": _addmm_tiles}
if _has_onednn():
    _PRODUCTS["oneDNN"] = _onednn
    _ADDERS["oneDNN in tiles"] = _onednn_tiles

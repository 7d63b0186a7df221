"""Runs a kernel on rows: compiled where that pays, else on a few rows at a time.

A kernel is a function `kernel(rows, *options)`. Its rows are a tuple, mostly a named one, of tensors with n rows
each, of which the first is [n V]; no row looks at another. Options are hashable: numbers, names, named tuples of
these, and at most a divergence of a user's own. It overwrites its first tensor, or returns tensors of n rows, or
does both. There is no gradient to derive here; the pictures are of memory traffic, for which all of this exists:

    eager, whole chunk            eager, in blocks               compiled
    [n V] -> op -> [n V]          rows 0..r: op, op, op          one loop over the rows; what lies
    [n V] -> op -> [n V]          rows r..2r: op, op, op         between two operations is a
    one [n V] for each op         one [r V] for each op,         register, and no buffer at all
                                  2 MB, which stay in cache

At 128 positions and V = 49,152 on two cores the kernels of a step with three teachers take 120, 42 and 11 ms.
"""

import logging
import shutil
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar, TypeVarTuple, cast

import torch


COMPILED_FROM = 2**20
"""Elements of a buffer from which compiling pays in one run: some seconds once, cached on disk for later runs."""

COMPILED_FROM_IN_MANY = 2**17
"""Likewise in a process of many runs: on a CPU the kernels of a teacher on [512 1024] are 4 to 15 times faster."""

BLOCK_ELEMENTS = 2**19
"""Elements of a block without a compiler: 2 MB in float32."""

RECOMPILE_LIMIT = 64
"""Variants of a kernel that may be compiled in a process: one for each divergence and kind of target."""

Rows = TypeVar("Rows", bound=tuple[Any, ...])
Options = TypeVarTuple("Options")
Result = TypeVar("Result", bound=tuple[Any, ...])

logger = logging.getLogger(__name__)


def compile_for_many_runs() -> None:
    """Compile smaller kernels too from here on: the process makes many runs, which share the cost."""
    global _compiled_from
    _compiled_from = COMPILED_FROM_IN_MANY


def run(kernel: Callable[[Rows, *Options], Result], rows: Rows, *options: *Options) -> Result:
    """Apply `kernel(rows, *options)`, compiled where that pays, else block by block.

    Args:
        kernel: See the module.
        rows: Tensors of n rows, the first of them [n V]; None where a kernel can do without one.
        options: Hashable values; a callable among them is a divergence that the kernel calls.

    Returns:
        The kernel's tensors of n rows, in its own type of tuple.
    """
    # A divergence of a user's own may be what cannot be compiled: it alone is then given up, not the kernel.
    what: tuple[Callable[..., Any], ...] = (kernel, *(option for option in options if callable(option)))
    # One row would make a shape of 1, which torch.compile specialises on: a variant for the last chunk of a run.
    many = len(rows[0]) > 1 and rows[0].numel() >= _compiled_from
    if many and what not in _failures and _compiler_found():
        try:
            # torch's own limit is 8, beyond which it compiles no further variant.
            with torch._dynamo.config.patch(recompile_limit=RECOMPILE_LIMIT):
                result: Result = _compiled(kernel)(rows, *options)
                return result
        except Exception as error:
            # An error of the kernel itself is a bug to be seen, not a reason to run slowly.
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            _compiler_failed(what, error)
    return in_blocks(kernel, rows, *options)


def in_blocks(kernel: Callable[[Rows, *Options], Result], rows: Rows, *options: *Options) -> Result:
    """Apply the kernel to a few rows at a time."""
    size = max(1, BLOCK_ELEMENTS // max(1, rows[0].shape[-1]))
    if len(rows[0]) <= size:
        return kernel(rows, *options)
    parts = []
    for start in range(0, len(rows[0]), size):
        # Slices are views, so what the kernel writes in place arrives in the caller's buffer.
        block = (None if row is None else row[start : start + size] for row in rows)
        parts.append(kernel(_same_kind(rows, block), *options))
    columns = (None if part[0] is None else torch.cat(part) for part in zip(*parts, strict=True))
    return _same_kind(parts[0], columns)


def _same_kind(example: Rows, values: Any) -> Rows:
    """A tuple of these values, named as the example is."""
    kind: Any = type(example)
    return cast(Rows, kind._make(values) if hasattr(kind, "_make") else kind(values))


_compiled_from = COMPILED_FROM

_failures: set[tuple[Callable[..., Any], ...]] = set()
"""Kernels that could not be compiled, with the functions that they call: a user's own may be to blame."""


@cache
def _compiler_found() -> bool:
    return torch.accelerator.is_available() or any(map(shutil.which, ("c++", "g++", "clang++")))


def _compiler_failed(what: tuple[Callable[..., Any], ...], error: Exception) -> None:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    # Once: every later kernel of a machine without a compiler would say the same.
    if not _failures:
        logger.warning("The loss is computed without a compiler, which is slower: %s", reason)
    _failures.add(what)


@cache
def _compiled(kernel: Callable[..., Any]) -> Callable[..., Any]:
    # `dynamic`, as the last chunk of a batch has fewer rows; `fullgraph`, as a break would bring the buffers back.
    compiled: Callable[..., Any] = torch.compile(kernel, dynamic=True, fullgraph=True)
    return compiled

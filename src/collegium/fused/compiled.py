"""Runs a kernel on rows: compiled where that pays, else on a few rows at a time."""

import logging
import shutil
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor


COMPILED_FROM = 2**20
"""Elements of a buffer from which compiling pays in one run: some seconds once, cached on disk for later runs."""

COMPILED_FROM_IN_MANY = 2**17
"""Likewise in a process of many runs: on a CPU the kernels of a teacher on [512 1024] are 4 to 15 times faster."""

BLOCK_ELEMENTS = 2**19
"""Elements of a block without a compiler: 2 MB in float32."""

RECOMPILE_LIMIT = 64
"""Variants of a kernel that may be compiled in a process: one for each divergence and kind of target."""

Kernel = Callable[..., tuple[Tensor, ...]]

logger = logging.getLogger(__name__)


def compile_for_many_runs() -> None:
    """Compile smaller kernels too from here on: the process makes many runs, which share the cost."""
    global _compiled_from
    _compiled_from = COMPILED_FROM_IN_MANY


def run(kernel: Kernel, rows: tuple[Tensor, ...], *options: Any) -> tuple[Tensor, ...]:
    """Apply `kernel(*rows, *options)`, compiled where that pays, else block by block.

    Args:
        kernel: Such as those of `elementwise`. Rows do not depend on one another.
        rows: Tensors of n rows, the first of them [n V].
        options: Plain numbers and flags.

    Returns:
        Its tensors of n rows.
    """
    what = (kernel, *(option for option in options if callable(option)))
    if len(rows[0]) > 1 and rows[0].numel() >= _compiled_from and what not in _failures and _compiler_found():
        try:
            with torch._dynamo.config.patch(recompile_limit=RECOMPILE_LIMIT):
                return _compiled(kernel)(*rows, *options)
        except Exception as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            _compiler_failed(what, error)
    return in_blocks(kernel, rows, *options)


def in_blocks(kernel: Kernel, rows: tuple[Tensor, ...], *options: Any) -> tuple[Tensor, ...]:
    """Apply the kernel to a few rows at a time."""
    size = max(1, BLOCK_ELEMENTS // max(1, rows[0].shape[-1]))
    if len(rows[0]) <= size:
        return kernel(*rows, *options)
    starts = range(0, len(rows[0]), size)
    parts = [kernel(*(row[start : start + size] for row in rows), *options) for start in starts]
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


_compiled_from = COMPILED_FROM

_failures: set[tuple[Callable[..., Any], ...]] = set()
"""Kernels that could not be compiled, with the functions that they call: a user's own may be to blame."""


@cache
def _compiler_found() -> bool:
    return torch.accelerator.is_available() or any(map(shutil.which, ("c++", "g++", "clang++")))


def _compiler_failed(what: tuple[Callable[..., Any], ...], error: Exception) -> None:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    if not _failures:
        logger.warning("The loss is computed without a compiler, which is slower: %s", reason)
    _failures.add(what)


@cache
def _compiled(kernel: Kernel) -> Kernel:
    compiled: Kernel = torch.compile(kernel, dynamic=True, fullgraph=True)
    return compiled

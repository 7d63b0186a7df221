"""The matrix products of an output head, by the fastest call of the machine.

Derivation. The product x = h W^T + b makes the logits [n V] of hidden states h [n D]; given G = dL / dx,

    dL / dh = G W                 since x_v = sum_d h_d W_vd + b_v
    dL / dW = G^T h, summed over the chunks
    dL / db = sum over rows of G

V is by far the largest of the three sizes, so all are cut into tiles of rows of W, which are columns of x and G:

    time ->          tile 1        tile 2        tile 3  ...
    x or G  [n V]    written/read, a tile of columns at a time
    W       [V D]    ====|         ====|         ====|           a tile of rows stays in cache while it is used
    result of the    ====|         ====|         ====|           oneDNN makes a tensor of its own: small, and freed
      library                                                    before the next one
    dL/dh   [n D]    ================================> sum over the tiles (where torch is slow)
    dL/dW   [V D]    tile 1 += ..  tile 2 += ..  tile 3 += ..

On a CPU torch hands float32 products to MKL, which on AMD reaches half of what oneDNN does. At 1,024
positions, V = 49,152 and width 576, on two AVX-512 cores: 0.14 s by oneDNN in chunks of 128
positions, 0.39 s by `torch.nn.functional.linear`; the gradient of the hidden states 0.09 s against
0.22 s, the gradient of the head 0.13 s, in tiles of its rows, against 0.17 s. On other devices
torch's own calls are the fastest and are used.

These calls carry no gradient: a hand-written backward is made of them.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.overrides import TorchFunctionMode


HEAD_TILE_ROWS = 8192
"""Rows of the head whose logits are made at once, 4 MB at 128 positions: 3 % slower than all at once."""

TILE_ROWS = 4096
"""Rows of the head whose gradient is made at once: 6 MB at width 384, so that a sum stays in cache."""


class FastLinear(TorchFunctionMode):
    """While it is entered, linear layers use the fastest call; for what needs no gradient.

    The trunk of a 135M model takes 0.97 s on 1,024 tokens instead of 1.48 s.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Replace `linear`, and nothing else."""
        # A linear layer of transformers calls it with its three tensors by place; anything else is left alone.
        # Quantised weights are tensors of classes of their own, which bring their own product.
        is_plain = len(args) == 3 and not kwargs and type(args[1]) in (Tensor, torch.nn.Parameter)
        if func is torch.nn.functional.linear and is_plain and _for_onednn(args[0]):
            return _onednn(*args)
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def project(
    hidden: Float[Tensor, "n D"],
    weight: Float[Tensor, "V D"],
    bias: Float[Tensor, " V"] | None = None,
    *,
    out: Float[Tensor, "n V"] | None = None,
) -> Float[Tensor, "n V"]:
    """hidden @ weight^T + bias, in `out` or a tensor of its own.

    oneDNN makes its own tensors. Freed and made again for each teacher, large ones leave holes in the C
    library's heap (with five teachers three buffers more than with one), hence tiles that are copied.
    """
    if out is None:
        if _for_onednn(hidden):
            return _onednn(hidden, weight, bias)
        if not _slow_in_torch(hidden):
            return torch.nn.functional.linear(hidden, weight, bias)
        out = hidden.new_empty(len(hidden), len(weight))
    # Without a bias, which is added once at the end: to each tile it would have to be cut as well.
    if _for_onednn(hidden):
        for columns, rows in _tiles(out, weight, HEAD_TILE_ROWS):
            columns.copy_(_onednn(hidden, rows, None))
    elif _slow_in_torch(hidden):
        for columns, rows in _tiles(out, weight, TILE_ROWS):
            columns.copy_(hidden.float() @ rows.float().t())
    else:
        torch.mm(hidden, weight.t(), out=out)
    return out if bias is None else out.add_(bias)


def _tiles(columns: Tensor, rows: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Columns of logits with the rows of the head that they belong to."""
    return zip(columns.split(size, 1), rows.split(size), strict=True)


@torch.no_grad()
def grad_of_hidden(grad_logits: Float[Tensor, "n V"], weight: Float[Tensor, "V D"]) -> Float[Tensor, "n D"]:
    """grad_logits @ weight."""
    if _for_onednn(grad_logits):
        return _onednn(grad_logits, weight.t(), None)
    if _slow_in_torch(grad_logits):
        # In float32 from tile to tile: a sum of V / 4096 summands in bfloat16 would lose its last digits.
        total = torch.zeros(len(grad_logits), weight.shape[1])
        for grad, rows in _tiles(grad_logits, weight, TILE_ROWS):
            total.addmm_(grad.float(), rows.float())
        return total.to(grad_logits.dtype)
    return grad_logits @ weight


@torch.no_grad()
def add_grad_of_weight_(
    total: Float[Tensor, "V D"], grad_logits: Float[Tensor, "n V"], hidden: Float[Tensor, "n D"]
) -> None:
    """Add grad_logits^T @ hidden to `total`, which may have a wider type than the product."""
    # On a GPU one call adds in place; mixed types need the tiles, whose cast copies stay small.
    if total.device.type != "cpu" and total.dtype == grad_logits.dtype:
        total.addmm_(grad_logits.t(), hidden)
        return
    by_onednn = _for_onednn(grad_logits)
    for grad, tile in _tiles(grad_logits, total, TILE_ROWS):
        if by_onednn:
            tile.add_(_onednn(grad.t(), hidden.t(), None))
        else:
            tile.addmm_(grad.t().to(tile.dtype), hidden.to(tile.dtype))


def _for_onednn(operand: Tensor) -> bool:
    return operand.device.type == "cpu" and len(operand) > 0 and _in_onednn(operand.dtype)


def _slow_in_torch(operand: Tensor) -> bool:
    """A bfloat16 product without the instructions for it is 20 to 40 times slower than one in float32."""
    return operand.device.type == "cpu" and operand.dtype == torch.bfloat16


@cache
def _in_onednn(dtype: torch.dtype) -> bool:
    """True if oneDNN has the product: with bfloat16 only where the processor has it too."""
    # A private operator of torch: where a release lacks it, torch's own product is used.
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def _onednn(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise(hidden, weight, bias, "none", [], "")
    return result

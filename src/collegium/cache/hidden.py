"""A teacher as its last hidden states and its head: exact, and larger than lists.

For a width of 576 that is 1,152 bytes a token; everything follows from it, at any temperature.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from safetensors.torch import load, save
from torch import Tensor

from collegium.base.errors import TeacherError
from collegium.fused.elementwise import LogitRows, cap
from collegium.fused.products import project
from collegium.signals.contracts import Batch, Capability, Positions, Teacher
from collegium.signals.signals import Head, LinearHead, ProjectedSignal, TransparentHead


class StoredHead:
    """A head read from a cache.

    Args:
        linear: What it computes.
    """

    def __init__(self, linear: LinearHead) -> None:
        self._linear = linear

    @property
    def dtype(self) -> torch.dtype:
        """Type of its weight."""
        return self._linear.weight.dtype

    def to(self, device: torch.device) -> None:
        """Move it, if it is elsewhere."""
        linear = self._linear
        if linear.weight.device != device:
            bias = None if linear.bias is None else linear.bias.to(device)
            self._linear = replace(linear, weight=linear.weight.to(device), bias=bias)

    def as_linear(self) -> LinearHead:
        """See `collegium.signals.signals.TransparentHead`."""
        return self._linear

    def __call__(self, hidden: Float[Tensor, "n E"]) -> Float[Tensor, "n V"]:
        """Logits."""
        logits = project(hidden, *self._linear.cut)
        cap(LogitRows(logits), self._linear.scale, self._linear.softcap)
        return logits


def last_states(
    teacher: Teacher, batch: Batch, positions: Positions, num_layers: int
) -> Sequence[Float[Tensor, "S E"]]:
    """Last hidden states of all tokens of each block, the padding cut away.

    Raises:
        TeacherError: they are not what its head is applied to.
    """
    output = teacher.score(batch, positions, need=frozenset({Capability.FULL_VOCAB, Capability.HIDDEN_STATES}))
    assert output.features is not None and isinstance(output.signal, ProjectedSignal), "asked for"
    states = output.features.hidden_states[num_layers]  # [B S E]
    if not torch.equal(positions.select(states), output.signal.hidden):
        raise TeacherError(
            f"teacher {teacher.name!r}: its last layer is not what its head is applied to, so its hidden states "
            "cannot be kept; use mode: top_k"
        )
    return [block[mask] for block, mask in zip(states, batch.attention_mask, strict=True)]


def head_bytes(head: Head, *, name: str) -> bytes:
    """The head as a safetensors file.

    Raises:
        TeacherError: it is more than a linear map.
    """
    linear = head.as_linear() if isinstance(head, TransparentHead) else None
    if linear is None:
        raise TeacherError(
            f"teacher {name!r}: its head holds an adapter or a hook, so its hidden states alone do not tell its "
            "distributions; use mode: top_k"
        )
    weight, bias = linear.cut
    tensors = {"weight": weight.contiguous()} | ({} if bias is None else {"bias": bias.contiguous()})
    scalars = [linear.scale, 0.0 if linear.softcap is None else linear.softcap]
    return save(tensors | {"scale_and_softcap": torch.tensor(scalars, dtype=torch.float64)})


def read_head(content: bytes) -> LinearHead:
    """Invert `head_bytes`."""
    tensors = load(content)
    scale, softcap = tensors["scale_and_softcap"].tolist()
    weight = tensors["weight"]
    return LinearHead(weight, tensors.get("bias"), len(weight), scale, softcap or None)

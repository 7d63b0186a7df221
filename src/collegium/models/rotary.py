"""Rotary embeddings whose frequencies follow the length of a text, given to each document by itself.

transformers sets the frequencies of the kinds `dynamic` and `longrope` by the longest sequence of a batch, and
`dynamic` by those of earlier batches too. What a model says of a document would then depend on what else is in its
block and batch. Here each document has the frequencies that it has when it is alone: the module itself makes a
table for each length, and each token reads its place in the table of its document. Tables are as short as
documents, so this costs less than one layer's norm.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from collegium.models.documents import document_starts


def follow_each_document(model: nn.Module) -> None:
    """Let rotary embeddings that follow the longest sequence follow each document, in place.

    Other models are left as they are, and so are those that were changed already.
    """
    for parent, name, rotary in list(_by_length(model)):
        setattr(parent, name, RotaryByDocument(rotary))


def _by_length(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Find the modules, with their parents and names there."""
    for parent in model.modules():
        if isinstance(parent, RotaryByDocument):
            continue
        for name, child in parent.named_children():
            kinds = getattr(child, "rope_type", None)
            for kind in kinds.values() if isinstance(kinds, Mapping) else (kinds,):
                if isinstance(kind, str) and ("dynamic" in kind or kind == "longrope"):
                    yield parent, name, child
                    break


class RotaryByDocument(nn.Module):
    """A rotary embedding of transformers, called for documents of one length at a time."""

    def __init__(self, rotary: nn.Module) -> None:
        super().__init__()
        self.rotary = rotary

    @torch.no_grad()
    def forward(self, x: Tensor, position_ids: Int[Tensor, "B S"], layer_type: str | None = None) -> Any:
        """Cosines and sines, or whatever the module makes, of each token's position in its document."""
        options = {} if layer_type is None else {"layer_type": layer_type}
        if torch.compiler.is_compiling():  # an export: of one text at a time, and lengths are not known
            return self.rotary(x, position_ids, **options)
        lengths = document_lengths(position_ids)
        made: list[Tensor] = []
        is_tensor = False
        for length in lengths.unique().tolist():
            positions = torch.arange(length, device=x.device)[None]
            self.rotary(x, positions[:, :1], **options)  # one token makes `dynamic` forget longer texts
            table = self.rotary(x, positions, **options)
            is_tensor = isinstance(table, Tensor)
            parts = [table] if is_tensor else list(table)  # [1 L ...]
            made = made or [part.new_empty(*position_ids.shape, *part.shape[2:]) for part in parts]
            here = lengths == length
            for part, whole in zip(parts, made, strict=True):
                whole[here] = part[0, position_ids[here]]
        return made[0] if is_tensor else tuple(made)


def document_lengths(position_ids: Int[Tensor, "B S"]) -> Int[Tensor, "B S"]:
    """The length of each token's document, as far as it was read: of one token at position 7, eight."""
    document = document_starts(position_ids).flatten().cumsum(0) - 1
    lengths = torch.zeros_like(document).scatter_reduce(0, document, position_ids.flatten() + 1, "amax")
    return lengths[document].view_as(position_ids)

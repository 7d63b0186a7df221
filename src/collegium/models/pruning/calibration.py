"""Importance of everything that can be cut, from forward passes over calibration text.

Hooks add up squares of block means as activations pass by, so that memory is one value per channel and
place, whatever the amount of text. Following the official code (NVIDIA/TensorRT-Model-Optimizer,
modelopt/torch/nas/plugins/megatron.py): heads by what enters o_proj, neurons by what enters down_proj, channels
by what the norms before attention and MLP put out, summed over them.
"""

import contextlib
import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from collegium.base.progress import Phase
from collegium.losses.importance import block_influence, block_means, head_importance
from collegium.models.inner_states import decoder_layers
from collegium.models.pretrained import last_hidden_states
from collegium.models.pruning.layout import head_dim_of, require_known
from collegium.signals.contracts import Batch


_INPUTS = ("q_proj", "o_proj", "gate_proj", "down_proj")


@dataclass(frozen=True)
class Importance:
    """Scores of a whole model; higher stays longer.

    Attributes:
        channels: Scores of the hidden size, summed over the norms before attention and MLP of all layers.
        heads: Scores of the query heads of each layer.
        neurons: Scores of the MLP of each layer.
        influence: Mean of 1 - cos(input, output) over text, of each layer.
    """

    channels: Float[Tensor, " D"]
    heads: Sequence[Float[Tensor, " H"]]
    neurons: Sequence[Float[Tensor, " I"]]
    influence: Float[Tensor, " L"]


@torch.no_grad()
def measure_importance(model: PreTrainedModel, batches: Iterable[Batch]) -> Importance:
    """Scores on `batches`, whose blocks are the samples; padding is left out, documents do not see each other.

    Args:
        model: In evaluation mode.
        batches: Calibration text; its division into batches does not matter, its blocks do.

    Raises:
        RecipeError: the architecture cannot be pruned.
    """
    require_known(model)
    layers = decoder_layers(model)[2]
    sums = _Sums()
    with Phase("scoring what can be pruned", unit="batches") as phase, sums.listening(layers):
        for batch in phase.counted(batches):
            sums.mask = batch.attention_mask
            last_hidden_states(model, batch.input_ids, batch.position_ids)
            sums.count += int(batch.attention_mask.sum())
    head_dim = head_dim_of(model.config.get_text_config())
    numbers = range(len(layers))
    norms = [sums.root(place, i) for i in numbers for place in ("q_proj", "gate_proj")]
    return Importance(
        channels=torch.stack(norms).sum(0),
        heads=[head_importance(sums.root("o_proj", i), head_dim) for i in numbers],
        neurons=[sums.root("down_proj", i) for i in numbers],
        influence=torch.stack([sums.influence[i] for i in numbers]) / max(sums.count, 1),
    )


class _Sums:
    """Sums over batches that hooks add to."""

    def __init__(self) -> None:
        self.mask: Bool[Tensor, "B S"] = torch.zeros(0, 0, dtype=torch.bool)
        self.count = 0
        self.squares: dict[tuple[str, int], Tensor] = {}
        self.influence: dict[int, Tensor] = {}

    def root(self, place: str, index: int) -> Float[Tensor, " C"]:
        """L2 norm over blocks of their means."""
        return self.squares[place, index].sqrt()

    @contextlib.contextmanager
    def listening(self, layers: nn.ModuleList) -> Iterator[None]:
        """Hooks on these layers, for a while."""
        with contextlib.ExitStack() as stack:
            for index, layer in enumerate(layers):
                hook = functools.partial(self._add_influence, index)
                stack.callback(layer.register_forward_hook(hook).remove)
                for name, module in layer.named_modules():
                    place = name.rpartition(".")[2]
                    if place in _INPUTS:
                        add = functools.partial(self._add_input, (place, index))
                        stack.callback(module.register_forward_pre_hook(add).remove)
            yield

    def _add_input(self, key: tuple[str, int], module: nn.Module, arguments: tuple[Any, ...]) -> None:
        part = block_means(arguments[0], self.mask).square().sum(0)
        self.squares[key] = self.squares[key] + part if key in self.squares else part

    def _add_influence(self, index: int, module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        after = output[0] if isinstance(output, tuple) else output
        part = block_influence(arguments[0], after, self.mask)
        self.influence[index] = self.influence[index] + part if index in self.influence else part

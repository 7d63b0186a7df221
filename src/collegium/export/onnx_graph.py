"""A causal language model as an ONNX graph with its cache of keys and values outside.

Inputs and outputs have the names that ONNX runtimes for decoders expect (`past_key_values.0.key`,
`present.0.key`), so that a token costs one step and not the whole text again. Made by
`torch.onnx.export(dynamo=True)`, read by onnxruntime. Weights stay float32: four bytes each.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel

from collegium.base.durable import disk_errors
from collegium.base.errors import DataError, one_line, pass_on_full_disk
from collegium.export.packages import quietly, require
from collegium.export.parity import Logits


FORMAT = "onnx"

_EXTERNAL_ABOVE = 1_500_000_000
"""Bytes of weights; a protobuf holds less than 2 GB."""

_BATCH = 2
_NEW = 3
_PAST = 4
"""Sizes of the example that is traced: all different, and none of them 1, which would be fixed."""

KeysAndValues = list[tuple[Tensor, Tensor]]


class _Decoder(nn.Module):
    """A model whose cache goes in and comes out as tensors."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past: KeysAndValues
    ) -> tuple[Tensor, KeysAndValues]:
        """Logits of the new tokens, and the cache with them."""
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(past):
            cache.update(keys, values, layer)
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        )
        return output.logits, [(layer.keys, layer.values) for layer in output.past_key_values.layers]


def write_onnx(model: PreTrainedModel, path: Path) -> None:
    """Write a model as a graph.

    Raises:
        DataError: it cannot be traced.
    """
    require("onnxscript", FORMAT)
    config = model.config
    if set(getattr(config, "layer_types", None) or ["full_attention"]) != {"full_attention"}:
        raise DataError(
            f"--to onnx: {type(model).__name__} keeps more than keys and values of full attention, which the "
            "graph has no inputs for; export to safetensors-int8"
        )
    try:
        with quietly(), torch.no_grad():
            program = torch.onnx.export(
                _Decoder(model).eval(),
                _example(config),
                dynamo=True,
                dynamic_shapes=_dynamic_shapes(config),
                input_names=["input_ids", "attention_mask", "position_ids", *_names("past_key_values", config)],
                output_names=["logits", *_names("present", config)],
                verbose=False,
            )
    except Exception as error:
        pass_on_full_disk(error)
        raise DataError(
            f"--to onnx: {type(model).__name__} cannot be traced ({type(error).__name__}: {one_line(error)}); "
            "export to gguf or safetensors-int8"
        ) from error
    assert program is not None, "returned where dynamo is true"
    num_bytes = sum(weight.nbytes for weight in model.parameters())
    with disk_errors(path):
        program.save(path, external_data=num_bytes > _EXTERNAL_ABOVE)


def open_onnx(path: Path) -> Logits:
    """The graph as logits, run by onnxruntime.

    A text is read in two halves, the second from the cache of the first: what is generated goes that way.
    """
    runtime: Any = require("onnxruntime", FORMAT)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    shapes = {node.name: node.shape for node in session.get_inputs()}
    past_names = [name for name in shapes if name.startswith("past_key_values.")]
    empty = [np.zeros((1, shapes[n][1], 0, shapes[n][3]), np.float32) for n in past_names]

    def step(tokens: Sequence[int], past: list[Any], start: int) -> list[Any]:
        end = start + len(tokens)
        feeds = {
            "input_ids": np.array([tokens], np.int64),
            "attention_mask": np.ones((1, end), np.int64),
            "position_ids": np.arange(start, end, dtype=np.int64)[None],
            **dict(zip(past_names, past, strict=True)),
        }
        result: list[Any] = session.run(None, feeds)
        return result

    def logits(tokens: Sequence[int]) -> Tensor:
        middle = (len(tokens) + 1) // 2
        first = step(tokens[:middle], empty, 0)
        second = step(tokens[middle:], first[1:], middle)
        return torch.from_numpy(np.concatenate([first[0][0], second[0][0]]))

    return logits


def _names(prefix: str, config: PretrainedConfig) -> list[str]:
    return [f"{prefix}.{i}.{part}" for i in range(config.num_hidden_layers) for part in ("key", "value")]


def _example(config: PretrainedConfig) -> tuple[Any, ...]:
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    shape = (_BATCH, config.num_key_value_heads, _PAST, head_dim)
    past = [(torch.zeros(shape), torch.zeros(shape)) for _ in range(config.num_hidden_layers)]
    positions = torch.arange(_PAST, _PAST + _NEW).repeat(_BATCH, 1)
    mask = torch.ones(_BATCH, _PAST + _NEW, dtype=torch.int64)
    return torch.ones_like(positions), mask, positions, past


def _dynamic_shapes(config: PretrainedConfig) -> tuple[Any, ...]:
    new = {0: "batch", 1: "sequence"}
    past = {0: "batch", 2: "past"}
    layers = [(past, past) for _ in range(config.num_hidden_layers)]
    return new, {0: "batch", 1: "past_and_sequence"}, new, layers

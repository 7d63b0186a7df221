"""A student whose linear layers have eight-bit weights: safetensors, read again by transformers itself.

By torchao, weights only, symmetric, with one float32 scale for every 32 weights of a row (nine bits a weight with
it), which halves the KL of one for a whole row. A student with many near ties still loses 4 % of its first
choices, and has to be let through by its user. Embedding and head keep their precision: they are one matrix in
most small models, and the most sensitive one.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import TorchAoConfig

from collegium.base.durable import disk_errors
from collegium.base.errors import DataError, one_line, pass_on_full_disk
from collegium.export.gguf_reader import logits_of
from collegium.export.packages import quietly, require
from collegium.export.parity import Logits
from collegium.models.loading import read_model


FORMAT = "safetensors-int8"

GROUP_SIZE = 32
"""Weights that share a scale."""


def write_int8(student: Path, folder: Path) -> None:
    """Write a Hugging Face folder with the model's weights in eight bits.

    Args:
        student: Folder of the model.
        folder: Folder to write.

    Raises:
        DataError: it cannot be quantised.
    """
    quantization: Any = require("torchao.quantization", FORMAT)
    try:
        with quietly():
            model = read_model(
                student,
                reference=str(student),
                dtype=torch.float32,
                quantization_config=TorchAoConfig(
                    quantization.Int8WeightOnlyConfig(granularity=quantization.PerGroup(GROUP_SIZE))
                ),
            )
    except Exception as error:
        pass_on_full_disk(error)
        raise DataError(
            f"--to {FORMAT}: the model cannot be quantised ({type(error).__name__}: {one_line(error)})"
        ) from error
    with disk_errors(folder), quietly():
        model.save_pretrained(folder)


def open_int8(folder: Path) -> Logits:
    """The folder as logits, loaded as users load it."""
    require("torchao.quantization", FORMAT)
    try:
        with quietly():
            model = read_model(folder, reference=folder.name)
    except Exception as error:
        raise DataError(
            f"--to {FORMAT}: what was written cannot be read back ({type(error).__name__}: {one_line(error)})"
        ) from error
    return logits_of(model.eval())

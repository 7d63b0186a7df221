"""Reads a GGUF file by a program that had no part in writing it.

llama.cpp itself, through llama-cpp-python, if that is installed: what users will run. Else the reader of
transformers, which knows the format from its own tables and dequantises to float32: it shows that names, order
and values are right, but not that llama.cpp opens the file. The result says which one it was.
"""

import contextlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from collegium.base.errors import DataError, one_line
from collegium.export.parity import Logits
from collegium.models.gguf import read_gguf


def open_gguf(path: Path, longest: int) -> tuple[str, Logits]:
    """The reader's name, and the file as logits.

    Args:
        path: The file.
        longest: Tokens of the longest text that will be read.

    Raises:
        DataError: it cannot be read.
    """
    if importlib.util.find_spec("llama_cpp") is not None:
        return f"llama-cpp-python {importlib.metadata.version('llama-cpp-python')}", _llama_cpp(path, longest)
    return f"transformers {importlib.metadata.version('transformers')}, dequantised", _transformers(path)


def _llama_cpp(path: Path, longest: int) -> Logits:
    import llama_cpp  # type: ignore[import-not-found, unused-ignore]

    with _readable(path):
        model: Any = llama_cpp.Llama(
            str(path),
            n_ctx=longest,
            n_batch=longest,
            n_threads=torch.get_num_threads(),
            n_threads_batch=torch.get_num_threads(),
            n_gpu_layers=0,
            logits_all=True,
            verbose=False,
        )

    def logits(tokens: Sequence[int]) -> Tensor:
        model.reset()
        model.eval(list(tokens))
        return torch.from_numpy(model.scores[: len(tokens)].copy())

    return logits


def _transformers(path: Path) -> Logits:
    with _readable(path):
        model = read_gguf(path, path)
    return logits_of(model.eval())


def logits_of(model: Callable[..., Any]) -> Logits:
    """A causal language model of transformers as logits."""

    def logits(tokens: Sequence[int]) -> Tensor:
        output: Tensor = model(input_ids=torch.tensor([list(tokens)]), use_cache=False).logits[0]
        return output

    return logits


@contextlib.contextmanager
def _readable(path: Path) -> Any:
    try:
        yield
    except Exception as error:  # anything from ValueError to KeyError
        raise DataError(
            f"{path.name}: what was written cannot be read back ({type(error).__name__}: {one_line(error)})"
        ) from error

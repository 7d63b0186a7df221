"""Files of weights as they lie on disk: names and shapes of their tensors, read from headers alone.

A folder is refused before its weights are read if it does not hold them all: an index that names absent files, two
sets of weights at once, pickles only. A header costs a millisecond a thousand tensors.
"""

import json
import struct
from pathlib import Path
from typing import Any

from collegium.base.errors import DataError


SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_HEADER_BYTES = 100_000_000
"""Of a safetensors file, as its format has it."""

Shapes = dict[str, tuple[int, ...]]


def weight_files(folder: Path, reference: str) -> list[Path]:
    """Safetensors files that hold the weights of a model's folder.

    Args:
        folder: The folder.
        reference: Its name in errors.

    Raises:
        DataError: there are none, some are absent, or it holds two sets of weights.
    """
    single = folder / SINGLE
    index = folder / INDEX
    if not index.is_file():
        if single.is_file():
            return [single]
        raise DataError(f"{reference}: {_nothing_in(folder)}")
    named = _named_in(index, reference)
    if single.is_file() and named != [SINGLE]:
        raise DataError(
            f"{reference}: holds two sets of weights, {SINGLE} and the files that {INDEX} names; remove the one "
            "that is not meant, and the index if that is the split one"
        )
    absent = [name for name in named if not (folder / name).is_file()]
    if absent:
        raise DataError(
            f"{reference}: {INDEX} names {len(named)} files of weights, of which {some(absent)} "
            f"{'is' if len(absent) == 1 else 'are'} not there; fetch or save the model again"
        )
    return [folder / name for name in named]


def _named_in(index: Path, reference: str) -> list[str]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        if not names or any(not isinstance(name, str) or Path(name).name != name for name in names):
            raise ValueError("needs names of files")
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise DataError(
            f"{reference}: {INDEX} cannot be read ({type(error).__name__}: {error}); fetch or save the model again"
        ) from error
    return names


def _nothing_in(folder: Path) -> str:
    others = sorted(file.name for file in folder.iterdir() if file.suffix in (".bin", ".pt", ".pth", ".ckpt"))
    if others:
        return (
            f"holds weights as pickles only ({some(others)}), which can run any code and are not read; load it "
            "with transformers once and save it with `save_pretrained`, which writes safetensors"
        )
    if (folder / "adapter_config.json").is_file():
        return (
            "is an adapter, not a model; give its base as `model` and this folder as `adapter`, or merge both "
            "with PEFT's `merge_and_unload` and give the result"
        )
    parts = sorted(file.name for file in folder.glob("*.safetensors"))
    if parts:
        return f"holds {some(parts)}, but neither {SINGLE} nor {INDEX}; fetch or save the model again"
    return f"holds no weights ({SINGLE}, or {INDEX} with its files); check the path"


def shapes_in(files: list[Path], reference: str) -> Shapes:
    """Shape of each tensor in safetensors files, by its name.

    Raises:
        DataError: a file is damaged or cut off, or two hold a tensor of the same name.
    """
    shapes: Shapes = {}
    for file in files:
        for name, shape in _header(file, reference).items():
            if name in shapes:
                raise DataError(f"{reference}: two of its files hold {name}; fetch or save the model again")
            shapes[name] = shape
    return shapes


def _header(file: Path, reference: str) -> Shapes:
    try:
        content, end = _read_header(file)
        shapes = {name: tuple(entry["shape"]) for name, entry in content.items()}
        ends = [entry["data_offsets"][1] for entry in content.values()]
        length = end + max(ends, default=0)
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise DataError(
            f"{reference}: {file.name} is no safetensors file ({type(error).__name__}); fetch or save it again"
        ) from error
    if file.stat().st_size != length:
        raise DataError(
            f"{reference}: {file.name} has {file.stat().st_size:,} bytes, but its header describes {length:,}; it "
            "was cut off or changed: fetch or save it again"
        )
    return shapes


def _read_header(file: Path) -> tuple[dict[str, Any], int]:
    """Entries of a header, and the place where the data begins."""
    with file.open("rb") as stream:
        (size,) = struct.unpack("<Q", stream.read(8))
        if size > MAX_HEADER_BYTES:
            raise ValueError("its header is too long")
        content = json.loads(stream.read(size))
    content.pop("__metadata__", None)
    return content, size + 8


def some(names: list[str], limit: int = 3) -> str:
    """A few of many names, and how many more there are."""
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"

"""Objects as plain data, so that the settings of two runs can be compared name by name.

An objective is a tree of modules, dataclasses and functions. Its settings are their attributes; weights and
buffers are not, since a checkpoint holds those. A function is known by its name and by what is bound to it: a
change within its body is not seen.
"""

import dataclasses
import enum
import functools
import types
from collections.abc import Mapping, Sequence, Set
from typing import Any

import torch
import xxhash
from torch import Tensor, nn
from transformers import PreTrainedModel


CHANGES_NOTHING = frozenset({"chunk_size", "max_invalid_fraction", "progress", "training"})
"""Attributes that decide no number: how a sum is cut, when a run gives up, and how far it is."""

Plain = None | bool | int | float | str


def settings_of(value: object, prefix: str) -> dict[str, Any]:
    """Every setting of an object by its path, such as `objective.target.temperature`; values are JSON."""
    return _flattened(_plain(value, ()), prefix)


def _flattened(tree: Any, prefix: str) -> dict[str, Any]:
    """The leaves of nested mappings by their paths; a list is a leaf unless there is a mapping in it."""
    if not _has_mapping(tree):
        return {prefix: tree}
    items = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
    return {path: leaf for key, part in items for path, leaf in _flattened(part, f"{prefix}.{key}").items()}


def _has_mapping(tree: Any) -> bool:
    return isinstance(tree, Mapping) or (isinstance(tree, list) and any(map(_has_mapping, tree)))


def _plain(value: object, above: tuple[int, ...]) -> Any:
    """A tree of mappings, lists and plain values; `above` are the objects that this one is a part of."""
    if isinstance(value, enum.Enum):  # before what is plain, since many enumerations are of strings
        return value.name
    if isinstance(value, Plain):
        return value
    if id(value) in above:
        return "itself"
    above = (*above, id(value))
    match value:
        case Tensor():
            return _digest(value)
        case PreTrainedModel() | torch.device():  # a model has a fingerprint of its own; devices decide nothing
            return type(value).__name__
        case functools.partial():
            bound = {"arguments": value.args, "keywords": value.keywords}
            return {"function": _plain(value.func, above), **_plain(bound, above)}
        case types.MethodType():
            return {"function": _name(value.__func__), "of": _plain(value.__self__, above)}
        case types.FunctionType():
            cells = [cell.cell_contents for cell in value.__closure__ or ()]
            return {"function": _name(value), "closure": _plain(cells, above)} if cells else _name(value)
        case type() | types.BuiltinFunctionType():
            return _name(value)
        case Mapping():
            return {str(key): _plain(part, above) for key, part in value.items()}
        case Set():
            return sorted(str(_plain(part, above)) for part in value)
        case Sequence():
            return [_plain(part, above) for part in value]
        case nn.Module() if type(value).__module__.startswith("torch."):
            parts = {name: _plain(part, above) for name, part in value.named_children()}
            kind = f"{type(value).__name__}({value.extra_repr()})"
            return {"kind": kind, **parts} if parts else kind
        case _:
            return {"kind": _name(type(value)), **_plain(_attributes(value), above)}


def _attributes(value: object) -> dict[str, Any]:
    """Attributes of an object under their public names; of a module its parts too, but no weights or hooks."""
    if dataclasses.is_dataclass(value):
        found = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    else:
        found = dict(getattr(value, "__dict__", {}))
    if isinstance(value, nn.Module):
        internal = vars(nn.Module()).keys()
        found = {name: part for name, part in found.items() if name not in internal} | dict(value.named_children())
    return {name.lstrip("_"): part for name, part in found.items() if name not in CHANGES_NOTHING}


def _name(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"


def _digest(tensor: Tensor) -> str:
    content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return f"{tensor.dtype}{list(tensor.shape)}:{xxhash.xxh3_64_hexdigest(content.numpy().data)}"

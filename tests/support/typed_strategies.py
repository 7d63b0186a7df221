"""Values of dataclasses for hypothesis, from the types of their fields; `st.from_type` knows no generic ones."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Union

from hypothesis import strategies as st


def built(kind: Any, leaves: Mapping[Any, st.SearchStrategy[Any]], bound: Mapping[Any, Any] | None = None) -> Any:
    """A strategy for a type.

    Args:
        kind: A dataclass, generic or not, or a type that its fields have.
        leaves: Strategies of plain types; that of `object` stands for `Any`.
        bound: What type variables stand for.
    """
    kind = (bound or {}).get(kind, kind)
    origin = typing.get_origin(kind)
    arguments = typing.get_args(kind)
    if origin is typing.Annotated:
        return built(arguments[0], leaves, bound)
    if origin in (Union, types.UnionType):
        return st.one_of(*(built(argument, leaves, bound) for argument in arguments))
    if kind is Any:
        return leaves[object]
    if origin is Mapping:
        keys = built(arguments[0], leaves, bound)
        return st.dictionaries(keys, built(arguments[1], leaves, bound), max_size=2)
    if origin is tuple and arguments[-1] is ...:
        return st.lists(built(arguments[0], leaves, bound), max_size=2).map(tuple)
    if origin is tuple:
        return st.tuples(*(built(argument, leaves, bound) for argument in arguments))
    if kind is type(None):
        return st.none()
    if kind in leaves:
        return leaves[kind]
    inner = origin or kind
    if not dataclasses.is_dataclass(inner):
        return st.from_type(kind)
    within = dict(zip(getattr(inner, "__parameters__", ()), arguments, strict=True))
    within = {variable: (bound or {}).get(own, own) for variable, own in within.items()}
    hints = typing.get_type_hints(inner, include_extras=True)
    fields = {
        field.name: built(hints[field.name], leaves, within)
        for field in dataclasses.fields(inner)
        if field.name != "schema_version"
    }
    return st.builds(inner, **fields)

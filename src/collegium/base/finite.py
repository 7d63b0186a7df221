"""Plain data that JSON can hold: it has neither NaN nor infinity, so a number that is not known is null."""

import math
from collections.abc import Mapping
from typing import Any


def null_where_unknown(tree: Any) -> Any:
    """Copy a tree of mappings, sequences and values, with None for floats that are not finite."""
    if isinstance(tree, Mapping):
        return {key: null_where_unknown(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [null_where_unknown(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree

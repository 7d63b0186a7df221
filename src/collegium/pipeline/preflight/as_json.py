"""The findings of a pre-flight, as JSON can hold them."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from collegium.evaluation.cost import RunCost
from collegium.evaluation.preflight import Preflight


def preflight_as_json(result: Preflight, cost: RunCost | None) -> dict[str, Any]:
    """Everything, as JSON can hold it; null where a figure is not known."""
    tree = dataclasses.asdict(result)
    tree["best_teacher"] = result.best_teacher
    tree["estimate"] = None
    if cost is not None:
        totals = {"total_seconds": cost.total_seconds, "total_disk_bytes": cost.total_disk_bytes}
        tree["estimate"] = dataclasses.asdict(cost) | totals
    known: dict[str, Any] = _known(tree)
    return known


def _known(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {key: _known(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_known(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree

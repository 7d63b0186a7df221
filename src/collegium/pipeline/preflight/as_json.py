"""The findings of a pre-flight, as JSON can hold them."""

import dataclasses
from typing import Any

from collegium.base.finite import null_where_unknown
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
    known: dict[str, Any] = null_where_unknown(tree)
    return known

"""Distil several language models into one small causal language model.

The public names below are imported when they are first used, so that `import collegium` is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from collegium.assembly.run import Run
    from collegium.fused.chunked import KdTarget
    from collegium.losses.weighting import Weighting
    from collegium.teachers.local import LocalTeacher
    from collegium.training.objective import Objective
    from collegium.training.terms.features import FeatureTerm, HiddenStatesTerm
    from collegium.training.trainer import DistillationTrainer

__version__ = "0.1.0"

__all__ = [
    "DistillationTrainer",
    "FeatureTerm",
    "HiddenStatesTerm",
    "KdTarget",
    "LocalTeacher",
    "Objective",
    "Run",
    "Weighting",
]

_PLACES = {
    "DistillationTrainer": "collegium.training.trainer",
    "FeatureTerm": "collegium.training.terms.features",
    "HiddenStatesTerm": "collegium.training.terms.features",
    "KdTarget": "collegium.fused.chunked",
    "LocalTeacher": "collegium.teachers.local",
    "Objective": "collegium.training.objective",
    "Run": "collegium.assembly.run",
    "Weighting": "collegium.losses.weighting",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)

"""Distil several language models into one small causal language model.

The public names below are imported when they are first used, so that `import collegium` is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from collegium.functional.chunked import KdTarget
    from collegium.functional.weighting import Weighting
    from collegium.objective import Objective
    from collegium.teachers.local import LocalTeacher
    from collegium.terms.features import FeatureTerm, HiddenStatesTerm
    from collegium.trainer import DistillationTrainer

__version__ = "0.1.0"

__all__ = [
    "DistillationTrainer",
    "FeatureTerm",
    "HiddenStatesTerm",
    "KdTarget",
    "LocalTeacher",
    "Objective",
    "Weighting",
]

_PLACES = {
    "DistillationTrainer": "collegium.trainer",
    "FeatureTerm": "collegium.terms.features",
    "HiddenStatesTerm": "collegium.terms.features",
    "KdTarget": "collegium.functional.chunked",
    "LocalTeacher": "collegium.teachers.local",
    "Objective": "collegium.objective",
    "Weighting": "collegium.functional.weighting",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)

"""The cost of a run: what it took, beside what its pre-flight said it would."""

import logging
from pathlib import Path
from typing import Any

import torch

from collegium.assembly.run import Run
from collegium.base.digests import read_sealed
from collegium.base.errors import DataError
from collegium.evaluation.cost import Clock, folder_bytes, peak_bytes
from collegium.report.evaluation import ActualCost, Cost


logger = logging.getLogger(__name__)

PREFLIGHT = "preflight.json"
"""Findings of a pre-flight, in the run folder."""


def cost_of(run: Run, clock: Clock, *, resumed: bool) -> Cost:
    """Add up what a run took, beside what its pre-flight said it would.

    Args:
        run: Finished, in its folder.
        clock: Seconds of its parts, in this process.
        resumed: Whether another process did the first steps, whose time is not known here.
    """
    folder = run.folder
    assert folder is not None, "a run is trained in its folder"
    disk = {"text": folder_bytes(run.text.directory)}
    disk |= {name: folder_bytes(folder / name) for name in ("checkpoints", "student", "adapter")}
    on_gpu = torch.cuda.is_available()
    actual = ActualCost(
        seconds={name: round(seconds, 2) for name, seconds in clock.seconds.items()},
        memory_bytes=peak_bytes(),
        device_memory_bytes=torch.cuda.max_memory_reserved() if on_gpu else None,
        disk_bytes={name: size for name, size in disk.items() if size},
        resumed=resumed,
    )
    return Cost(actual, _plan(folder, run.recipe.fingerprint))


def _plan(folder: Path, fingerprint: str) -> dict[str, Any] | None:
    """The estimate of the newest pre-flight, if it was of the same recipe; a damaged one is left out."""
    path = folder / PREFLIGHT
    if not path.exists():
        return None
    try:
        found: dict[str, Any] = read_sealed(path, fix="plan and cost are not compared")
    except DataError as error:  # of a run that has ended well
        logger.warning("%s", error)
        return None
    return found.get("estimate") if found.get("recipe") == fingerprint else None

"""Figures of single teachers at each position of held-out text, and the positions where they speak."""

from collections.abc import Sequence

import torch
from torch import Tensor

from collegium.report import metric_names as names
from collegium.signals.contracts import TeacherStats


def teachers_alone(teachers: Sequence[str], stats: TeacherStats) -> dict[str, Tensor]:
    """Figures of each teacher where it speaks, 0 elsewhere, and where that is.

    `NLL_FILLED` has the mean of the others where one is absent, so that it neither gains nor loses in a paired
    difference.
    """
    present = stats.valid.any(-1, keepdim=True)
    total = (stats.cross_entropy * stats.valid).sum(-1, keepdim=True)
    mean = total / stats.valid.sum(-1, keepdim=True).clamp_min(1)
    figures = {
        names.NLL: torch.where(stats.valid, stats.cross_entropy, 0.0),
        names.NLL_FILLED: torch.where(stats.valid | ~present, stats.cross_entropy, mean),
        names.WEIGHT_NLL: torch.where(stats.valid, stats.weight_cross_entropy, 0.0),
        names.ENTROPY: torch.where(stats.valid, stats.entropy, 0.0),
        names.HEARD: stats.valid.double(),
    }
    return {
        names.of_teacher(name, part): figure[:, m]
        for part, figure in figures.items()
        for m, name in enumerate(teachers)
    }

"""Fits a teacher's two temperatures on some blocks of text.

The one that sets weights is fitted on a mixture of all domains: there a teacher must not seem sure where it
is wrong. The one of what is mixed is fitted where the teacher is trusted, or left at 1: fitted on the
mixture too, it would flatten an expert at home. The teacher runs once; its hidden states are kept
(2.3 kB a token for a width of 576) while the temperatures are sought.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from collegium.base.errors import TeacherError
from collegium.base.progress import Phase
from collegium.data.blocks import PackedBlocks
from collegium.data.collate import BlockCollator
from collegium.losses.calibration import CalibrationSums, FittedTemperature, calibration_sums, fit_temperatures
from collegium.signals.contracts import Batch, Capability, Teacher, predicted_positions
from collegium.signals.signals import CarriedSignal, DenseSignal, ProjectedSignal, TopKSignal


@dataclass(frozen=True)
class _Scored:
    """A teacher's distributions over a batch of one domain."""

    domain: str
    signal: ProjectedSignal | DenseSignal | CarriedSignal
    labels: Tensor


@torch.no_grad()
def calibrate(
    teacher: Teacher,
    blocks: Mapping[str, PackedBlocks],
    domains_of: Mapping[str, Collection[str]],
    collator: BlockCollator,
    *,
    device: torch.device,
    batch_size: int = 4,
    chunk_size: int = 256,
) -> dict[str, FittedTemperature]:
    """Fit temperatures of one teacher.

    Args:
        teacher: Gives its full distribution.
        blocks: Text by domain, which no student is measured on.
        domains_of: Name of each temperature, and the domains whose text it is fitted on.
        collator: Makes batches.
        device: Where batches go.
        batch_size: Blocks scored together.
        chunk_size: Positions whose logits are alive at once.

    Raises:
        TeacherError: the teacher gives lists only, or is absent from all of the text.
    """
    wanted = {domain for domains in domains_of.values() for domain in domains}
    with Phase(f"asking teacher {teacher.name} about training text", unit="batches") as phase:
        scored = [
            item
            for domain in blocks
            if domain in wanted
            for item in phase.counted(_score(teacher, domain, blocks[domain], collator, device, batch_size))
        ]
    names = list(domains_of)

    def sums_at(temperatures: Sequence[float], which: Sequence[int]) -> list[CalibrationSums]:
        totals = dict.fromkeys(which, CalibrationSums())
        for item in scored:
            asked = [
                (index, c)
                for index, c in zip(which, temperatures, strict=True)
                if item.domain in domains_of[names[index]]
            ]
            sums = calibration_sums(item.signal, item.labels, [c for _, c in asked], chunk_size=chunk_size)
            for (index, _), figures in zip(asked, sums, strict=True):
                totals[index] += figures
        return [totals[index] for index in which]

    try:
        with Phase(f"fitting temperatures of teacher {teacher.name}"):
            fitted = fit_temperatures(sums_at, len(names))
    except ValueError as error:
        raise TeacherError(f"teacher {teacher.name!r}: {error}") from error
    return dict(zip(names, fitted, strict=True))


def _score(
    teacher: Teacher,
    domain: str,
    blocks: PackedBlocks,
    collator: BlockCollator,
    device: torch.device,
    batch_size: int,
) -> Iterator[_Scored]:
    for start in range(0, len(blocks), batch_size):
        rows = [blocks[i] for i in range(start, min(start + batch_size, len(blocks)))]
        batch = Batch.from_inputs({name: value.to(device) for name, value in collator(rows).items()})
        positions = predicted_positions(batch)
        signal = teacher.score(batch, positions, need=frozenset({Capability.SAMPLES})).signal
        if isinstance(signal, TopKSignal):
            raise TeacherError(
                f"teacher {teacher.name!r}: its cache holds lists, which serve only the temperatures they were "
                "made at, so none can be fitted: give numbers, or keep hidden states (cache.mode)"
            )
        yield _Scored(domain, signal, positions.labels)

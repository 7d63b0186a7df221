"""A checkpoint and a student, written by a trial: how large they are, and how long writing one takes."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from collegium.evaluation.cost import Clock, folder_bytes
from collegium.pipeline.train import publish_student
from collegium.training.checkpoint import CheckpointDirectory
from collegium.training.trainer import DistillationTrainer


MAX_WRITTEN = 2**30
"""Bytes of a checkpoint or a student that are written to see how long that takes; of a larger one a part."""


class Written(NamedTuple):
    """A part of the run on disk.

    Attributes:
        bytes: All of it.
        seconds: Writing it.
    """

    bytes: int
    seconds: float


def write_checkpoint(trainer: DistillationTrainer, folder: Path) -> Written:
    """Write a checkpoint, or a part of it; its log does not count."""
    clock = Clock()
    with clock.timed("collected"):
        tensors, documents = trainer.training_state().collect()
    documents["trainer_state"]["log_history"] = []
    weights = sum(_size(tensor) for content in tensors.values() for tensor in content.values())
    part = _at_most(tensors, MAX_WRITTEN)
    written = sum(_size(tensor) for content in part.values() for tensor in content.values())
    if not trainer.args.should_save:
        return Written(weights, 0.0)
    with clock.timed("written"):
        path = CheckpointDirectory(folder / "checkpoints").publish(0, part, documents)
    factor = weights / max(1, written)
    seconds = clock.seconds["collected"] + clock.seconds["written"] * factor
    return Written(folder_bytes(path) + weights - written, seconds)


def publish(trainer: DistillationTrainer, folder: Path, checkpoint: Written) -> Written:
    """Write the student's folder; a large one is taken to be written as fast as the checkpoint was."""
    student = trainer.distillation_model.student
    weights = sum(_size(tensor) for tensor in student.state_dict().values())
    if weights > MAX_WRITTEN:
        return Written(weights, checkpoint.seconds * weights / max(1, checkpoint.bytes))
    clock = Clock()
    with clock.timed("published"):
        publish_student(trainer, folder)
    size = sum(folder_bytes(folder / name) for name in ("student", "adapter"))
    return Written(size, clock.seconds["published"])


def _at_most(tensors: Mapping[str, Mapping[str, Tensor]], size: int) -> dict[str, dict[str, Tensor]]:
    """The first tensors that are so large together; all files, if only with their first tensor."""
    part: dict[str, dict[str, Tensor]] = {}
    for file, content in tensors.items():
        part[file] = {}
        for name, tensor in content.items():
            if size > 0 or not part[file]:
                part[file][name] = tensor
                size -= _size(tensor)
    return part


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def line_bytes(path: Path) -> int:
    """Mean size of the lines of a file."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    return sum(len(line) + 1 for line in lines) // max(1, len(lines))

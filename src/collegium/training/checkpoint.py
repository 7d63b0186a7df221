"""Checkpoints that are whole or absent: no pickle, every byte hashed, published by one rename.

A checkpoint is written under a temporary name, each file is flushed to disk, a manifest with the size
and SHA-256 of every file comes last, and the folder is renamed. A crash at any moment leaves the last
whole checkpoint, and a flipped bit is found before anything is loaded. Optimizer and random state are
safetensors and JSON. Hashing costs about 1 s a gigabyte.
"""

import json
import logging
import os
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict

from collegium.base.durable import disk_errors, open_to_umask, sync_folder
from collegium.base.errors import DataError
from collegium.training.checkpoint_files import (
    FOLDER,
    MANIFEST,
    ForeignCheckpointError,
    digests_of,
    has_json,
    manifest_text,
    read_json,
    require_ours,
    verify,
)
from collegium.training.optimizer_state import load_optimizer_state, optimizer_state, plain_name


logger = logging.getLogger(__name__)

_TEMPORARY_PREFIX = ".writing-"
_RENAMED = {"objective.course.": "objective.divergence_schedule."}
"""Beginnings of names in checkpoints of earlier versions, and those of today."""


@dataclass(frozen=True)
class TrainingState:
    """Content of a checkpoint, as live objects.

    Attributes:
        model: Wrapped or not; its trained parameters and buffers are kept.
        optimizer: Below any wrapper.
        stateful: Other objects with a JSON-serialisable `state_dict`, by name; None is left out.
        documents: Plain values, by name.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    stateful: Mapping[str, Any]
    documents: Mapping[str, Any]

    def collect(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """Tensors and JSON content of each file. A collective call: every rank must make it."""
        optimizer_tensors, groups = optimizer_state(self.model, self.optimizer)
        random_tensors, random_plain = random_state()
        tensors = {"model": model_state(self.model), "optimizer": optimizer_tensors, "random": random_tensors}
        states = {name: part.state_dict() for name, part in self.stateful.items() if part is not None}
        return tensors, {**self.documents, **states, "optimizer": groups, "random": random_plain}

    def load_optimizer(self, path: Path) -> None:
        """Load the optimizer and the other stateful objects."""
        tensors = load_file(path / "optimizer.safetensors")
        load_optimizer_state(self.model, self.optimizer, tensors, read_json(path, "optimizer"), where=str(path))
        for name, part in self.stateful.items():
            if part is None and not has_json(path, name):
                continue
            if part is None or not has_json(path, name):
                without, has = ("this run", "the checkpoint") if part is None else ("the checkpoint", "this run")
                raise DataError(
                    f"{path}: {has} has a {name}, {without} has none: put that back, or start again in another "
                    "output_dir"
                )
            part.load_state_dict(read_json(path, name))


class CheckpointDirectory:
    """The checkpoints of one run.

    Args:
        directory: Folder that holds `checkpoint-N` folders.
        keep: Newest checkpoints to keep.
        spared: Name of a checkpoint that is kept besides.
    """

    def __init__(self, directory: Path, *, keep: int = 2, spared: str | None = None) -> None:
        self.directory = directory
        self.keep = keep
        self.spared = spared

    def newest_whole(self) -> Path | None:
        """Newest checkpoint whose every file is as it was written; damaged ones are named and passed over.

        Raises:
            ForeignCheckpointError: one is of another program, or of a newer version.
        """
        # A damaged one costs the steps since the one before; to refuse it would cost the whole run.
        for path in reversed(self.list()):
            try:
                verify(path)
            except ForeignCheckpointError:
                raise
            except DataError as error:
                logger.warning("%s; passed over", error)
            else:
                return path
        return None

    def list(self) -> list[Path]:
        """Published checkpoints, oldest first."""
        if not self.directory.is_dir():
            return []
        steps = {path: FOLDER.fullmatch(path.name) for path in self.directory.iterdir()}
        return sorted((path for path, match in steps.items() if match), key=step_of)

    def require_ours(self) -> None:
        """See that each checkpoint in the folder is ours, before one is written over or dropped for being old.

        Raises:
            ForeignCheckpointError: one is of another program, or of a newer version.
        """
        for path in self.list():
            require_ours(path)

    def save(self, state: TrainingState, step: int, *, write: bool) -> None:
        """Collect on every rank, and publish on the one that writes."""
        tensors, documents = state.collect()
        if write:
            self.publish(step, tensors, documents)

    def publish(
        self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], documents: Mapping[str, Any]
    ) -> Path:
        """Write a checkpoint, then drop the oldest ones.

        Args:
            step: Optimizer steps done.
            tensors: Content of each safetensors file, by its name without the ending.
            documents: Content of each JSON file, likewise.
        """
        target = self.directory / f"checkpoint-{step}"
        temporary = self.directory / f"{_TEMPORARY_PREFIX}{step}"
        self.directory.mkdir(parents=True, exist_ok=True)
        # Left by a run that was killed while it wrote this very step.
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir()
            with disk_errors(temporary):
                for name, content in tensors.items():
                    save_file(dict(content), temporary / f"{name}.safetensors")
            for name, document in documents.items():
                _write_json(temporary / f"{name}.json", document)
            open_to_umask(temporary)
            # Last, so that a folder with a manifest has all of its files; hashed as they lie on disk.
            (temporary / MANIFEST).write_text(manifest_text(step, digests_of(temporary)), encoding="utf-8")
            _sync(temporary)
            if target.exists():  # a damaged one that a resumed run passed over
                shutil.rmtree(target)
            # Files were flushed before, so the name cannot reach the disk earlier than what it names.
            temporary.rename(target)
            sync_folder(self.directory)
        # A signal too: what is half written helps nobody.
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        # Only now: an older checkpoint is deleted when a newer one is safe.
        self.drop_old(step)
        return target

    def drop_old(self, step: int) -> None:
        """Keep the newest `keep` up to a step, and the one that is spared; later ones are of a run before this."""
        for path in [path for path in self.list() if step_of(path) <= step][: -self.keep]:
            if path.name == self.spared:
                continue
            # Renamed first, so that a crash while deleting leaves no torn checkpoint under its name.
            doomed = path.with_name(f"{_TEMPORARY_PREFIX}{path.name}")
            shutil.rmtree(doomed, ignore_errors=True)
            path.rename(doomed)
            shutil.rmtree(doomed)

    def clear_temporary(self) -> None:
        """Remove what a killed run was writing or deleting."""
        if self.directory.is_dir():
            for path in self.directory.glob(f"{_TEMPORARY_PREFIX}*"):
                shutil.rmtree(path, ignore_errors=True)


def step_of(path: Path) -> int:
    """Optimizer steps done at a checkpoint."""
    match = FOLDER.fullmatch(path.name)
    assert match is not None, f"{path} is a checkpoint folder"
    return int(match.group(1))


def model_state(model: nn.Module) -> dict[str, Tensor]:
    """Trained parameters and buffers, gathered on the first rank; tied weights once."""
    # To the host, as a whole model beside its shards need not fit on a device. Frozen weights are those of the
    # model that the recipe names, and are not written again at every checkpoint.
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    state: dict[str, Any] = get_model_state_dict(model, options=options)
    seen: dict[int, str] = {}
    return {name: tensor.contiguous() for name, tensor in state.items() if _is_first(name, tensor, seen)}


def _is_first(name: str, tensor: Tensor, seen: dict[int, str]) -> bool:
    # safetensors refuses two names of one memory. Empty tensors have none, and all say address 0.
    return tensor.numel() == 0 or seen.setdefault(tensor.data_ptr(), name) == name


def load_model_state(model: nn.Module, path: Path) -> None:
    """Load what `model_state` gave, into sharded models too.

    Raises:
        DataError: other parameters are trained, or of other shapes; names one.
    """
    weights: dict[str, Any] = {
        _name_of_today(name): tensor for name, tensor in load_file(path / "model.safetensors").items()
    }
    _require_same_parameters(model, weights, path)
    # Not strict, since frozen weights are missing; all others were compared.
    options = StateDictOptions(full_state_dict=True, strict=False)
    set_model_state_dict(model, weights, options=options)


def _require_same_parameters(model: nn.Module, stored: Mapping[str, Tensor], path: Path) -> None:
    options = StateDictOptions(ignore_frozen_params=True)
    now: dict[str, Any] = get_model_state_dict(model, options=options)
    own = {plain_name(name): parameter for name, parameter in model.named_parameters(remove_duplicate=False)}
    held = {id(own[name]) for name in stored if name in own}
    added = [name for name in now if name not in stored and not (name in own and id(own[name]) in held)]
    gone = [name for name in stored if name not in now]
    reshaped = [name for name, tensor in stored.items() if name in now and now[name].shape != tensor.shape]
    if added:
        _refuse(path, added, "is trained now, and was frozen or absent when the checkpoint was written")
    if gone:
        is_there = "is frozen now" if gone[0] in own else "is not in the model now"
        _refuse(path, gone, f"was trained when the checkpoint was written, and {is_there}")
    if reshaped:
        then, here = list(stored[reshaped[0]].shape), list(now[reshaped[0]].shape)
        _refuse(path, reshaped, f"has shape {then} in the checkpoint and {here} in the model")


def _refuse(path: Path, names: Sequence[str], reason: str) -> None:
    others = f", and so on for {len(names) - 1} more" if len(names) > 1 else ""
    raise DataError(
        f"{path}: {names[0]} {reason}{others}: train the same parameters as before, or start again in another "
        "output_dir"
    )


def _name_of_today(name: str) -> str:
    for before, now in _RENAMED.items():
        if name.startswith(before):
            return now + name.removeprefix(before)
    return name


def random_state() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Random state of every rank (torch, CUDA) and of this process (Python, numpy)."""
    tensors = {f"cpu.{rank}": state for rank, state in enumerate(_all_ranks(torch.get_rng_state()))}
    if torch.cuda.is_available():
        states = _all_ranks(torch.cuda.get_rng_state())
        tensors |= {f"cuda.{rank}": state for rank, state in enumerate(states)}
    version, internal, gauss = random.getstate()
    name, keys, *rest = np.random.get_state(legacy=True)
    plain = {
        "python": [version, list(internal), gauss],
        "numpy": [name, np.asarray(keys).tolist(), *rest],
    }
    return tensors, plain


def load_random_state(path: Path) -> None:
    """Restore what `random_state` gave; a rank that was not there keeps its own."""
    tensors = load_file(path / "random.safetensors")
    plain = read_json(path, "random")
    rank = dist.get_rank() if dist.is_initialized() else 0
    if f"cpu.{rank}" in tensors:
        torch.set_rng_state(tensors[f"cpu.{rank}"])
    if torch.cuda.is_available() and f"cuda.{rank}" in tensors:
        torch.cuda.set_rng_state(tensors[f"cuda.{rank}"])
    version, internal, gauss = plain["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = plain["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))


def _all_ranks(state: Tensor) -> list[Tensor]:
    if not dist.is_initialized():
        return [state]
    # Random states live on the host, but NCCL moves nothing that is not on a GPU.
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    own = state.to(device)
    gathered = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, own)
    return [tensor.cpu() for tensor in gathered]


def _write_json(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document, sort_keys=True), encoding="utf-8")


def _sync(folder: Path) -> None:
    for file in folder.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    sync_folder(folder)

"""Checkpoints: whole or absent, and every flipped bit found."""

import random
import shutil
from pathlib import Path

import pytest

from collegium.base.errors import DataError
from collegium.training.checkpoint import CheckpointDirectory, step_of, verify
from tests.support.runs import trainer_of


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """A run folder with checkpoints 1, 2 and 3."""
    folder = tmp_path_factory.mktemp("run")
    trainer_of(folder, max_steps=3, save_strategy="steps", save_steps=1, save_total_limit=3).train()
    return folder


@pytest.fixture
def folder(written, tmp_path) -> Path:
    return shutil.copytree(written, tmp_path / "run")


def test_oldest_are_dropped(tmp_path):
    trainer_of(tmp_path, max_steps=3, save_strategy="steps", save_steps=1, save_total_limit=2).train()
    assert [step_of(path) for path in CheckpointDirectory(tmp_path).list()] == [2, 3]


def test_whole_ones_pass_a_thousand_times(folder):
    for _ in range(1000 // 3):
        for path in CheckpointDirectory(folder).list():
            verify(path)


def test_every_flipped_bit_is_found(folder):
    generator = random.Random(0)
    path = folder / "checkpoint-3"
    files = sorted(path.iterdir())
    for _ in range(150):
        file = generator.choice(files)
        content = file.read_bytes()
        damaged = bytearray(content)
        damaged[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        file.write_bytes(damaged)
        newest = CheckpointDirectory(folder).newest_whole()
        assert newest is not None
        assert step_of(newest) == 2, f"a flipped bit in {file.name} was not found"
        file.write_bytes(content)
    assert step_of(CheckpointDirectory(folder).newest_whole()) == 3


@pytest.mark.parametrize("damage", ["truncated", "missing", "extra", "swapped", "no manifest", "empty manifest"])
def test_other_damage_is_found(folder, damage):
    path = folder / "checkpoint-3"
    model, manifest = path / "model.safetensors", path / "manifest.json"
    if damage == "truncated":
        model.write_bytes(model.read_bytes()[:-1])
    elif damage == "missing":
        model.unlink()
    elif damage == "extra":
        (path / "more.safetensors").write_bytes(b"")
    elif damage == "swapped":
        model.write_bytes((folder / "checkpoint-2" / "model.safetensors").read_bytes())
    elif damage == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text("")
    with pytest.raises(DataError, match="checkpoint-3"):
        verify(path)
    assert step_of(CheckpointDirectory(folder).newest_whole()) == 2


def test_no_whole_one_is_none(folder, tmp_path):
    for path in CheckpointDirectory(folder).list():
        (path / "manifest.json").write_text("{}")
    assert CheckpointDirectory(folder).newest_whole() is None
    assert CheckpointDirectory(tmp_path / "nothing").newest_whole() is None


def test_other_folders_are_let_alone(folder):
    (folder / "checkpoint-best").mkdir()
    (folder / ".writing-7").mkdir()
    directory = CheckpointDirectory(folder)
    directory.clear_temporary()
    assert not (folder / ".writing-7").exists()
    assert (folder / "checkpoint-best").exists()
    assert [step_of(path) for path in directory.list()] == [1, 2, 3]

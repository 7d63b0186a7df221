"""Trackers write into the run folder; those that are asked through the environment leave it as it was."""

import os
from pathlib import Path
from typing import Any, ClassVar

import pytest
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback

from collegium.assembly.trackers import FOLDERS, keep_trackers_in
from tests.support.runs import trainer_of


class Writer:
    """In place of TensorBoard's."""

    folders: ClassVar[list[str]] = []

    def __init__(self, log_dir: str) -> None:
        self.folders.append(log_dir)

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: None


class Asked(TrainerCallback):
    """A tracker that asks for its folder when training begins, as wandb does."""

    def __init__(self) -> None:
        self.found: dict[str, str | None] = {}

    def on_train_begin(self, args, state, control, **_):
        self.found = {name: os.environ.get(name) for name in FOLDERS}


def tensorboard() -> TensorBoardCallback:
    """The callback, which can be made only where TensorBoard is installed."""
    callback: Any = TensorBoardCallback.__new__(TensorBoardCallback)
    callback.tb_writer = None
    callback.logging_dir = os.environ.get("TENSORBOARD_LOGGING_DIR")
    callback._SummaryWriter = Writer
    return callback


def trained(run_dir: Path) -> Asked:
    trainer = trainer_of(run_dir / "checkpoints", num_teachers=1, max_steps=1)
    asked = Asked()
    trainer.add_callback(tensorboard())
    trainer.add_callback(asked)
    keep_trackers_in(trainer, run_dir)
    trainer.train()
    return asked


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    for name in FOLDERS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Writer, "folders", [])


def test_each_run_keeps_its_own(tmp_path):
    for name in ("one", "two"):
        asked = trained(tmp_path / name)
        assert asked.found["WANDB_DIR"] == str(tmp_path / name)
        assert asked.found["SWANLAB_LOG_DIR"] == str(tmp_path / name / "swanlog")
        assert not any(variable in os.environ for variable in FOLDERS)
    assert Writer.folders == [str(tmp_path / name / "tensorboard") for name in ("one", "two")]
    assert not (tmp_path / "one" / "checkpoints" / "runs").exists()


def test_whoever_named_a_folder_has_decided(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "mine")
    monkeypatch.setenv("WANDB_DIR", "theirs")
    assert trained(tmp_path).found["WANDB_DIR"] == "theirs"
    assert Writer.folders == ["mine"] and os.environ["WANDB_DIR"] == "theirs"

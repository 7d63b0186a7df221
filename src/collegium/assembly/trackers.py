"""Files of experiment trackers, which lie in the run folder.

Of themselves TensorBoard writes into `checkpoints/runs`, wandb and SwanLab into the working folder. They are
asked through the environment, and only while a run is trained, so that several in one process keep apart. Whoever
has set these variables has decided already.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import TensorBoardCallback


FOLDERS: Mapping[str, str] = {
    "TENSORBOARD_LOGGING_DIR": "tensorboard",
    "WANDB_DIR": "",  # wandb makes a folder of its name itself
    "SWANLAB_LOG_DIR": "swanlog",
}
"""Variables that name a tracker's folder, and that folder in a run's."""


class TrackerFolders(TrainerCallback):
    """Names the folders while a run is trained.

    Args:
        run_dir: The run's folder.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._set: list[str] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Name those that nobody has."""
        self._set = [name for name in FOLDERS if name not in os.environ]
        os.environ.update({name: str(self._run_dir / FOLDERS[name]) for name in self._set})

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Leave the environment as it was."""
        for name in self._set:
            os.environ.pop(name, None)


def keep_trackers_in(trainer: Trainer, run_dir: Path) -> None:
    """Have the trackers of a trainer write below a run's folder."""
    callbacks = trainer.callback_handler.callbacks
    for callback in callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:  # it has read its variable
            callback.logging_dir = str(run_dir / FOLDERS["TENSORBOARD_LOGGING_DIR"])
    callbacks.insert(0, TrackerFolders(run_dir))  # trackers begin with the training too

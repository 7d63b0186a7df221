"""A `transformers.Trainer` whose checkpoints are whole or absent, and which goes on from the newest whole one.

Between upstream's loop and the distillation: it knows files and resuming, and nothing of teachers. What is written
and read is in `checkpoint`; the private methods that are replaced are listed in `overrides`, with the reasons.
"""

import dataclasses
from pathlib import Path
from typing import Any, cast

from torch import nn
from transformers import Trainer
from transformers.trainer_utils import TrainOutput

from collegium.base.errors import DataError
from collegium.base.finite import null_where_unknown
from collegium.base.progress import Phase
from collegium.training.checkpoint import (
    CheckpointDirectory,
    TrainingState,
    load_model_state,
    load_random_state,
    verify,
)


class CheckpointedTrainer(Trainer):
    """Writes checkpoints of what is trained, and resumes from them."""

    @property
    def checkpoints(self) -> CheckpointDirectory:
        """The folder of the checkpoints, with how many of them are kept."""
        return CheckpointDirectory(
            Path(cast(str, self.args.output_dir)), keep=self.args.save_total_limit or 1_000_000
        )

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train; `resume_from_checkpoint=True` goes on from the newest whole checkpoint, if there is one."""
        if self.args.should_save:
            self.checkpoints.clear_temporary()
        if resume_from_checkpoint is True:
            with Phase("looking for the newest whole checkpoint"):
                newest = self.checkpoints.newest_whole()
            if newest is None and self.checkpoints.list():
                raise DataError(
                    f"{self.checkpoints.directory}: every checkpoint is damaged; "
                    "restore one, or delete the folder to start again"
                )
            resume_from_checkpoint = None if newest is None else str(newest)
        output = super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        if self.args.should_save:
            self.checkpoints.drop_old()  # a run that was killed between writing and dropping left one more
        return output

    def stateful(self) -> dict[str, Any]:
        """Objects with a `state_dict` that a checkpoint keeps beside model and optimizer; None is left out."""
        return {"scheduler": self.lr_scheduler, "scaler": self.accelerator.scaler}

    def training_state(self) -> TrainingState:
        """Content of a checkpoint, as live objects."""
        assert self.model is not None
        assert self.optimizer is not None
        return TrainingState(
            model=self.model,
            optimizer=getattr(self.optimizer, "optimizer", self.optimizer),  # below accelerate's wrapper
            stateful=self.stateful(),
            documents={"trainer_state": null_where_unknown(dataclasses.asdict(self.state))},
        )

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Gather on all ranks, write on the first."""
        with Phase("writing a checkpoint"):
            self.checkpoints.save(self.training_state(), self.state.global_step, write=self.args.should_save)
            self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        assert self.model is not None
        with Phase("reading the checkpoint"):
            verify(Path(resume_from_checkpoint))
            load_model_state(model or self.model, Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self.training_state().load_optimizer(Path(checkpoint))

    def _load_scaler(self, checkpoint: str | None) -> None:
        """Loaded with the optimizer."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_random_state(Path(checkpoint))

"""A `transformers.Trainer` whose checkpoints are whole or absent, and which goes on from the newest whole one.

Between upstream's loop and the distillation: it knows files and resuming, and nothing of teachers. What is written
and read is in `checkpoint`, what must be the same in `origin`; the private methods that are replaced are listed in
`overrides`, with the reasons.
"""

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import Trainer, TrainerState
from transformers.trainer_utils import SaveStrategy, TrainOutput

from collegium.base.errors import DataError
from collegium.base.finite import null_where_unknown
from collegium.base.progress import Phase
from collegium.base.terminal import say
from collegium.report.metric_names import TRAIN_LOSS
from collegium.training.callback_states import callback_states, has_stopped_early, restore_callbacks
from collegium.training.checkpoint import (
    CheckpointDirectory,
    TrainingState,
    load_model_state,
    load_random_state,
)
from collegium.training.checkpoint_files import read_json, verify
from collegium.training.logged_loss import NAME as LOGGED
from collegium.training.logged_loss import LoggedLoss
from collegium.training.optimizer_state import require_resumable
from collegium.training.origin import ORIGIN, Origin, given_parts


class CheckpointedTrainer(Trainer):
    """Writes checkpoints of what is trained, and resumes from them."""

    _origin: Origin | None = None
    """What this run was made from, noted before its first step."""

    _loss_before: LoggedLoss | None = None
    """Sums of the checkpoint that is resumed from, until they are taken up."""

    _knows_loss = False
    """Whether the checkpoint that was resumed from had them."""

    @property
    def checkpoints(self) -> CheckpointDirectory:
        """The folder of the checkpoints, with how many of them are kept."""
        limit = self.args.save_total_limit
        best = self.state.best_model_checkpoint
        return CheckpointDirectory(
            Path(cast(str, self.args.output_dir)),
            keep=1_000_000 if limit is None or limit <= 0 else limit,
            spared=None if best is None else Path(best).name,
        )

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train; `resume_from_checkpoint=True` goes on from the newest whole checkpoint, if there is one.

        Raises:
            DataError: what is asked for is no whole checkpoint, or not of this training.
        """
        if self.args.should_save:
            self.checkpoints.clear_temporary()
        self.checkpoints.require_ours()
        checkpoint = self._checkpoint(resume_from_checkpoint)
        if checkpoint is None or self._origin is None:
            self._origin = self._made_from()
        max_steps = self.args.max_steps
        if checkpoint is not None:
            self._origin.require_same(checkpoint)
            self.args.max_steps = self._last_step(checkpoint)
        try:
            resumed = None if checkpoint is None else str(checkpoint)
            output = super().train(resumed, trial, ignore_keys_for_eval)
            output = output._replace(training_loss=output.metrics.get(TRAIN_LOSS, output.training_loss))
        finally:
            self.args.max_steps = max_steps
        if self.args.should_save:
            # A run that was killed between writing and dropping left one more.
            self.checkpoints.drop_old(self.state.global_step)
        return output

    def facts(self) -> dict[str, Any]:
        """What decides the result beside the arguments, by name; see `Origin`."""
        return {}

    def stateful(self) -> dict[str, Any]:
        """Objects with a `state_dict` that a checkpoint keeps beside model and optimizer; None is left out."""
        return {"scheduler": self.lr_scheduler, "scaler": self.accelerator.scaler}

    def training_state(self) -> TrainingState:
        """Content of a checkpoint, as live objects."""
        assert self.model is not None
        assert self.optimizer is not None
        origin = self._origin or self._made_from()
        return TrainingState(
            model=self.model,
            optimizer=getattr(self.optimizer, "optimizer", self.optimizer),  # below accelerate's wrapper
            stateful=self.stateful(),
            documents={
                "trainer_state": null_where_unknown(dataclasses.asdict(self.state)),
                ORIGIN: origin.document(self.state.global_step),
                LOGGED: self._loss_so_far().document(),
            },
        )

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make the optimizer of the arguments, if none was given.

        Raises:
            ValueError: checkpoints are to be written, and it cannot be resumed from one.
        """
        if self.optimizer is None and self.args.save_strategy != SaveStrategy.NO:
            require_resumable(self.args.optim)
        return super().create_optimizer(model)

    @cached_property
    def _given(self) -> Mapping[str, Any]:
        """Settings of the caller's own optimizer and scheduler; asked for first when there are no others yet."""
        return given_parts(self.optimizer, self.lr_scheduler)

    def _made_from(self) -> Origin:
        processes: int = self.accelerator.num_processes
        return Origin.of(self.args, processes=processes, facts=self.facts(), given=self._given)

    def _checkpoint(self, asked: str | bool | None) -> Path | None:
        """The checkpoint to go on from, whole; None to start."""
        if asked is None or asked is False:
            return None
        if asked is not True:
            with Phase("reading the checkpoint"):
                verify(Path(asked))
            return Path(asked)
        with Phase("looking for the newest whole checkpoint"):
            newest = self.checkpoints.newest_whole()
        if newest is None and self.checkpoints.list():
            raise DataError(
                f"{self.checkpoints.directory}: every checkpoint is damaged; "
                "restore one, or delete the folder to start again"
            )
        return newest

    def _last_step(self, checkpoint: Path) -> int:
        """The step at which a resumed run ends: that of the arguments, or at once if its patience had ended."""
        state = read_json(checkpoint, "trainer_state")
        unknown = state.keys() - {field.name for field in dataclasses.fields(TrainerState)}
        if unknown:
            raise DataError(
                f"{checkpoint}: was written with a newer transformers, which notes {', '.join(sorted(unknown))}: "
                "update it, or start again in another output_dir"
            )
        done = int(state["global_step"])
        if done > self.args.max_steps:
            raise DataError(
                f"{checkpoint}: has done {done} steps, but this run ends after {self.args.max_steps}: set "
                "max_steps or num_train_epochs to more, or start again in another output_dir"
            )
        if has_stopped_early(self.callback_handler.callbacks, state["stateful_callbacks"]):
            say(f"{checkpoint}: training had stopped early here, and so has nothing to go on with")
            return done
        if state["max_steps"] != self.args.max_steps:
            say(
                f"{checkpoint}: of a run of {state['max_steps']} steps, which ends after {self.args.max_steps} "
                "now: schedules follow the new number from here on"
            )
        return self.args.max_steps

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Gather on all ranks, write on the first."""
        self.store_flos()
        self.state.stateful_callbacks = cast(Any, callback_states(self.callback_handler.callbacks))
        best = self.checkpoints.directory / f"checkpoint-{self.state.best_global_step}"
        if self.state.best_global_step == self.state.global_step or best.is_dir():
            self.state.best_model_checkpoint = str(best)
        with Phase("writing a checkpoint"):
            self.checkpoints.save(self.training_state(), self.state.global_step, write=self.args.should_save)
            self.accelerator.wait_for_everyone()

    def _load_callback_state(self) -> None:
        """Called once the state is read, and before anything else of the checkpoint is."""
        self.state.compute_steps(self.args, self.args.max_steps)  # when to log and save is as it is given now
        restore_callbacks(self.callback_handler.callbacks, cast(Any, self.state.stateful_callbacks))

    def _load_best_model(self) -> None:
        """Go back to the weights of the best evaluation, once the training is over."""
        best = self.state.best_model_checkpoint
        assert best is not None, "asked only if there is one"
        verify(Path(best))
        self._load_from_checkpoint(best)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        assert self.model is not None
        with Phase("reading the checkpoint"):
            load_model_state(model or self.model, Path(resume_from_checkpoint))

    def _loss_so_far(self) -> LoggedLoss:
        """Sums up to now. A collective call."""
        if not hasattr(self, "_tr_loss"):  # before the first step
            return LoggedLoss(0.0, 0.0, 0)
        pending = self.accelerator.reduce(self._tr_loss, reduction="mean")
        return LoggedLoss(self._total_loss_scalar, float(pending), self._globalstep_last_logged)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Say the mean loss of all steps at the end, also of those before an interruption."""
        if TRAIN_LOSS in logs:
            logs[TRAIN_LOSS] = self._mean_loss(logs[TRAIN_LOSS])
        super().log(logs, start_time)

    def _mean_loss(self, since_resuming: float) -> float:
        if self._initial_global_step and not self._knows_loss:  # a checkpoint of an earlier version had none
            return since_resuming
        left = self._loss_before  # where no step was, as they would be taken up by the first
        total = self._total_loss_scalar if left is None else left.total + left.pending
        return total / max(self.state.global_step, 1)

    def _go_on_logging(self) -> None:
        """Take up the sums of a checkpoint, once upstream has set its own to nothing."""
        before = self._loss_before
        if before is not None:
            self._total_loss_scalar += before.total
            self._tr_loss += before.pending
            self._globalstep_last_logged = before.last_line
            self._loss_before = None

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self.training_state().load_optimizer(Path(checkpoint))
            self._loss_before = LoggedLoss.of(Path(checkpoint))
            self._knows_loss = self._loss_before is not None

    def _load_scaler(self, checkpoint: str | None) -> None:
        """Loaded with the optimizer."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_random_state(Path(checkpoint))
            self._go_on_logging()  # just before the first step

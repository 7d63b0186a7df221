"""Callbacks around training steps: metrics to a file, progress, and an orderly end on a signal."""

import contextlib
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import rewrite_logs

from collegium.base.interruption import HANG_UP, stop_signals
from collegium.base.progress import Phase
from collegium.base.terminal import say
from collegium.report.metric_names import CROSS_ENTROPY, KD_LOSS, LOSS, STEP
from collegium.signals.metrics import JsonlWriter, max_over_ranks


_ONE_WISH = 2.0
"""Seconds within which signals are one wish: a launcher passes on what the whole process group got already."""


class MetricsFile(TrainerCallback):
    """Writes every log line to `metrics.jsonl`, as `train/...` and `eval/...`."""

    def __init__(self, path: Path) -> None:
        self._writer = JsonlWriter(path)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Drop lines that lie after the checkpoint from which the run goes on."""
        if state.is_world_process_zero:
            self._writer.keep(up_to_step=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Append one line."""
        if state.is_world_process_zero and logs:
            self._writer.write({STEP: state.global_step, **rewrite_logs(logs)})


class Stopped(Exception):
    """A signal ended the run after a whole checkpoint."""

    def __init__(self, signal_number: int, step: int) -> None:
        super().__init__(
            f"stopped by {signal.Signals(signal_number).name} after step {step}; the same command resumes"
        )
        self.exit_code = 128 + signal_number


class StopOnSignal(TrainerCallback):
    """On Ctrl-C, SIGTERM or a terminal that closes: finish the step, write a checkpoint, stop.

    Ranks agree at the end of every step whether to stop: signals reach them at different moments, and a
    checkpoint is a collective affair.
    """

    def __init__(self) -> None:
        self._received = 0
        self._received_at = 0.0
        self._outer: Any = None
        self._stopped_by = 0

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Handle signals inside the block, around the whole training."""
        self._outer = signal.getsignal(signal.SIGINT)
        with stop_signals(self._receive):
            yield
            self._agree()  # on a signal after the last step, which would otherwise pass unheard

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if not self._received:
            self._received = number
            self._received_at = time.monotonic()
            say("stopping after this step; once more stops at once")
        elif number != HANG_UP and time.monotonic() - self._received_at > _ONE_WISH:
            # The user has lost patience, or a scheduler will kill the process soon.
            if callable(self._outer) and self._outer is not signal.default_int_handler:
                self._outer(number, frame)  # the command line's, which says so and ends the process
            raise SystemExit(128 + number)

    def _agree(self) -> None:
        self._stopped_by = max_over_ranks(self._received)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Ask for a checkpoint and the end, on all ranks or on none."""
        self._agree()  # at each step, signal or not: the other ranks wait for this one's answer
        if self._stopped_by:
            control.should_save = control.should_training_stop = True
        return control

    def raise_if_stopped(self, step: int) -> None:
        """Turn the end that a signal caused into `Stopped`."""
        if self._stopped_by:
            raise Stopped(self._stopped_by, step)


class TrainingProgress(TrainerCallback):
    """Counts steps, and shows the newest loss beside them.

    Args:
        phase: The phase in which the training takes place.
    """

    def __init__(self, phase: Phase) -> None:
        self._phase = phase

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Begin to count."""
        self._phase.begin_at(state.global_step, state.max_steps)
        if state.global_step:
            say(f"resuming after step {state.global_step} of {state.max_steps}")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Count a step."""
        self._phase.update(state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Show the newest figures."""
        if logs and LOSS in logs:
            shown = [f"{name} {logs[name]:.3f}" for name in (LOSS, KD_LOSS, CROSS_ENTROPY) if name in logs]
            self._phase.update(state.global_step, note=", ".join(shown))

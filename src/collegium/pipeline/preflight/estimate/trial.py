"""Some real optimizer steps, one evaluation, one checkpoint: what each takes.

The steps are those of the recipe: its student, teachers or their caches, batch size, accumulation and chunks.
They are written nowhere but to a folder that the caller throws away.
"""

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import SaveStrategy

from collegium.assembly.generation import measure_generation
from collegium.assembly.run import Run
from collegium.assembly.training import build_trainer
from collegium.base.progress import Phase
from collegium.evaluation.cost import Clock
from collegium.evaluation.language_modeling import HeldOut
from collegium.pipeline.comparison import beside_others, student_evaluation
from collegium.pipeline.preflight.estimate.written import line_bytes, publish, write_checkpoint
from collegium.recipe.recipe import Recipe
from collegium.report.evaluation_file import evaluation_text
from collegium.training.callbacks import MetricsFile, TrainingProgress
from collegium.training.measurement import measure_student
from collegium.training.trainer import DistillationTrainer


MIN_STEPS = 5
"""Measured steps at least, after the first one."""

MAX_STEPS = 50
"""Measured steps at most."""

ENOUGH_SECONDS = 20.0
"""Time of measured steps that is enough, once there are `MIN_STEPS`; of slow ones three times that."""

TRIED_TOKENS = (2, 12)
"""Lengths of the continuations that are timed; the cost of a longer one follows from their difference."""


@dataclass
class StepTimes(TrainerCallback):
    """When each step ended; stops when enough is known."""

    ends: list[float] = field(default_factory=list)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Note the time."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())
        seconds = self.ends[-1] - self.ends[0]
        if seconds > ENOUGH_SECONDS * (1.0 if len(self.ends) > MIN_STEPS else 3.0):
            control.should_training_stop = True
        return control

    @property
    def step_seconds(self) -> list[float]:
        """Seconds of each step but the first, from the end of the one before."""
        return [after - before for before, after in zip(self.ends, self.ends[1:], strict=False)]


@dataclass(frozen=True)
class Trial:
    """Time and space that a short run took.

    Attributes:
        seconds: `student` (making it), `first` (the trainer, up to the end of the first step), `evaluation`,
            `summary` (its intervals), `others` (what the report shows beside them), `checkpoint`, `published`
            (writing the student), `remix` (one measurement of the domains, where they are mixed), `asked`
            (held-out text, by the teachers), `generation`.
        steps: Seconds of each step after the first.
        num_steps: Steps that the whole run has.
        checkpoint_bytes: Of one, without its log.
        student_bytes: Of the folder, and of its adapter.
        log_bytes: Of one log line.
        evaluation_bytes: Of evaluation.json.
    """

    seconds: Mapping[str, float]
    steps: Sequence[float]
    num_steps: int
    checkpoint_bytes: int
    student_bytes: int
    log_bytes: int
    evaluation_bytes: int

    @property
    def step_seconds(self) -> float:
        """Seconds of one step of the run; the trial's first where there is no other."""
        return statistics.median(self.steps) if self.steps else self.seconds["first"]


def run_trial(run: Run, *, num_blocks: int) -> Trial:
    """Try a run.

    Args:
        run: With numbers for temperatures, maybe on a part of the training text. Teachers were not asked about its
            held-out text yet. Its folder is written to; the caller removes it.
        num_blocks: Training blocks that the whole run has.
    """
    folder = run.folder
    assert folder is not None, "the caller makes one"
    clock = Clock()
    times = StepTimes()
    tried = run.derive(recipe=_shortened(run.recipe, num_blocks), teachers=run.teachers, held_out=run.held_out)
    with clock.timed("student"):
        tried.make("student")
    with clock.timed("first"):
        trainer = build_trainer(tried, [MetricsFile(folder / "metrics.jsonl"), times])
    trainer.args.save_strategy = SaveStrategy.NO
    start = time.perf_counter()
    with Phase("some steps", unit="steps") as phase:
        trainer.add_callback(TrainingProgress(phase))
        trainer.train()
    clock.seconds["first"] += times.ends[0] - start
    evaluation_bytes = _measure(run, trainer, clock)
    if trainer.mixing is not None:
        with clock.timed("remix"):
            measure_student(trainer.distillation_model, trainer.mixing.held_out)
    checkpoint = write_checkpoint(trainer, folder)
    student = publish(trainer, folder, checkpoint)
    clock.seconds |= {"checkpoint": checkpoint.seconds, "published": student.seconds}
    clock.seconds["generation"] = _generation_seconds(run, trainer)
    return Trial(
        clock.seconds,
        times.step_seconds,
        num_steps_of(run.recipe, num_blocks, trainer.accelerator.num_processes),
        checkpoint.bytes,
        student.bytes,
        line_bytes(folder / "metrics.jsonl"),
        evaluation_bytes,
    )


def _measure(run: Run, trainer: DistillationTrainer, clock: Clock) -> int:
    """Measure as a run does, after the steps, since memory depends on the order; bytes of evaluation.json."""
    with clock.timed("asked"):
        _ask(run.held_out)
    with clock.timed("evaluation"):
        tables = measure_student(trainer.distillation_model, run.held_out, own=run.rule)
    with clock.timed("summary"):
        evaluation = student_evaluation(run, tables)
    model = trainer.distillation_model.causal_lm.eval()
    with clock.timed("others"):
        evaluation = beside_others(evaluation, run, tables, model, before=model)
    return len(evaluation_text(evaluation))


def _ask(held_out: HeldOut) -> None:
    """Have teachers score held-out text; what they say is kept."""
    for domain in held_out.domains.values():
        for _ in domain.batches():
            pass


def num_steps_of(recipe: Recipe, num_blocks: int, num_processes: int) -> int:
    """Optimizer steps of the whole run."""
    training = recipe.training
    if training.max_steps is not None:
        return training.max_steps
    assert training.num_epochs is not None, "validated: one of the two is given"
    blocks_per_step = training.batch_size * training.gradient_accumulation * num_processes
    return math.ceil(training.num_epochs * num_blocks / blocks_per_step)


def _shortened(recipe: Recipe, num_blocks: int) -> Recipe:
    """A few steps, and nothing on the way that is measured by itself; trackers hear nothing of it."""
    steps = min(num_steps_of(recipe, num_blocks, 1), MAX_STEPS + 1)
    changes = {"max_steps": steps, "num_epochs": None, "evaluate_every": None, "report_to": ()}
    return recipe.model_copy(update={"training": recipe.training.model_copy(update=changes)})


def _generation_seconds(run: Run, trainer: DistillationTrainer) -> float:
    """Seconds of the continuations, from short ones."""
    recipe = run.recipe
    section = recipe.evaluation.generation
    if section is None:
        return 0.0
    lengths = sorted({min(length, section.new_tokens) for length in TRIED_TOKENS})
    clock = Clock()
    for length in lengths:
        shorter = section.model_copy(update={"new_tokens": length})
        evaluation = recipe.evaluation.model_copy(update={"generation": shorter})
        model: Any = trainer.distillation_model.student
        model.eval()
        brief = run.derive(recipe=recipe.model_copy(update={"evaluation": evaluation}), teachers=run.teachers)
        with clock.timed(str(length)):
            measure_generation(brief, model)
    first = clock.seconds[str(lengths[0])]
    last = clock.seconds[str(lengths[-1])]
    per_token = max(0.0, last - first) / max(1, lengths[-1] - lengths[0])
    return last + per_token * (section.new_tokens - lengths[-1])

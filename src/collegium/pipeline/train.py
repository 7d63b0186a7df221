"""`collegium train`: a student and its evaluation in the run folder, or on from where a stopped run was.

A run folder holds `recipe.yaml` (resolved), `metrics.jsonl`, `checkpoints/`, `student/` (a plain Hugging
Face folder) and `evaluation.json`; `temperatures.json` too where some were fitted. Everything is written
under another name and renamed.
"""

import logging
import shutil
from dataclasses import replace
from pathlib import Path

from collegium.assembly.process import held_folder
from collegium.assembly.run import Run
from collegium.assembly.student import trained_student
from collegium.assembly.training import build_trainer
from collegium.assembly.weights import require_weights
from collegium.base.durable import sync_folder
from collegium.base.progress import Phase
from collegium.base.terminal import say
from collegium.evaluation.cost import Clock
from collegium.evaluation.language_modeling import DocumentSums
from collegium.pipeline.cost import cost_of
from collegium.pipeline.evaluate import finished_evaluation
from collegium.pipeline.lengths import require_length
from collegium.pipeline.measure import measure_all, write_evaluation
from collegium.pipeline.run_folder import claim_run_dir
from collegium.recipe.recipe import Recipe
from collegium.report.evaluation import Evaluation
from collegium.training.callbacks import MetricsFile, StopOnSignal, TrainingProgress
from collegium.training.measurement import measure_student
from collegium.training.publication import ADAPTER
from collegium.training.trainer import DistillationTrainer


logger = logging.getLogger(__name__)


def train(recipe: Recipe) -> Evaluation:
    """Train the student, or go on where a stopped run was; returns its evaluation.

    Raises:
        BusyError: another process is writing the run folder.
        RecipeError: the run folder holds another recipe's run.
        Stopped: a signal asked for an end; a checkpoint was written.
    """
    with held_folder(recipe.run_dir):
        return _train(recipe, recipe.run_dir)


def _train(recipe: Recipe, folder: Path) -> Evaluation:
    claim_run_dir(recipe, folder)
    if (folder / "student").exists():
        say(f"{folder}: finished already; delete it or set another output_dir to run again")
        return finished_evaluation(folder)
    run = Run(recipe, folder=folder)
    clock = Clock()
    resumed = any(folder.glob("checkpoints/checkpoint-*"))  # for the record of costs; the trainer decides itself
    run.make("past_runs")  # before any work: a run that is continued must be finished
    with Phase("looking at the models' files"):
        require_weights(recipe)  # before any work, too
    with clock.timed("start, text and models"):
        run.make("text", "prompts", "tasks")  # it may be that there are none, which is to be said before training
        for sentence in require_length(recipe, len(run.text.train)):
            logger.warning(sentence)
        run.make("teachers", "held_out")
    with clock.timed("training"):
        fit_student(run)
    with clock.timed("evaluation"):
        tables = measure_student(run.trainer.distillation_model, run.held_out, own=run.rule)
        evaluation = measure_all(run, tables, trained_student(run, str(folder / "student")))
    cost = cost_of(run, clock, resumed=resumed)
    return write_evaluation(run, folder, replace(evaluation, cost=cost))


def train_student(run: Run) -> dict[str, DocumentSums]:
    """Train, publish `student/`, and measure it on held-out text."""
    return measure_student(fit_student(run).distillation_model, run.held_out, own=run.rule)


def fit_student(run: Run) -> DistillationTrainer:
    """Train and publish `student/`."""
    assert run.folder is not None, "a run is trained in its folder"
    signals = StopOnSignal()
    training = Phase("training", unit="steps")
    callbacks = [MetricsFile(run.folder / "metrics.jsonl"), TrainingProgress(training), signals]
    trainer = run.trainer = build_trainer(run, callbacks)
    with signals.listening(), training:
        trainer.train(resume_from_checkpoint=True)
    signals.raise_if_stopped(trainer.state.global_step)
    publish_student(trainer, run.folder)
    return trainer


def publish_student(trainer: DistillationTrainer, folder: Path) -> None:
    """Write `student/`, and `adapter/` beside it if only that was trained; each whole or not at all.

    Raises:
        DataError: what was written and read back is not the student that was trained.
    """
    if trainer.is_world_process_zero():
        temporary = folder / ".writing"
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            trainer.save_model(str(temporary))
            if (temporary / ADAPTER).is_dir():
                shutil.rmtree(folder / ADAPTER, ignore_errors=True)
                (temporary / ADAPTER).rename(folder / ADAPTER)
                say(f"{folder}: student/ has the adapter merged into plain weights, adapter/ has it alone")
            temporary.rename(folder / "student")  # last: it says that the run is finished
            sync_folder(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()

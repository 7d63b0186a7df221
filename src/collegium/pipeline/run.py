"""What the commands do: each takes a recipe and leaves its result in the run folder.

A run folder holds `recipe.yaml` (resolved), `metrics.jsonl`, `checkpoints/`, `student/` (a plain Hugging
Face folder) and `evaluation.json`; `temperatures.json` too where some were fitted. Everything is written
under another name and renamed.
"""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from collegium.alignment.tokenizer_match import require_same_tokenizer
from collegium.assembly.continuation import first_student
from collegium.assembly.generation import measure_generation
from collegium.assembly.lineage import lineage_of
from collegium.assembly.run import Run
from collegium.assembly.tasks import measure_tasks
from collegium.assembly.training import build_trainer
from collegium.base.durable import disk_errors
from collegium.base.errors import DataError
from collegium.base.terminal import is_main_rank, say
from collegium.evaluation.continual import continual_figures
from collegium.evaluation.cost import Clock
from collegium.evaluation.harness import HarnessTasks, evaluate_with_harness, require_harness
from collegium.evaluation.language_modeling import DocumentSums
from collegium.evaluation.model_figures import measure_model
from collegium.models.pretrained import check_model, load_model, load_tokenizer, place
from collegium.pipeline.card import write_card
from collegium.pipeline.comparison import (
    STUDENT,
    beside_others,
    cost_of,
    initial_student,
    logged_curves,
    student_evaluation,
)
from collegium.pipeline.run_folder import claim_run_dir
from collegium.recipe.recipe import Recipe
from collegium.report.evaluation import Continual, Evaluation
from collegium.report.evaluation_file import NAME, read_evaluation, save_evaluation, stored_cost
from collegium.report.words import verdict
from collegium.training.callbacks import MetricsFile, StopOnSignal, TrainingProgress
from collegium.training.trainer import DistillationTrainer, measure_student


def prepare(recipe: Recipe) -> dict[str, Any]:
    """Turn text into packed blocks on disk, at once if they are there; says where they are and how many."""
    text = Run(recipe).text
    return {
        "directory": str(text.directory),
        "fingerprint": text.fingerprint,
        "training_blocks": len(text.train),
        "held_out_blocks": {name: len(blocks) for name, blocks in text.held_out.items()},
    }


def train(recipe: Recipe) -> Evaluation:
    """Train the student, or go on where a stopped run was; returns its evaluation.

    Raises:
        RecipeError: the run folder holds another recipe's run.
        Stopped: a signal asked for an end; a checkpoint was written.
    """
    run_dir = recipe.run_dir
    claim_run_dir(recipe, run_dir)
    if (run_dir / "student").exists():
        say(f"{run_dir}: finished already; delete it or set another output_dir to run again")
        return finished_evaluation(run_dir)
    run = Run(recipe, folder=run_dir)
    clock = Clock()
    resumed = any(run_dir.glob("checkpoints/checkpoint-*"))
    run.make("past_runs")  # before any work: a run that is continued must be finished
    with clock.timed("start, text and models"):
        run.make("text", "prompts", "tasks")  # it may be that there are none, which is to be said before training
        run.make("teachers", "held_out")
    with clock.timed("training"):
        fit_student(run)
    with clock.timed("evaluation"):
        tables = measure_student(run.trainer.distillation_model, run.held_out, own=run.rule)
        student = place(load_model(str(run_dir / "student"), dtype=torch.float32), run.device).eval()
        evaluation = measure_all(run, tables, student)
    cost = cost_of(run, run_dir, clock, resumed=resumed)
    return write_evaluation(run, run_dir, replace(evaluation, cost=cost))


def measure_all(
    run: Run, tables: Mapping[str, DocumentSums], student: PreTrainedModel, *, model: str = STUDENT
) -> Evaluation:
    """All that is measured of a student.

    Args:
        run: Without a folder if the student came from elsewhere.
        tables: The student's figures on held-out text.
        student: The student.
        model: `student`, or what is measured in its place.
    """
    before = None if run.folder is None else initial_student(run)
    evaluation = student_evaluation(run, tables, model=model)
    return replace(
        beside_others(evaluation, run, tables, student, before),
        curves=logged_curves(run.folder),
        continual=compare_with_past(run, tables),
        generation=measure_generation(run, student),
        tasks=measure_tasks(run, student) or {},
    )


def train_student(run: Run) -> dict[str, DocumentSums]:
    """Train, publish `student/`, and measure it on held-out text."""
    return measure_student(fit_student(run).distillation_model, run.held_out, own=run.rule)


def fit_student(run: Run) -> DistillationTrainer:
    """Train and publish `student/`."""
    assert run.folder is not None, "a run is trained in its folder"
    signals = StopOnSignal()
    callbacks = [MetricsFile(run.folder / "metrics.jsonl"), TrainingProgress(), signals]
    trainer = run.trainer = build_trainer(run, callbacks)
    with signals.listening():
        trainer.train(resume_from_checkpoint=True)
    signals.raise_if_stopped(trainer.state.global_step)
    publish_student(trainer, run.folder)
    return trainer


def publish_student(trainer: DistillationTrainer, run_dir: Path) -> None:
    """Write `student/`, and `adapter/` beside it if only that was trained; each whole or not at all."""
    if trainer.is_world_process_zero():
        temporary = run_dir / ".writing"
        try:
            with disk_errors(temporary):
                shutil.rmtree(run_dir / "adapter", ignore_errors=True)
                if trainer.distillation_model.save_adapter(temporary):
                    temporary.rename(run_dir / "adapter")
                trainer.save_model(str(temporary))
                temporary.rename(run_dir / "student")  # last: it says that the run is finished
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()


def evaluate_run(run_dir: Path, harness: HarnessTasks | None = None) -> Evaluation:
    """Measure the student of a finished run again, on tasks of lm-eval too if there are some.

    Raises:
        DataError: there is no finished run.
    """
    if not (run_dir / "student").is_dir():
        raise DataError(f"{run_dir}: holds no `student` folder; give a finished run, or use --recipe with a model")
    recipe = Run.from_folder(run_dir).recipe
    return evaluate_model(recipe, str(run_dir / "student"), run_dir, harness)


def evaluate_model(
    recipe: Recipe, model: str, output_dir: Path, harness: HarnessTasks | None = None
) -> Evaluation:
    """Measure any model with the recipe's tokenizer on its held-out text, against its teachers."""
    if harness is not None:
        require_harness(harness)
    run_dir = output_dir if (output_dir / "recipe.yaml").exists() else None
    run = Run(recipe, folder=run_dir)
    run.make("text")
    require_same_tokenizer(run.tokenizer, load_tokenizer(model), name=model)
    student = place(load_model(model, dtype=torch.float32), run.device)
    check_model(student, run.vocab_size, name=model)
    tables = measure_model(student, run.held_out, run.vocab_size, own=run.rule)
    is_runs_own = model == str(output_dir / STUDENT)
    evaluation = measure_all(run, tables, student.eval(), model=STUDENT if is_runs_own else model)
    evaluation = replace(evaluation, cost=stored_cost(output_dir))  # what it took to train is not measured again
    if harness is not None:
        scores = evaluate_with_harness(student, run.tokenizer, harness, device=run.device)
        evaluation = replace(evaluation, lm_eval=scores)
    return write_evaluation(run, output_dir, evaluation)


def compare_with_past(run: Run, tables: Mapping[str, DocumentSums]) -> Continual | None:
    """What the student forgot of the runs that it continues and what it gained; None if it continues none."""
    if not run.past_runs:
        return None
    recipe = run.recipe
    held_out = run.derive(teachers=()).held_out

    def measured(model: PreTrainedModel) -> dict[str, DocumentSums]:
        return measure_model(place(model, run.device).eval(), held_out, run.vocab_size)

    return continual_figures(
        tables,
        {str(past.folder): measured(load_model(past.student, dtype=torch.float32)) for past in run.past_runs},
        {str(past.folder): past.domains for past in run.past_runs},
        measured(first_student(run)),
        confidence=recipe.evaluation.confidence,
        num_samples=recipe.evaluation.bootstrap_samples,
        seed=recipe.seed,
    )


def write_evaluation(run: Run, folder: Path, evaluation: Evaluation) -> Evaluation:
    """Add lineage and verdict, and write `evaluation.json`; the model card too if the student is the run's own."""
    is_runs_own = evaluation.model == STUDENT
    lineage = lineage_of(run, folder) if is_runs_own else None
    evaluation = replace(evaluation, lineage=lineage, verdict=tuple(verdict(evaluation)))
    if is_main_rank():
        save_evaluation(evaluation, folder)
        if is_runs_own:
            write_card(folder, run.recipe, evaluation)
    return evaluation


def finished_evaluation(run_dir: Path) -> Evaluation:
    """The evaluation of a finished run; measured now if the run was stopped before."""
    return read_evaluation(run_dir) if (run_dir / NAME).exists() else evaluate_run(run_dir)

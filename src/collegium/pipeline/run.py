"""What the commands do: each takes a recipe and leaves its result in the run folder.

A run folder holds `recipe.yaml` (resolved), `metrics.jsonl`, `checkpoints/`, `student/` (a plain Hugging
Face folder) and `evaluation.json`; `temperatures.json` too where some were fitted. Everything is written
under another name and renamed.
"""

import json
import shutil
from collections.abc import Mapping
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
from collegium.assembly.training import build_trainer, describe_held_out
from collegium.base.durable import disk_errors, write_text
from collegium.base.errors import DataError
from collegium.base.terminal import is_main_rank, say
from collegium.evaluation.continual import continual_figures
from collegium.evaluation.cost import Clock
from collegium.evaluation.harness import HarnessTasks, evaluate_with_harness, require_harness
from collegium.evaluation.language_modeling import DocumentSums
from collegium.evaluation.model_figures import measure_model
from collegium.evaluation.summary import summarize
from collegium.models.pretrained import check_model, load_model, load_tokenizer, place
from collegium.pipeline.card import write_card
from collegium.pipeline.comparison import cost_of, course, initial_student, portray
from collegium.pipeline.run_folder import claim_run_dir
from collegium.recipe.recipe import Recipe
from collegium.recipe.sections.evaluation import EvaluationSection
from collegium.report.words import verdict
from collegium.training.callbacks import MetricsFile, StopOnSignal, TrainingProgress
from collegium.training.trainer import DistillationTrainer, measure_student


LISTS = ("documents", "passages", "course")
"""Sections of `evaluation.json` that are for programs."""


def prepare(recipe: Recipe) -> dict[str, Any]:
    """Turn text into packed blocks on disk, at once if they are there; says where they are and how many."""
    text = Run(recipe).text
    return {
        "directory": str(text.directory),
        "fingerprint": text.fingerprint,
        "training_blocks": len(text.train),
        "held_out_blocks": {name: len(blocks) for name, blocks in text.held_out.items()},
    }


def train(recipe: Recipe) -> dict[str, Any]:
    """Train the student, or go on where a stopped run was; returns its evaluation.

    Raises:
        RecipeError: the run folder holds another recipe's run.
        Stopped: a signal asked for an end; a checkpoint was written.
    """
    run_dir = recipe.run_dir
    claim_run_dir(recipe, run_dir)
    if (run_dir / "student").exists():
        say(f"{run_dir}: finished already; delete it or set another output_dir to run again")
        return read_evaluation(run_dir)
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
        sections = measure_all(run, tables, student)
    sections["cost"] = cost_of(run, run_dir, clock, resumed=resumed)
    return write_evaluation(run, run_dir, tables, model="student", sections=sections)


def measure_all(run: Run, tables: Mapping[str, DocumentSums], student: PreTrainedModel) -> dict[str, Any]:
    """All that is measured beside the student's figures, as sections of `evaluation.json`.

    Args:
        run: Without a folder if the student came from elsewhere.
        tables: The student's figures on held-out text.
        student: The student.
    """
    students = {"student": student}
    if run.folder is not None:
        students = {"student before": initial_student(run), **students}
    return {
        **portray(run, tables, students),
        "course": None if run.folder is None else course(run.folder),
        "continual": compare_with_past(run, tables),
        "generation": measure_generation(run, student),
        "tasks": measure_tasks(run, student),
    }


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


def evaluate_run(run_dir: Path, harness: HarnessTasks | None = None) -> dict[str, Any]:
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
) -> dict[str, Any]:
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
    sections = measure_all(run, tables, student.eval())
    if (output_dir / "evaluation.json").exists():  # what it took to train, which is not measured again
        sections["cost"] = _read(output_dir / "evaluation.json").get("cost")
    if harness is not None:
        sections["lm_eval"] = evaluate_with_harness(student, run.tokenizer, harness, device=run.device)
    return write_evaluation(run, output_dir, tables, model=model, sections=sections)


def compare_with_past(run: Run, tables: Mapping[str, DocumentSums]) -> dict[str, Any] | None:
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


def write_evaluation(
    run: Run,
    folder: Path,
    tables: Mapping[str, DocumentSums],
    *,
    model: str,
    sections: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Summarise and write `evaluation.json`; sections that are None are left out."""
    recipe = run.recipe
    is_runs_own = model in ("student", str(folder / "student"))
    summary = summary_of(tables, recipe.evaluation, recipe.seed)
    num_tokens = sum(domain["tokens"] for domain in summary["domains"].values())
    result = {
        "recipe": recipe.fingerprint,
        "model": "student" if is_runs_own else model,
        "held_out": {**describe_held_out(run), "predicted_tokens": num_tokens},
        **summary,
        **{name: section for name, section in (sections or {}).items() if section is not None},
        **({"lineage": lineage_of(run, folder)} if is_runs_own else {}),
    }
    result["verdict"] = verdict(result)
    if is_main_rank():
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "evaluation.json", evaluation_text(result))
        if "lineage" in result:
            write_card(folder, recipe, result)
    return result


def evaluation_text(result: Mapping[str, Any]) -> str:
    """As JSON; sections that are long lists take a line each, and the others are laid out to be read."""
    lines = (
        f"{json.dumps(name)}: {json.dumps(section, indent=None if name in LISTS else 1)}"
        for name, section in result.items()
    )
    return "{\n" + ",\n".join(lines) + "\n}\n"


def summary_of(tables: Mapping[str, DocumentSums], section: EvaluationSection, seed: int) -> dict[str, Any]:
    """Figures with intervals, as the recipe asks for them."""
    return summarize(tables, confidence=section.confidence, num_samples=section.bootstrap_samples, seed=seed)


def read_evaluation(run_dir: Path) -> dict[str, Any]:
    """The evaluation of a finished run; measured now if the run was stopped before."""
    path = run_dir / "evaluation.json"
    if not path.exists():
        return evaluate_run(run_dir)
    return _read(path)


def _read(path: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result

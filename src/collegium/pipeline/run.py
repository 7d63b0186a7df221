"""What the commands do: each takes a recipe and leaves its result in the run folder.

A run folder holds `recipe.yaml` (resolved), `metrics.jsonl`, `checkpoints/`, `student/` (a plain Hugging
Face folder) and `evaluation.json`; `temperatures.json` too where some were fitted. Everything is written
under another name and renamed.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import PartialState
from transformers import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from collegium.alignment.tokenizer_match import require_same_tokenizer
from collegium.assembly.cache import build_teachers
from collegium.assembly.calibration import fit_recipe
from collegium.assembly.continuation import first_student, past_runs
from collegium.assembly.generation import build_prompts, measure_generation
from collegium.assembly.ingredients import Ingredients, build_ingredients
from collegium.assembly.lineage import lineage_of
from collegium.assembly.objective import own_rule
from collegium.assembly.student import build_student
from collegium.assembly.tasks import build_tasks, measure_tasks
from collegium.assembly.training import build_held_out, build_trainer, describe_held_out
from collegium.base.durable import disk_errors, write_text
from collegium.base.errors import DataError
from collegium.base.terminal import ProgressLine, duration, is_main_rank, say
from collegium.data.settings import PrepareProgress
from collegium.evaluation.continual import continual_figures
from collegium.evaluation.cost import Clock
from collegium.evaluation.harness import HarnessTasks, evaluate_with_harness, require_harness
from collegium.evaluation.language_modeling import DocumentSums, HeldOut
from collegium.evaluation.model_figures import measure_model
from collegium.evaluation.summary import summarize
from collegium.models.pretrained import check_model, load_model, load_tokenizer, place
from collegium.pipeline.card import write_card
from collegium.pipeline.comparison import cost_of, course, initial_student, portray
from collegium.pipeline.run_folder import claim_run_dir
from collegium.recipe.file import load_recipe
from collegium.recipe.recipe import Recipe
from collegium.recipe.sections.evaluation import EvaluationSection
from collegium.report.words import verdict
from collegium.signals.contracts import Teacher
from collegium.training.callbacks import MetricsFile, StopOnSignal, TrainingProgress
from collegium.training.trainer import DistillationTrainer, measure_student


LISTS = ("documents", "passages", "course")
"""Sections of `evaluation.json` that are for programs."""

disable_progress_bar()  # those of transformers; ours say what is going on


def prepare(recipe: Recipe) -> Ingredients:
    """Text to packed blocks on disk; at once if they are there."""
    line = ProgressLine()

    def show(progress: PrepareProgress) -> None:
        left = "" if progress.seconds_left is None else f", {duration(progress.seconds_left)} left"
        line.update(
            f"preparing {progress.source}: {progress.documents:,} documents, {progress.tokens:,} tokens",
            pace=f"{progress.tokens_per_second:,.0f} tokens/s{left}",
            done=progress.tokens if progress.tokens_total else None,
            total=progress.tokens_total,
        )

    # The first rank prepares and the others find the text prepared; then, on nodes that do not see the
    # first one's disk, the first rank of each node.
    state = _process_state()
    with state.main_process_first(), state.local_main_process_first():
        ingredients = build_ingredients(recipe, on_progress=show)
    train = ingredients.text.train
    held_out = {name: len(blocks) for name, blocks in ingredients.text.held_out.items()}
    line.finish(f"text: {len(train):,} training blocks, held-out blocks {held_out}")
    return ingredients


def describe_text(ingredients: Ingredients) -> dict[str, Any]:
    """What was prepared, for programs."""
    text = ingredients.text
    return {
        "directory": str(text.directory),
        "fingerprint": text.fingerprint,
        "training_blocks": len(text.train),
        "held_out_blocks": {name: len(blocks) for name, blocks in text.held_out.items()},
    }


def _process_state() -> PartialState:
    return PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=1))


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
    past_runs(recipe)  # before any work: a run that is continued must be finished
    clock, resumed = Clock(), any(run_dir.glob("checkpoints/checkpoint-*"))
    with clock.timed("start, text and models"):
        ingredients = prepare(recipe)
        build_prompts(ingredients, recipe.evaluation.generation)  # before training: it may be that there are none
        build_tasks(recipe)  # likewise
        fitted, _ = fit_recipe(recipe, ingredients, device=device(), run_dir=run_dir)
        teachers = build_teachers(fitted, ingredients, device=device())
        held_out = build_held_out(recipe, ingredients, teachers, device=device())
    with clock.timed("training"):
        trainer = fit_student(recipe, ingredients, teachers, held_out)
    with clock.timed("evaluation"):
        tables = measure_student(trainer.distillation_model, held_out, own=own_rule(recipe))
        student = place(load_model(str(run_dir / "student"), dtype=torch.float32), device()).eval()
        sections = measure_all(recipe, ingredients, teachers, held_out, tables, student, run_dir=run_dir)
    sections["cost"] = cost_of(recipe, ingredients, run_dir, clock, resumed=resumed)
    return write_evaluation(run_dir, tables, recipe, ingredients, model="student", sections=sections)


def measure_all(
    recipe: Recipe,
    ingredients: Ingredients,
    teachers: Sequence[Teacher],
    held_out: HeldOut,
    tables: Mapping[str, DocumentSums],
    student: PreTrainedModel,
    *,
    run_dir: Path | None,
) -> dict[str, Any]:
    """All that is measured beside the student's figures, as sections of `evaluation.json`.

    Args:
        recipe: The recipe.
        ingredients: Tokenizer and text.
        teachers: In the recipe's order.
        held_out: Text that they were asked about.
        tables: The student's figures on it.
        student: The student.
        run_dir: Of the run that made the student; None if it came from elsewhere.
    """
    where = {"device": device()}
    students = {"student": student}
    if run_dir is not None:
        students = {"student before": initial_student(recipe, ingredients, run_dir, device()), **students}
    return {
        **portray(recipe, ingredients, teachers, held_out, tables, students, **where),
        "course": None if run_dir is None else course(run_dir),
        "continual": compare_with_past(recipe, ingredients, tables),
        "generation": measure_generation(recipe, ingredients, teachers, student, **where),
        "tasks": measure_tasks(recipe, ingredients, teachers, student, **where),
    }


def train_student(
    recipe: Recipe, ingredients: Ingredients, teachers: Sequence[Teacher], held_out: HeldOut
) -> dict[str, DocumentSums]:
    """Train, publish `student/`, and measure it on held-out text."""
    trainer = fit_student(recipe, ingredients, teachers, held_out)
    return measure_student(trainer.distillation_model, held_out, own=own_rule(recipe))


def fit_student(
    recipe: Recipe, ingredients: Ingredients, teachers: Sequence[Teacher], held_out: HeldOut | None
) -> DistillationTrainer:
    """Train and publish `student/`."""
    run_dir = recipe.run_dir
    signals = StopOnSignal()
    trainer = build_trainer(
        recipe,
        ingredients,
        build_student(recipe, ingredients, run_dir=run_dir),
        teachers,
        run_dir=run_dir,
        held_out=held_out,
        callbacks=[MetricsFile(run_dir / "metrics.jsonl"), TrainingProgress(), signals],
    )
    with signals.listening():
        trainer.train(resume_from_checkpoint=True)
    signals.raise_if_stopped(trainer.state.global_step)
    publish_student(trainer, run_dir)
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
    """Measure the student of a finished run anew, on tasks of lm-eval too if there are some.

    Raises:
        DataError: there is no finished run.
    """
    if not (run_dir / "student").is_dir():
        raise DataError(f"{run_dir}: holds no `student` folder; give a finished run, or use --recipe with a model")
    recipe = load_recipe(run_dir / "recipe.yaml")
    return evaluate_model(recipe, str(run_dir / "student"), run_dir, harness)


def evaluate_model(
    recipe: Recipe, model: str, output_dir: Path, harness: HarnessTasks | None = None
) -> dict[str, Any]:
    """Measure any model with the recipe's tokenizer on its held-out text, against its teachers."""
    if harness is not None:
        require_harness(harness)
    ingredients = prepare(recipe)
    require_same_tokenizer(ingredients.tokenizer, load_tokenizer(model), name=model)
    student = place(load_model(model, dtype=torch.float32), device())
    check_model(student, ingredients.vocab_size, name=model)
    run_dir = output_dir if (output_dir / "recipe.yaml").exists() else None
    fitted, _ = fit_recipe(recipe, ingredients, device=device(), run_dir=run_dir)
    teachers = build_teachers(fitted, ingredients, device=device())
    held_out = build_held_out(recipe, ingredients, teachers, device=device())
    tables = measure_model(student, held_out, ingredients.vocab_size, own=own_rule(recipe))
    sections = measure_all(recipe, ingredients, teachers, held_out, tables, student.eval(), run_dir=run_dir)
    if (output_dir / "evaluation.json").exists():  # what it took to train, which is not measured anew
        sections["cost"] = _read(output_dir / "evaluation.json").get("cost")
    if harness is not None:
        sections["lm_eval"] = evaluate_with_harness(student, ingredients.tokenizer, harness, device=device())
    return write_evaluation(output_dir, tables, recipe, ingredients, model=model, sections=sections)


def compare_with_past(
    recipe: Recipe, ingredients: Ingredients, tables: Mapping[str, DocumentSums]
) -> dict[str, Any] | None:
    """What the student forgot of the runs that it continues and what it gained; None if it continues none."""
    runs = past_runs(recipe)
    if not runs:
        return None
    held_out = build_held_out(recipe, ingredients, [], device=device())

    def measured(model: PreTrainedModel) -> dict[str, DocumentSums]:
        return measure_model(place(model, device()).eval(), held_out, ingredients.vocab_size)

    return continual_figures(
        tables,
        {str(run.folder): measured(load_model(run.student, dtype=torch.float32)) for run in runs},
        {str(run.folder): run.domains for run in runs},
        measured(first_student(runs, ingredients)),
        confidence=recipe.evaluation.confidence,
        num_samples=recipe.evaluation.bootstrap_samples,
        seed=recipe.seed,
    )


def write_evaluation(
    folder: Path,
    tables: Mapping[str, DocumentSums],
    recipe: Recipe,
    ingredients: Ingredients,
    *,
    model: str,
    sections: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Summarise and write `evaluation.json`; sections that are None are left out."""
    is_runs_own = model in ("student", str(folder / "student"))
    summary = summary_of(tables, recipe.evaluation, recipe.seed)
    num_tokens = sum(domain["tokens"] for domain in summary["domains"].values())
    result = {
        "recipe": recipe.fingerprint,
        "model": "student" if is_runs_own else model,
        "held_out": {**describe_held_out(recipe, ingredients), "predicted_tokens": num_tokens},
        **summary,
        **{name: section for name, section in (sections or {}).items() if section is not None},
        **({"lineage": lineage_of(recipe, ingredients, folder)} if is_runs_own else {}),
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


def device() -> torch.device:
    """This process's device."""
    return cast(torch.device, _process_state().device)

"""`collegium evaluate`: the student of a finished run, or any model in its place, measured again."""

from dataclasses import replace
from pathlib import Path

from collegium.alignment.tokenizer_match import require_same_tokenizer
from collegium.assembly.process import held_folder
from collegium.assembly.run import Run
from collegium.assembly.student import trained_student
from collegium.base.digests import verify_student
from collegium.base.errors import DataError
from collegium.base.progress import Phase
from collegium.base.terminal import say
from collegium.evaluation.harness import HarnessTasks, evaluate_with_harness, require_harness
from collegium.evaluation.model_figures import measure_model
from collegium.models.pretrained import load_tokenizer
from collegium.pipeline.comparison import STUDENT
from collegium.pipeline.measure import measure_all, write_evaluation
from collegium.recipe.recipe import Recipe
from collegium.report.evaluation import Evaluation
from collegium.report.evaluation_file import NAME, is_of_this_version, read_evaluation, stored_cost


def evaluate_run(run_dir: Path, harness: HarnessTasks | None = None) -> Evaluation:
    """Measure the student of a finished run again, on tasks of lm-eval too if there are some.

    Raises:
        BusyError: another process is writing the run folder.
        DataError: there is no finished run.
    """
    _require_student(run_dir)
    with held_folder(run_dir):
        return _measure_run(run_dir, harness)


def evaluate_model(
    recipe: Recipe, model: str, output_dir: Path, harness: HarnessTasks | None = None
) -> Evaluation:
    """Measure any model with the recipe's tokenizer on its held-out text, against its teachers.

    Raises:
        BusyError: another process is writing `output_dir`.
    """
    with held_folder(output_dir):
        return _measure(recipe, model, output_dir, harness)


def _require_student(run_dir: Path) -> None:
    if not (run_dir / "student").is_dir():
        raise DataError(f"{run_dir}: holds no `student` folder; give a finished run, or use --recipe with a model")


def _measure_run(run_dir: Path, harness: HarnessTasks | None) -> Evaluation:
    verify_student(run_dir / "student")
    recipe = Run.from_folder(run_dir).recipe
    return _measure(recipe, str(run_dir / "student"), run_dir, harness)


def _measure(recipe: Recipe, model: str, output_dir: Path, harness: HarnessTasks | None) -> Evaluation:
    if harness is not None:
        require_harness(harness)
    run = Run(recipe, folder=output_dir if (output_dir / "recipe.yaml").exists() else None)
    run.make("text")
    require_same_tokenizer(run.tokenizer, load_tokenizer(model), name=model)
    student = trained_student(run, model, name=model)
    with Phase(f"measuring {model}"):
        tables = measure_model(student, run.held_out, run.vocab_size, own=run.rule)
    is_runs_own = model == str(output_dir / STUDENT)
    evaluation = measure_all(run, tables, student, model=STUDENT if is_runs_own else model)
    evaluation = replace(evaluation, cost=stored_cost(output_dir))  # what it took to train is not measured again
    if harness is not None:
        scores = evaluate_with_harness(student, run.tokenizer, harness, device=run.device)
        evaluation = replace(evaluation, lm_eval=scores)
    return write_evaluation(run, output_dir, evaluation)


def finished_evaluation(run_dir: Path) -> Evaluation:
    """The evaluation of a finished run, whose folder is held; measured now if there is none of this version."""
    if not (run_dir / NAME).exists():
        return _measure_run(run_dir, None)
    if not is_of_this_version(run_dir):
        say(f"{run_dir / NAME}: was written by another version of collegium; measuring again")
        return _measure_run(run_dir, None)
    return read_evaluation(run_dir)

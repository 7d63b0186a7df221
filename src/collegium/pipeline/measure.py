"""All that is measured of a finished student, and the writing of `evaluation.json`."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from collegium.assembly.continuation import first_student
from collegium.assembly.generation import measure_generation
from collegium.assembly.lineage import lineage_of
from collegium.assembly.run import Run
from collegium.assembly.tasks import measure_tasks
from collegium.base.progress import Phase
from collegium.base.terminal import is_main_rank, say
from collegium.evaluation.continual import continual_figures
from collegium.evaluation.language_modeling import DocumentSums
from collegium.evaluation.model_figures import measure_model
from collegium.models.pretrained import load_model, place
from collegium.models.probe import check_model
from collegium.pipeline.card import write_card
from collegium.pipeline.comparison import STUDENT, beside_others, student_evaluation
from collegium.report.curves import curves_of
from collegium.report.evaluation import Continual, Curve, Evaluation
from collegium.report.evaluation_file import save_evaluation
from collegium.report.metric_names import STEP, TRAIN_RUNTIME
from collegium.report.words import verdict
from collegium.signals.metrics import read_jsonl


def measure_all(
    run: Run, tables: Mapping[str, DocumentSums], student: PreTrainedModel, *, model: str = STUDENT
) -> Evaluation:
    """Measure all that an evaluation says of a student.

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


def initial_student(run: Run) -> PreTrainedModel:
    """The student before training, without adapters, which change nothing before they are trained."""
    bare = run.recipe.student.model_copy(update={"lora": None})
    student: Any = run.derive(recipe=run.recipe.model_copy(update={"student": bare})).student
    placed: PreTrainedModel = place(student, run.device).eval()
    return placed


def logged_curves(folder: Path | None) -> dict[str, Curve]:
    """Curves that were logged while the student was trained, thinned out; empty if none were."""
    path = None if folder is None else folder / "metrics.jsonl"
    if path is None or not path.exists():
        return {}
    records = read_jsonl(path)
    last = records[-1] if records else {}
    if STEP in last and not any(name.endswith(TRAIN_RUNTIME) for name in last):
        say(f"{path}: was cut off, its last line is of step {last[STEP]}: curves end there")
    return curves_of(records)


def compare_with_past(run: Run, tables: Mapping[str, DocumentSums]) -> Continual | None:
    """Measure what a student forgot of the runs that it continues, and gained; None if it continues none."""
    if not run.past_runs:
        return None
    recipe = run.recipe
    held_out = run.derive(teachers=()).held_out

    def measured(model: PreTrainedModel) -> dict[str, DocumentSums]:
        check_model(model, run.vocab_size, name="student of an earlier run", shape=run.block_shape)
        return measure_model(place(model, run.device).eval(), held_out, run.vocab_size)

    with Phase("comparing with earlier runs"):
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
    with Phase("looking up where models and text are from"):
        lineage = lineage_of(run, folder) if is_runs_own else None
    evaluation = replace(evaluation, lineage=lineage, verdict=tuple(verdict(evaluation)))
    if is_main_rank():
        if is_runs_own:
            write_card(folder, run.recipe, evaluation)
        save_evaluation(evaluation, folder)  # last: it says that the run was measured
    return evaluation

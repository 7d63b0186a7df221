"""Work that a process does: training and measuring one student, or measuring the targets themselves.

Held-out text and the teachers' outputs on it are kept from one run to the next, so that measuring a student costs
only its own forward pass. The result of a run is one JSON file, written last and in one piece.
"""

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from collegium.assembly.generation import build_writing
from collegium.assembly.objective import build_rule
from collegium.assembly.run import Run
from collegium.assembly.student import trained_student
from collegium.base.digests import write_sealed
from collegium.evaluation.generation import continuation_figures, continue_documents
from collegium.evaluation.language_modeling import DocumentSums, Rule
from collegium.evaluation.model_figures import measure_model
from collegium.paper.preparation import alone
from collegium.paper.run_result import RunResult
from collegium.paper.specification import in_folder
from collegium.paper.task_work import num_parameters, student_tasks
from collegium.pipeline.cache import cache as build_caches
from collegium.pipeline.run_folder import claim_run_dir
from collegium.pipeline.train import fit_student
from collegium.recipe.recipe import Recipe
from collegium.report.metric_names import CONFIDENCE_GAPS, ENTROPY_OWN, KL_OWN


@dataclass(frozen=True)
class Training:
    """A student to be trained and measured.

    Attributes:
        key: Name of its folder.
        recipe: See `collegium.paper.experiment.PlannedRun`.
        judge: Recipe of the held-out text and teachers that measure it.
        own: Whether to measure it against its own target too, which costs another pass.
    """

    key: str
    recipe: Mapping[str, Any]
    judge: Mapping[str, Any]
    own: bool


def result_path(output: Path, key: str) -> Path:
    """Path of the result of a run, which exists once the run is finished."""
    return output / "runs" / key / "result.json"


def train_and_measure(training: Training, output: Path) -> None:
    """Train a student unless that is done, and write its figures for every held-out document."""
    start = time.monotonic()
    path = result_path(output, training.key)
    folder = path.parent
    seconds = 0.0
    if path.exists():  # only its own target is left to measure
        seconds = RunResult.read(path).seconds
    recipe = Recipe.model_validate(in_folder({**training.recipe, "output_dir": str(folder)}, output))
    judge = _judge(json.dumps(training.judge, sort_keys=True), output)
    taught = Run(recipe, folder=folder)
    with alone(output):
        taught.make("text")
        if recipe.teachers_to_cache:
            build_caches(recipe)
        claim_run_dir(recipe, folder)
        taught.make("fitted")
    if not (folder / "student").exists():  # otherwise it was stopped after its training
        fit_student(taught.derive())  # a run of its own, whose teachers are gone when the student is measured
    model = trained_student(judge, str(folder / "student"))
    result = {
        "recipe": recipe.fingerprint,
        "steps": recipe.training.max_steps,
        "tables": {
            name: as_numbers(t)
            for name, t in _tables(model, judge, taught if training.own else None, output).items()
        },
        "continuations": _continuations(model, judge),
        "tasks": student_tasks(model, judge),
        "parameters": num_parameters(model),
        "own": training.own,
        "seconds": round(seconds + time.monotonic() - start, 1),
    }
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    write_sealed(path, result)


def _tables(model: PreTrainedModel, judge: Run, taught: Run | None, output: Path) -> dict[str, DocumentSums]:
    """Against the judge; its own target against what the student learnt from, which may be other teachers."""
    rule = None if taught is None else taught.rule
    if taught is None or rule is None:
        return _measured(model, judge)
    plain = [{**t.model_dump(mode="json"), "cached": False} for t in taught.fitted.teachers]
    if plain == [t.model_dump(mode="json") for t in judge.recipe.teachers]:
        return _measured(model, judge, rule)
    tables = _measured(model, judge)
    measured = _measured(model, _judge(_own_judge(judge, plain), output), rule)
    return {name: replace(table, sums=table.sums | _own(measured[name])) for name, table in tables.items()}


def _own(table: DocumentSums) -> dict[str, torch.Tensor]:
    return {metric: sums for metric, sums in table.sums.items() if metric in (KL_OWN, ENTROPY_OWN)}


def _measured(model: PreTrainedModel, judge: Run, own: Rule | None = None) -> dict[str, DocumentSums]:
    return measure_model(model, judge.held_out, judge.vocab_size, own=own)


def _own_judge(judge: Run, sections: list[dict[str, Any]]) -> str:
    content = judge.recipe.model_dump(mode="json")
    content["teachers"] = sections
    content["evaluation"] |= {"generation": None, "tasks": []}
    return json.dumps(content, sort_keys=True)


def _continuations(model: PreTrainedModel, judge: Run) -> dict[str, float] | None:
    """BLEU and related figures over all domains."""
    section = judge.recipe.evaluation.generation
    if section is None or judge.references is None:
        return None
    how = build_writing(judge, section)
    written = continue_documents(model, judge.references, judge.tokenizer, how)
    figures = continuation_figures(written, judge.references)["all"]
    return {name: round(figure.value, 4) for name, figure in figures.items()}


def measure_targets(recipe: Mapping[str, Any], targets: Mapping[str, Any], output: Path, path: Path) -> None:
    """Measure teachers alone and fused targets on held-out text: the losses of a perfect student."""
    judge = _judge(json.dumps(recipe, sort_keys=True), output)
    rules = {}
    for name, weighting in targets.items():
        objective = {"kd_weight": 1.0, "weighting": weighting}
        rules[name] = build_rule(Recipe.model_validate(in_folder({**recipe, "objective": objective}, output)))
    sums = judge.held_out.measure_targets(rules)
    write_sealed(path, {name: as_numbers(table) for name, table in sums.items()})


@lru_cache(maxsize=4)
def _judge(recipe: str, output: Path) -> Run:
    """Make the run that measures students: held-out text, teachers, and their continuations of its documents."""
    judge = Run(Recipe.model_validate(in_folder(json.loads(recipe), output)))
    with alone(output):
        judge.make("text")
    judge.make("teachers", "references", "held_out")
    return judge


def as_numbers(table: DocumentSums) -> dict[str, Any]:
    """Convert the sums of each document to lists, with four decimals."""
    numbers: dict[str, Any] = {
        "tokens": [int(n) for n in table.tokens],
        "bytes": [int(n) for n in table.num_bytes],
        "figures": {name: _rounded(sums) for name, sums in table.sums.items()},
    }
    if table.confidence_gaps is not None:
        numbers[CONFIDENCE_GAPS] = [_rounded(row) for row in table.confidence_gaps]
    return numbers


def _rounded(values: torch.Tensor) -> list[float]:
    return [round(float(value), 4) for value in values]

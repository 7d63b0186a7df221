"""One piece of work in a process of its own: a teacher, a student, or the targets themselves.

Held-out text and what teachers say about it is kept from one run to the next, so that measuring a student
costs its own forward pass. A run's result is one JSON file, written last and at once: what is there is whole.
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

from collegium.assembly.cache import build_teachers
from collegium.assembly.calibration import fit_recipe
from collegium.assembly.generation import build_references, build_writing
from collegium.assembly.ingredients import Ingredients
from collegium.assembly.objective import build_rule, own_rule
from collegium.assembly.training import build_held_out
from collegium.base.durable import write_text
from collegium.evaluation.generation import References, continuation_figures, continue_documents
from collegium.evaluation.language_modeling import DocumentSums, HeldOut
from collegium.evaluation.model_figures import measure_model
from collegium.models.pretrained import load_model, place
from collegium.paper.made import alone
from collegium.paper.specification import in_folder
from collegium.paper.task_work import num_parameters, student_tasks
from collegium.pipeline.cache import cache as build_caches
from collegium.pipeline.run import device, fit_student, prepare
from collegium.pipeline.run_folder import claim_run_dir
from collegium.recipe.recipe import Recipe


@dataclass(frozen=True)
class Training:
    """A run to be made.

    Attributes:
        key: Names its folder.
        recipe: See `collegium.paper.experiment.Run`.
        judge: Recipe of the held-out text and teachers that measure it.
        own: Whether to measure it against its own target too, which costs another pass.
    """

    key: str
    recipe: Mapping[str, Any]
    judge: Mapping[str, Any]
    own: bool


@dataclass(frozen=True)
class Judge:
    """What measures students: held-out text, teachers, and how these go on with its documents."""

    recipe: Recipe
    ingredients: Ingredients
    held_out: HeldOut
    references: References | None


def result_path(output: Path, key: str) -> Path:
    """Where the result of a run is, once it is finished."""
    return output / "runs" / key / "result.json"


def train_and_measure(training: Training, output: Path) -> None:
    """Train a student, if that is not done, and write its figures of every held-out document."""
    start = time.monotonic()
    path = result_path(output, training.key)
    folder, seconds = path.parent, 0.0
    if path.exists():  # it is to be measured against its own target too
        seconds = json.loads(path.read_text(encoding="utf-8"))["seconds"]
    recipe = Recipe.model_validate(in_folder({**training.recipe, "output_dir": str(folder)}, output))
    judge = _judge(json.dumps(training.judge, sort_keys=True), output)
    with alone(output):
        ingredients = prepare(recipe)
        if any(teacher.kind == "local" and teacher.cached for teacher in recipe.teachers):
            build_caches(recipe)
        claim_run_dir(recipe, folder)
        fitted, _ = fit_recipe(recipe, ingredients, device=device(), run_dir=folder)
    if not (folder / "student").exists():  # else it was stopped after its training
        fit_student(recipe, ingredients, build_teachers(fitted, ingredients, device=device()), None)
    model = place(load_model(str(folder / "student"), dtype=torch.float32), device()).eval()
    result = {
        "recipe": recipe.fingerprint,
        "steps": recipe.training.max_steps,
        "tables": {
            name: as_numbers(t)
            for name, t in _tables(model, judge, fitted if training.own else None, output).items()
        },
        "continuations": _continuations(model, judge),
        "tasks": student_tasks(model, judge.recipe, judge.ingredients),
        "parameters": num_parameters(model),
        "own": training.own,
        "seconds": round(seconds + time.monotonic() - start, 1),
    }
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    write_text(path, json.dumps(result))


def _tables(model: PreTrainedModel, judge: Judge, fitted: Recipe | None, output: Path) -> dict[str, DocumentSums]:
    """Against the judge; `kl/own` against what the student learnt from, which may be other teachers."""
    rule = None if fitted is None else own_rule(fitted)
    if fitted is None or rule is None:
        return measure_model(model, judge.held_out, judge.ingredients.vocab_size)
    plain = [{**t.model_dump(mode="json"), "cached": False} for t in fitted.teachers]
    if plain == [t.model_dump(mode="json") for t in judge.recipe.teachers]:
        return measure_model(model, judge.held_out, judge.ingredients.vocab_size, own=rule)
    tables = measure_model(model, judge.held_out, judge.ingredients.vocab_size)
    own = _judge(_own_judge(judge.recipe, plain), output)
    measured = measure_model(model, own.held_out, own.ingredients.vocab_size, own=rule)
    return {
        name: replace(
            table, sums=table.sums | {k: v for k, v in measured[name].sums.items() if k.endswith("/own")}
        )
        for name, table in tables.items()
    }


def _own_judge(recipe: Recipe, teachers: list[dict[str, Any]]) -> str:
    content = recipe.model_dump(mode="json")
    content["teachers"] = teachers
    content["evaluation"] |= {"generation": None, "tasks": []}
    return json.dumps(content, sort_keys=True)


def _continuations(model: PreTrainedModel, judge: Judge) -> dict[str, float] | None:
    """BLEU and its like over all domains."""
    section = judge.recipe.evaluation.generation
    if section is None or judge.references is None:
        return None
    how = build_writing(judge.ingredients, section)
    written = continue_documents(model, judge.references, judge.ingredients.tokenizer, how)
    figures = continuation_figures(written, judge.references)["all"]
    return {name: round(figure.value, 4) for name, figure in figures.items()}


def measure_targets(recipe: Mapping[str, Any], targets: Mapping[str, Any], output: Path, path: Path) -> None:
    """Measure teachers alone and fused targets on held-out text: what a perfect student would come to."""
    judge = _judge(json.dumps(recipe, sort_keys=True), output)
    rules = {}
    for name, weighting in targets.items():
        objective = {"kd_weight": 1.0, "weighting": weighting}
        rules[name] = build_rule(Recipe.model_validate(in_folder({**recipe, "objective": objective}, output)))
    sums = judge.held_out.measure_targets(rules)
    write_text(path, json.dumps({name: as_numbers(table) for name, table in sums.items()}))


@lru_cache(maxsize=4)
def _judge(recipe: str, output: Path) -> Judge:
    loaded = Recipe.model_validate(in_folder(json.loads(recipe), output))
    with alone(output):
        ingredients = prepare(loaded)
    teachers = build_teachers(loaded, ingredients, device=device())
    section, references = loaded.evaluation.generation, None
    if section is not None:
        references = build_references(loaded, ingredients, teachers, section, device=device())
    return Judge(loaded, ingredients, build_held_out(loaded, ingredients, teachers, device=device()), references)


def as_numbers(table: DocumentSums) -> dict[str, Any]:
    """Sums of each document as lists, to four digits after the point."""
    numbers: dict[str, Any] = {
        "tokens": [int(n) for n in table.tokens],
        "bytes": [int(n) for n in table.num_bytes],
        "figures": {name: _rounded(sums) for name, sums in table.sums.items()},
    }
    if table.confidence_gaps is not None:
        numbers["confidence_gaps"] = [_rounded(row) for row in table.confidence_gaps]
    return numbers


def _rounded(values: torch.Tensor) -> list[float]:
    return [round(float(value), 4) for value in values]

"""The quickstart: distil three experts into one student, and show that it was worth it.

Two students start from the same weights and read the same blocks in the same order: one learns from the
fused teachers, the other from the text alone. Both are measured on the same held-out documents.
"""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from collegium.assembly.cache import build_teachers
from collegium.assembly.ingredients import Ingredients
from collegium.assembly.objective import build_rule
from collegium.assembly.student import build_student
from collegium.assembly.training import build_held_out
from collegium.base.durable import write_text
from collegium.base.terminal import duration, say, show_json, show_table
from collegium.evaluation.language_modeling import DocumentSums, HeldOut
from collegium.evaluation.model_figures import measure_model
from collegium.evaluation.summary import compare
from collegium.models.pretrained import load_model, place
from collegium.pipeline.report import report
from collegium.pipeline.run import device, measure_all, prepare, train_student, write_evaluation
from collegium.pipeline.run_folder import claim_run_dir
from collegium.recipe.file import load_recipe
from collegium.recipe.recipe import Recipe
from collegium.signals.contracts import Teacher


PROMPT = "Once upon a time, a small robot"


def demo_recipe(output: Path, *, name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe that ships with the package, for one of the demo's students."""
    path = Path(str(files("collegium.demo") / "recipe.yaml"))
    return load_recipe(path, [*overrides, f"output_dir={json.dumps(str(output / name))}"])


def run_demo(output: Path, *, as_json: bool) -> None:
    """Run the demo; a second call goes on where the first was stopped."""
    start = time.monotonic()
    fused = demo_recipe(output, name="fused")
    plain = demo_recipe(output, name="cross-entropy", overrides=["objective.kd_weight=0", "teachers=[]"])
    say("three experts (web, code, stories) over SmolLM2-135M teach a student of 20 of its 30 layers")
    ingredients = prepare(fused)
    teachers = build_teachers(fused, ingredients, device=device())
    held_out = build_held_out(fused, ingredients, teachers, device=device())
    say("measuring teachers and the student before training")
    names = [teacher.name for teacher in teachers]
    targets = held_out.measure_targets({"fused": build_rule(fused)})
    before = cast(PreTrainedModel, build_student(fused, ingredients))
    students = {"student before": _measure(before, ingredients, held_out)}
    say("training on the text alone (cross-entropy)")
    students["student, cross-entropy only"] = _trained(plain, ingredients, [], held_out)
    say("training on the fused teachers and the text")
    students["student, distilled"] = _trained(fused, ingredients, teachers, held_out)
    result = _result(targets, names, students, fused)
    result["seconds"] = round(time.monotonic() - start, 1)
    write_text(output / "demo.json", json.dumps(result, indent=1))
    page = report([fused.run_dir, plain.run_dir], output / "report.html")["page"]
    if as_json:
        show_json(result)
    else:
        _show(result, fused.run_dir / "student", page)


def _measure(model: PreTrainedModel, ingredients: Ingredients, held_out: HeldOut) -> dict[str, DocumentSums]:
    return measure_model(place(model, device()).eval(), held_out, ingredients.vocab_size)


def _trained(
    recipe: Recipe, ingredients: Ingredients, teachers: Sequence[Teacher], held_out: HeldOut
) -> dict[str, DocumentSums]:
    claim_run_dir(recipe, recipe.run_dir)
    folder = recipe.run_dir / "student"
    if folder.exists():  # the demo was stopped after this student
        return _measure(load_model(str(folder), dtype=torch.float32), ingredients, held_out)
    tables = train_student(recipe, ingredients, teachers, held_out)
    student = place(load_model(str(folder), dtype=torch.float32), device()).eval()
    own = held_out if teachers else build_held_out(recipe, ingredients, [], device=device())  # who taught nothing
    sections = measure_all(recipe, ingredients, teachers, own, tables, student, run_dir=recipe.run_dir)
    write_evaluation(recipe.run_dir, tables, recipe, ingredients, model="student", sections=sections)
    return tables


def _result(
    targets: Mapping[str, DocumentSums],
    names: Sequence[str],
    students: Mapping[str, Mapping[str, DocumentSums]],
    recipe: Recipe,
) -> dict[str, Any]:
    losses = {name: _losses(tables, "nll") for name, tables in students.items()}
    losses |= {f"teacher {name}": _losses(targets, f"teacher/{name}/nll") for name in names}
    losses["teachers, fused"] = _losses(targets, "rule/fused/nll")
    differences = compare(
        students["student, distilled"],
        students["student, cross-entropy only"],
        confidence=recipe.evaluation.confidence,
        num_samples=recipe.evaluation.bootstrap_samples,
        seed=recipe.seed,
    )
    tokens = recipe.training.batch_size * recipe.data.block_size * (recipe.training.max_steps or 0)
    return {
        "recipe": recipe.fingerprint,
        "training_tokens": tokens,
        "nll": losses,
        "kl_to_common_target": {name: _losses(tables, "kl/common") for name, tables in students.items()},
        "distilled_minus_cross_entropy": {name: asdict(value) for name, value in differences.items()},
    }


def _losses(tables: Mapping[str, DocumentSums], figure: str) -> dict[str, float]:
    row = {domain: table.mean(figure) for domain, table in tables.items()}
    return {**row, "mean": sum(row.values()) / len(row)}


def _show(result: Mapping[str, Any], folder: Path, page: str) -> None:
    columns = list(next(iter(result["nll"].values())))
    rows = [[name, *(f"{math.exp(row[column]):.1f}" for column in columns)] for name, row in result["nll"].items()]
    best = list(result["nll"]).index("student, distilled")
    title = f"Perplexity on held-out text after {result['training_tokens']:,} tokens (lower is better)"
    show_table(title, ["", *columns], rows, highlight=frozenset({best}))
    gain = result["distilled_minus_cross_entropy"]["all"]
    say(
        f"distilled minus cross-entropy only: {gain['value']:+.3f} nats per token, "
        f"95% interval [{gain['low']:+.3f}, {gain['high']:+.3f}] over documents"
    )
    say(f"student: {folder} (loads with transformers.AutoModelForCausalLM.from_pretrained)")
    say(f"report: {page} (open it in a browser: who taught which token)")
    say(f"it writes: {_continuation(folder)!r}")
    say(f"done in {duration(result['seconds'])}")


def _continuation(folder: Path) -> str:
    """Load the student as anyone would, and let it write."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    inputs = tokenizer(PROMPT, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=24, do_sample=False, repetition_penalty=1.2)
    return cast(str, tokenizer.decode(output[0], skip_special_tokens=True))

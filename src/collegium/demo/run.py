"""The quickstart: distil three experts into one student, and show that it was worth it.

Two students start from the same weights and read the same blocks in the same order: one learns from the
fused teachers, the other from the text alone. Both are measured on the same held-out documents.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from collegium.assembly.objective import build_rule
from collegium.assembly.run import Run
from collegium.assembly.student import trained_student
from collegium.base.durable import write_text
from collegium.base.locks import folder_lock
from collegium.base.progress import Phase
from collegium.base.terminal import duration, say, show_json, show_table
from collegium.evaluation.language_modeling import DocumentSums
from collegium.evaluation.model_figures import measure_model
from collegium.evaluation.summary import compare
from collegium.models.pretrained import place
from collegium.pipeline.measure import measure_all, write_evaluation
from collegium.pipeline.report import report
from collegium.pipeline.run_folder import claim_run_dir
from collegium.pipeline.train import train_student
from collegium.recipe.file import load_recipe
from collegium.recipe.recipe import Recipe
from collegium.report import metric_names as metrics
from collegium.report.card.words import count
from collegium.report.evaluation_file import read_evaluation
from collegium.report.interval import Difference
from collegium.report.perplexity import shown_perplexity


PROMPT = "Once upon a time, a small robot"


def demo_recipe(output: Path, *, name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe that ships with the package, for one of the demo's students."""
    path = Path(str(files("collegium.demo") / "recipe.yaml"))
    return load_recipe(path, [*overrides, f"output_dir={json.dumps(str(output / name))}"])


def run_demo(output: Path, *, as_json: bool) -> None:
    """Run the demo; a second call goes on where the first was stopped.

    Raises:
        BusyError: another process is writing `output`.
    """
    with folder_lock(output):
        _run(output, as_json=as_json)


def _run(output: Path, *, as_json: bool) -> None:
    start = time.monotonic()
    fused = demo_recipe(output, name="fused")
    plain = demo_recipe(output, name="cross-entropy", overrides=["objective.kd_weight=0", "teachers=[]"])
    say("three experts (web, code, stories) over SmolLM2-135M teach a student of 20 of its 30 layers")
    run = Run(fused)
    run.make("text", "teachers", "held_out")
    names = [teacher.name for teacher in run.teachers]
    with Phase("measuring the teachers"):
        targets = run.held_out.measure_targets({metrics.FUSED: build_rule(fused)})
    run.make("student")
    with Phase("measuring the student before training"):
        students = {"student before": _measure(run, cast(PreTrainedModel, run.student))}
    with Phase("cross-entropy alone"):
        alone = run.derive(recipe=plain, folder=plain.run_dir, teachers=(), held_out=run.held_out)
        students["student, cross-entropy only"] = _trained(alone)
    with Phase("distilling"):
        taught = run.derive(folder=fused.run_dir, teachers=run.teachers, held_out=run.held_out)
        students["student, distilled"] = _trained(taught)
    result = _result(targets, names, students, fused)
    result["seconds"] = round(time.monotonic() - start, 1)
    write_text(output / "demo.json", json.dumps(result, indent=1))
    page = report([fused.run_dir, plain.run_dir], output / "report.html")["page"]
    if as_json:
        show_json(result)
    else:
        _show(result, fused.run_dir / "student", page)


def _measure(run: Run, model: PreTrainedModel) -> dict[str, DocumentSums]:
    return measure_model(place(model, run.device).eval(), run.held_out, run.vocab_size)


def _trained(run: Run) -> dict[str, DocumentSums]:
    """Figures of a student that is trained now, or was before the demo was stopped."""
    assert run.folder is not None, "each student has one"
    claim_run_dir(run.recipe, run.folder)
    folder = run.folder / "student"
    if folder.exists():
        with Phase("measuring the student"):
            return _measure(run, trained_student(run, str(folder)))
    tables = train_student(run)
    student = trained_student(run, str(folder))
    measured = run if run.teachers else run.derive(teachers=())  # who taught nothing do not judge it either
    write_evaluation(measured, run.folder, measure_all(measured, tables, student))
    return tables


def _result(
    targets: Mapping[str, DocumentSums],
    names: Sequence[str],
    students: Mapping[str, Mapping[str, DocumentSums]],
    recipe: Recipe,
) -> dict[str, Any]:
    losses = {name: _losses(tables, metrics.NLL) for name, tables in students.items()}
    losses |= {f"teacher {name}": _losses(targets, metrics.of_teacher(name, metrics.NLL)) for name in names}
    losses["teachers, fused"] = _losses(targets, metrics.rule_nll(metrics.FUSED))
    differences = compare(
        students["student, distilled"],
        students["student, cross-entropy only"],
        confidence=recipe.evaluation.confidence,
        num_samples=recipe.evaluation.bootstrap_samples,
        seed=recipe.seed,
    )
    return {
        "recipe": recipe.fingerprint,
        "training_tokens": _tokens_read(recipe),
        metrics.NLL: losses,
        "kl_to_common_target": {name: _losses(tables, metrics.KL_COMMON) for name, tables in students.items()},
        "distilled_minus_cross_entropy": {name: asdict(value) for name, value in differences.items()},
    }


def _tokens_read(recipe: Recipe) -> int | None:
    lineage = read_evaluation(recipe.run_dir).lineage
    assert lineage is not None, "of a run's own student"
    tokens: int | None = lineage["training"]["tokens"]
    return tokens


def _losses(tables: Mapping[str, DocumentSums], figure: str) -> dict[str, float]:
    row = {domain: table.mean(figure) for domain, table in tables.items()}
    return {**row, "mean": sum(row.values()) / len(row)}


def _show(result: Mapping[str, Any], folder: Path, page: str) -> None:
    losses = result[metrics.NLL]
    columns = list(next(iter(losses.values())))
    rows = [[name, *(shown_perplexity(row[column]) for column in columns)] for name, row in losses.items()]
    best = list(losses).index("student, distilled")
    title = f"Perplexity on held-out text after {count(result['training_tokens'])} tokens (lower is better)"
    show_table(title, ["", *columns], rows, highlight=frozenset({best}))
    gain = Difference(**result["distilled_minus_cross_entropy"]["all"])
    say(
        f"distilled minus cross-entropy only: {gain.shown(3, sign='+')} nats per token, "
        f"95% interval [{gain.ends(3, between=', ', sign='+')}] over documents"
    )
    say(f"student: {folder} (loads with transformers.AutoModelForCausalLM.from_pretrained)")
    say(f"report: {page} (open it in a browser: who taught which token)")
    with Phase("letting it write"):
        text = _continuation(folder)
    say(f"it writes: {text!r}")
    say(f"done in {duration(result['seconds'])}")


def _continuation(folder: Path) -> str:
    """Load the student as anyone would, and let it write."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    inputs = tokenizer(PROMPT, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=24, do_sample=False, repetition_penalty=1.2)
    return cast(str, tokenizer.decode(output[0], skip_special_tokens=True))

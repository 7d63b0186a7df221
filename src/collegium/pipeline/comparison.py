"""What the report shows of a finished student beside its own figures, as sections of `evaluation.json`.

The student before training, its teachers and what they come to when fused, paired differences from each of them
on the same documents, passages token by token, continuations side by side, and the course of the training. It
costs a pass of the student before training over held-out text, one comparison of the teachers' distributions, and
the few texts that are written.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from collegium.assembly.run import Run
from collegium.assembly.samples import build_samples
from collegium.evaluation.cost import Clock, folder_bytes, peak_bytes
from collegium.evaluation.language_modeling import DocumentSums, Rule
from collegium.evaluation.model_figures import measure_model
from collegium.evaluation.summary import compare, summarize
from collegium.evaluation.target_figures import measure_target_figures
from collegium.losses.weighting import Weighting
from collegium.models.pretrained import place
from collegium.recipe.recipe import Recipe
from collegium.report.curves import curves_of
from collegium.signals.metrics import read_jsonl


PREFLIGHT = "preflight.json"
"""What a pre-flight found, in the run folder."""

Tables = Mapping[str, DocumentSums]


def initial_student(run: Run) -> PreTrainedModel:
    """The student before training, without adapters, which change nothing before they are trained."""
    bare = run.recipe.student.model_copy(update={"lora": None})
    student: Any = run.derive(recipe=run.recipe.model_copy(update={"student": bare})).student
    placed: PreTrainedModel = place(student, run.device).eval()
    return placed


def portray(run: Run, tables: Tables, students: Mapping[str, PreTrainedModel]) -> dict[str, Any]:
    """Sections `documents`, `before`, `teachers`, `differences`, `passages` and `continuations`.

    Args:
        run: The run.
        tables: Figures of the student on held-out text.
        students: `student`, and before it `student before`, if that is known.
    """
    section = run.recipe.evaluation
    options: dict[str, Any] = {
        "confidence": section.confidence,
        "num_samples": section.bootstrap_samples,
        "seed": run.recipe.seed,
    }
    others: dict[str, Tables] = {}
    found: dict[str, Any] = {"documents": _documents(tables)}
    if (before := students.get("student before")) is not None:
        others["student before"] = measure_model(before, run.held_out, run.vocab_size)
        found["before"] = summarize(others["student before"], **options)
    if run.teachers:
        rule = run.rule or Rule(Weighting("uniform"))
        said = measure_target_figures(run.held_out, {"fused": rule}, rule, stretches=(), with_pairs=False)
        told = {name: _per_token(figures.sums) for name, figures in said.items()}
        found["teachers"] = summarize(told, **options)
        others["teachers, fused"] = _renamed(told, "rule/fused/nll")
        others |= {
            f"teacher {teacher.name}": _renamed(told, f"teacher/{teacher.name}/nll") for teacher in run.teachers
        }
    found["differences"] = {
        name: {domain: asdict(gap) for domain, gap in compare(tables, other, **options).items()}
        for name, other in others.items()
    }
    return found | build_samples(run, students)


def course(run_dir: Path) -> dict[str, Any] | None:
    """What was logged while the student was trained, thinned out; None if nothing was."""
    path = run_dir / "metrics.jsonl"
    return curves_of(read_jsonl(path)) if path.exists() else None


def cost_of(run: Run, run_dir: Path, clock: Clock, *, resumed: bool) -> dict[str, Any]:
    """What the run took, beside what its pre-flight said it would.

    Args:
        run: The run.
        run_dir: Of the finished run.
        clock: Seconds of its parts, in this process.
        resumed: Whether another process did the first steps, whose time is not known here.
    """
    disk = {"text": folder_bytes(run.text.directory)}
    disk |= {name: folder_bytes(run_dir / name) for name in ("checkpoints", "student", "adapter")}
    on_gpu = torch.cuda.is_available()
    actual = {
        "seconds": {name: round(seconds, 2) for name, seconds in clock.seconds.items()},
        "memory_bytes": peak_bytes(),
        "device_memory_bytes": torch.cuda.max_memory_reserved() if on_gpu else None,
        "disk_bytes": {name: size for name, size in disk.items() if size},
        "resumed": resumed,
    }
    return {"plan": _plan(run.recipe, run_dir), "actual": actual}


def _plan(recipe: Recipe, run_dir: Path) -> dict[str, Any] | None:
    """The estimate of the newest pre-flight, if it was of the same recipe."""
    path = run_dir / PREFLIGHT
    told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return told.get("estimate") if told.get("recipe") == recipe.fingerprint else None


def _documents(tables: Tables) -> dict[str, Any]:
    """Tokens and loss of each held-out document, so that runs can be compared document by document."""
    return {
        name: {
            "tokens": [int(count) for count in table.tokens],
            "nll": [round(float(total), 4) for total in table.sums["nll"]],
        }
        for name, table in tables.items()
    }


def _per_token(table: DocumentSums) -> DocumentSums:
    """Without figures that are no number a token."""
    return replace(table, sums={name: sums for name, sums in table.sums.items() if sums.dim() == 1})


def _renamed(tables: Tables, figure: str) -> dict[str, DocumentSums]:
    return {name: replace(table, sums={"nll": table.sums[figure]}) for name, table in tables.items()}

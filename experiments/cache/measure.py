"""Bytes a token against the error of the gradient, and of the student after equal training.

The error is relative: |found - exact| / |exact| over all positions, of the gradient of the forward KL
with respect to the student's logits, and to its last hidden states, where errors that point one way add
up. Everything is read back from real caches. Students: before training, after the recipe's run, and
the nearest that there is, another of the teachers.

    python experiments/cache/measure.py [--output experiments/cache/results.json]
"""

import argparse
import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from settings import Fill, Unigram, kept, plain_bucket, with_tail
from torch import Tensor

from collegium.assembly.cache import cache_plan
from collegium.assembly.local_teachers import load_teachers
from collegium.assembly.run import Run
from collegium.cache.builder import CacheBuilder
from collegium.cache.folder import Folder
from collegium.cache.manifest import CacheSettings, Manifest
from collegium.models.head import ProjectionHead
from collegium.models.pretrained import causal_lm_of, last_hidden_states, load_model
from collegium.pipeline.train import train
from collegium.recipe.recipe import Recipe
from collegium.report.evaluation_file import as_content
from collegium.signals.contracts import Batch, Capability, Positions, predicted_positions
from collegium.signals.signals import ProjectedSignal, TopKSignal
from collegium.teachers.cached import CachedTeacher


HERE = Path(__file__).parent
NEED = frozenset({Capability.SAMPLES})
BATCH, CHUNK, ERROR_BLOCKS = 4, 128, 3
TEACHER, NEAR = "web", "stories"
TRAINED = ("p>=0.001", "p>=0.003", "k=64", "draws=50", "hidden_states")


@dataclass(frozen=True)
class Student:
    """Log-probabilities of some rows, and the head that errors are carried back through."""

    hidden: Tensor
    head: Any

    def logprobs(self, rows: slice) -> Tensor:
        """[n V]."""
        return self.head(self.hidden[rows]).float().log_softmax(-1)


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=HERE / "results.json")
    parser.add_argument("--runs", type=Path, default=Path("runs/cache"))
    options = parser.parse_args()
    run = Run.from_recipe(HERE / "recipe.yaml", device="cpu")
    results: dict[str, Any] = {"recipe": run.recipe.fingerprint, "training": _training(run, options.runs)}
    trained = load_model(str(options.runs / "online" / "student"), dtype=torch.float32)
    results["errors"] = _errors(run, {"untrained": run.student, "trained": trained})
    options.output.write_text(json.dumps(results, indent=1) + "\n")


# ---- the student after equal training


def _training(run: Run, runs: Path) -> dict[str, Any]:
    """Held-out loss of students trained from the teachers themselves and from caches."""
    recipe = run.recipe
    online = as_content(train(recipe.model_copy(update={"output_dir": str(runs / "online")})))
    results = {"online": _losses(online)}
    for name in TRAINED:
        directory = runs / "caches" / name
        sizes = [_derived(run, runs, m, name).bytes_per_token for m in range(len(recipe.teachers))]
        results[name] = {
            **_losses(as_content(train(_from_caches(recipe, directory, runs / name)))),
            "bytes": sum(sizes) / len(sizes),
        }
        print(name, results[name], flush=True)
    return results


def _losses(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    domains = evaluation["domains"]
    return {
        "nll": evaluation["mean"]["nll"],
        "by_domain": {name: domain["figures"]["nll"]["value"] for name, domain in domains.items()},
    }


def _from_caches(recipe: Recipe, directory: Path, output: Path) -> Recipe:
    content = recipe.model_dump(mode="json")
    content["teachers"] = [
        {"kind": "cached", "name": teacher["name"], "path": str(directory / teacher["name"])}
        for teacher in content["teachers"]
    ]
    return Recipe.model_validate({**content, "output_dir": str(output)})


def _derived(run: Run, runs: Path, number: int, name: str) -> Manifest:
    """A cache made from the teacher's hidden states, which are cached once."""
    section = run.recipe.teachers[number]
    text = run.text
    held_out = [blocks.take(run.recipe.evaluation.max_blocks or len(blocks)) for blocks in text.held_out.values()]
    rows = [part[i] for part in (text.train, *held_out) for i in range(len(part))]
    plan = replace(cache_plan(run, section), splits={"read": len(rows)})
    states = runs / "caches" / "hidden_states" / section.name
    settings = CacheSettings(mode="hidden_states")

    def running() -> Any:
        return load_teachers([section], run.tokenizer, device=run.device)[0]

    def build(folder: Path, teacher: Any, settings: CacheSettings) -> Manifest:
        own = replace(plan, settings=settings)
        return CacheBuilder(Folder.at(folder), teacher, rows, run.collator, own, batch_size=BATCH).build()

    manifest = build(states, running, settings)
    if name == "hidden_states":
        return manifest
    return build(runs / "caches" / name / section.name, lambda: CachedTeacher(section.name, states), kept()[name])


# ---- the gradient


def _errors(run: Run, models: Mapping[str, Any]) -> list[dict[str, Any]]:
    counts = torch.ones(run.vocab_size)
    for i in range(len(run.text.train)):
        ids = torch.tensor(run.text.train[i]["input_ids"])
        counts += torch.bincount(ids, minlength=run.vocab_size)
    fills: dict[str, Fill] = {
        "bucket": with_tail("bucket"),
        "bucket without a cap": plain_bucket,
        "uniform": with_tail("uniform"),
        "unigram": Unigram(counts),
        "renormalize": with_tail("renormalize"),
    }
    with tempfile.TemporaryDirectory() as folder:
        return list(_curve(run, models, fills, Path(folder)))


def _curve(
    run: Run, models: Mapping[str, Any], fills: Mapping[str, Fill], folder: Path
) -> Iterator[dict[str, Any]]:
    section = next(teacher for teacher in run.recipe.teachers if teacher.name == TEACHER)
    parts = [blocks.take(ERROR_BLOCKS) for blocks in run.text.held_out.values()]
    rows = [part[i] for part in parts for i in range(len(part))]
    plan = replace(cache_plan(run, section), splits={"held_out": len(rows)})

    def build(name: str, teacher: Any, settings: CacheSettings) -> tuple[CachedTeacher, float]:
        own = replace(plan, settings=settings)
        manifest = CacheBuilder(
            Folder.at(folder / name), lambda: teacher, rows, run.collator, own, batch_size=BATCH
        ).build()
        return CachedTeacher(TEACHER, folder / name), manifest.bytes_per_token

    running = {
        name: load_teachers([t for t in run.recipe.teachers if t.name == name], run.tokenizer, device=run.device)[
            0
        ]
        for name in (TEACHER, NEAR)
    }
    states, size = build("hidden_states", running[TEACHER], CacheSettings(mode="hidden_states"))
    batches = [Batch.from_inputs(run.collator(rows[i : i + BATCH])) for i in range(0, len(rows), BATCH)]
    pairs = [(batch, predicted_positions(batch)) for batch in batches]
    students = {name: [_student(model, *pair, run.vocab_size) for pair in pairs] for name, model in models.items()}
    exact = [_signal(running[TEACHER], *pair) for pair in pairs]
    students["another teacher"] = [
        Student(signal.hidden, signal.head) for signal in (_signal(running[NEAR], *pair) for pair in pairs)
    ]
    truth = [_signal(states, *pair) for pair in pairs]
    yield {
        "kept": "hidden_states",
        "tail": None,
        "bytes": size,
        "error": {name: _error(exact, truth, of, None) for name, of in students.items()},
    }
    for threshold in (1e-3, 3e-3):  # the same lists without the rounding of their codes
        listed = [_unrounded(signal, threshold) for signal in exact]
        errors = {student: _error(exact, listed, of, fills["bucket"]) for student, of in students.items()}
        yield {"kept": f"p>={threshold:g}", "tail": "bucket", "codes": "exact", "bytes": None, "error": errors}
    for name, settings in kept().items():
        teacher, size = build(name, states, settings)
        listed = [teacher.score(*pair, need=NEED).signal for pair in pairs]
        for tail, fill in fills.items():
            if tail != "bucket" and not name.startswith("k="):
                continue
            errors = {student: _error(exact, listed, of, fill) for student, of in students.items()}
            result = {"kept": name, "tail": tail, "bytes": size, "error": errors}
            result["mean_kept"] = sum(int((s.token_ids >= 0).sum()) for s in listed) / sum(map(len, listed))
            print(json.dumps(result), flush=True)
            yield result


@torch.no_grad()
def _unrounded(signal: ProjectedSignal, threshold: float) -> TopKSignal:
    """What lies above a probability, in float32."""
    rows = []
    for start in range(0, len(signal), CHUNK):
        logprobs = signal.logits(slice(start, start + CHUNK)).float().log_softmax(-1)
        top, ids = logprobs.topk(1024)
        rows.append((ids.masked_fill(top < math.log(threshold), -1), top))
    ids, top = (torch.cat(part) for part in zip(*rows, strict=True))
    zeros = torch.zeros(len(ids))  # what the weights are made from is not asked here
    return TopKSignal(ids, top, zeros, zeros, len(signal.head.as_linear().cut[0]))


def _signal(teacher: Any, batch: Batch, positions: Positions) -> ProjectedSignal:
    signal = teacher.score(batch, positions, need=NEED).signal
    assert isinstance(signal, ProjectedSignal), "full distributions"
    return signal


@torch.no_grad()
def _student(model: Any, batch: Batch, positions: Positions, vocab_size: int) -> Student:
    head = ProjectionHead.from_model(causal_lm_of(model), vocab_size)
    return Student(positions.select(last_hidden_states(model, batch.input_ids, batch.position_ids)), head)


@torch.no_grad()
def _error(
    exact: Sequence[ProjectedSignal], found: Sequence[Any], students: Sequence[Student], fill: Fill | None
) -> dict[str, float]:
    """Relative errors of the gradients of logits and of hidden states."""
    sums = dict.fromkeys(("logits", "hidden", "logits_exact", "hidden_exact"), 0.0)
    for truth, signal, student in zip(exact, found, students, strict=True):
        weight, _ = student.head.as_linear().cut
        for start in range(0, len(truth), CHUNK):
            rows = slice(start, min(start + CHUNK, len(truth)))
            q = student.logprobs(rows)
            p = truth.logits(rows).float().softmax(-1)
            filled = signal.logits(rows).float().log_softmax(-1) if fill is None else fill(signal, rows, q)
            difference, gradient = filled.exp() - p, q.exp() - p
            sums["logits"] += float(difference.square().sum())
            sums["logits_exact"] += float(gradient.square().sum())
            sums["hidden"] += float((difference @ weight).square().sum())
            sums["hidden_exact"] += float((gradient @ weight).square().sum())
    return {name: (sums[name] / sums[f"{name}_exact"]) ** 0.5 for name in ("logits", "hidden")}


if __name__ == "__main__":
    main()

"""The whole cost of a run, from a trial of its parts."""

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import PartialState

from collegium.assembly.continuation import past_runs
from collegium.assembly.ingredients import Ingredients, build_ingredients
from collegium.data.prepared import PreparedText
from collegium.evaluation.cost import Clock, RunCost, folder_bytes
from collegium.evaluation.language_modeling import HeldOut
from collegium.pipeline.preflight.estimate.caches import (
    CacheCost,
    PendingCache,
    build_sample,
    built_cache_bytes,
    open_sample,
    sample_of,
    sample_size,
)
from collegium.pipeline.preflight.estimate.memory import PeakMemory, available_bytes
from collegium.pipeline.preflight.estimate.trial import Trial, run_trial
from collegium.recipe.recipe import Recipe
from collegium.signals.contracts import Teacher


@dataclass(frozen=True)
class Known:
    """What was measured before the trial.

    Attributes:
        seconds: `start` of a command, and `teachers` (loading them).
        memory: Watches over this process since the teachers were loaded.
        pending: Caches to be built; these teachers run meanwhile.
    """

    seconds: Mapping[str, float]
    memory: PeakMemory
    pending: Sequence[PendingCache]


def estimate_run(
    recipe: Recipe,
    ingredients: Ingredients,
    teachers: Sequence[Teacher],
    held_out: HeldOut,
    known: Known,
    *,
    device: torch.device,
) -> RunCost:
    """Try the run in a folder beside its own, which is removed, and say what all of it takes.

    Args:
        recipe: With numbers for temperatures.
        ingredients: Tokenizer and text.
        teachers: In the recipe's order.
        held_out: Text that teachers were not asked about yet.
        known: What was measured before.
        device: Where models run.

    Raises:
        UserError: the run itself would end so.
    """
    clock = Clock()
    with clock.timed("text"):
        build_ingredients(recipe)
    with _passing_folder(recipe.run_dir) as folder:
        caches, tried, sample = _try_caches(recipe, ingredients, teachers, known.pending, folder, device)
        text = ingredients if sample is None else replace(ingredients, text=sample)
        trial = run_trial(
            recipe,
            text,
            tried,
            held_out,
            num_blocks=len(ingredients.text.train),
            folder=folder / "run",
            device=device,
        )
        known.memory.note()
        disk_free = shutil.disk_usage(folder).free
    disk = _disk(recipe, ingredients, trial, caches, known.pending)
    checkpoints = _num_checkpoints(recipe, trial)
    needed = sum(
        size for name, size in disk.items() if name in caches or name in ("checkpoints", "student", "logs")
    )
    passing = trial.checkpoint_bytes if checkpoints > recipe.training.keep_checkpoints else 0
    return RunCost(
        seconds=_seconds(recipe, {**known.seconds, **clock.seconds}, trial, caches),
        memory_bytes=known.memory.host,
        device_memory_bytes=known.memory.device,
        disk_bytes=disk,
        passing_bytes=passing,
        needed_bytes=needed + passing,
        num_steps=trial.num_steps,
        step_seconds=trial.step_seconds,
        steps_tried=len(trial.steps),
        memory_available=available_bytes(),
        disk_free=disk_free,
        notes=tuple(_notes(recipe, known.pending, sampled=sample is not None)),
    )


def _seconds(
    recipe: Recipe, known: Mapping[str, float], trial: Trial, caches: Mapping[str, CacheCost]
) -> dict[str, float]:
    """Of each part, in order."""
    training, took = recipe.training, trial.seconds
    start = known["start"] + known["text"]
    parts = {name: cost.seconds for name, cost in caches.items()}
    if caches:
        parts["start of `collegium cache`"] = start
    parts["start, text and models"] = start + known["teachers"] + took["student"]
    parts["steps"] = took["first"] + trial.step_seconds * (trial.num_steps - 1)
    remixes = -(-trial.num_steps // recipe.data.mixing.every) - 1
    if "remix" in took and remixes > 0:
        parts["mixing of domains"] = took["remix"] * remixes
    parts["checkpoints"] = took["checkpoint"] * _num_checkpoints(recipe, trial) + took["published"]
    evaluations = 1 + (trial.num_steps // training.evaluate_every if training.evaluate_every else 0)
    past = len(past_runs(recipe))
    evaluations += past + 1 if past else 0
    running = 1 - len(caches) / max(1, len(recipe.teachers))  # the others will be read from their caches
    parts["held-out text, teachers"] = took["asked"] * running
    parts["held-out text, student"] = took["evaluation"] * evaluations + took["summary"]
    parts["report"] = took["student"] + took["portrait"]
    if took["generation"]:
        parts["continuations"] = took["generation"]
    return parts


def _num_checkpoints(recipe: Recipe, trial: Trial) -> int:
    """How many are written; there is always one at the end."""
    return -(-trial.num_steps // recipe.training.save_every)


def _disk(
    recipe: Recipe,
    ingredients: Ingredients,
    trial: Trial,
    caches: Mapping[str, CacheCost],
    pending: Sequence[PendingCache],
) -> dict[str, int]:
    training = recipe.training
    num_lines = trial.num_steps // training.log_every + 2
    if training.evaluate_every:
        num_lines += trial.num_steps // training.evaluate_every
    log = num_lines * trial.log_bytes
    written = [
        min(i * training.save_every, trial.num_steps) for i in range(1, _num_checkpoints(recipe, trial) + 1)
    ]
    kept = written[-training.keep_checkpoints :]  # each with the log up to its step
    texts = {ingredients.text.directory, *(cache.text.text.directory for cache in pending)}
    return {
        "text": sum(folder_bytes(directory) for directory in texts),
        **{f"cache of {name}": size for name, size in built_cache_bytes(recipe, ingredients, pending).items()},
        **{name: cost.bytes for name, cost in caches.items()},
        "checkpoints": len(kept) * trial.checkpoint_bytes + log * sum(kept) // trial.num_steps,
        "student": trial.student_bytes,
        "logs": log + trial.evaluation_bytes,
    }


def _try_caches(
    recipe: Recipe,
    ingredients: Ingredients,
    teachers: Sequence[Teacher],
    pending: Sequence[PendingCache],
    folder: Path,
    device: torch.device,
) -> tuple[dict[str, CacheCost], list[Teacher], PreparedText | None]:
    """Cost of each cache, the teachers of the trial, and the text that these know; None for all of it."""
    if not pending:
        return {}, list(teachers), None
    mixes = recipe.data.mixing.kind != "natural"  # sets blocks aside, for which a sample is too small
    train = ingredients.text.train.take(sample_size(recipe))
    costs, tried = {}, {teacher.name: teacher for teacher in teachers}
    for cache in pending:
        place = folder / f"cache-{cache.section.name}"
        blocks = sample_of(cache, train, recipe)
        costs[f"cache of {cache.section.name}"] = build_sample(recipe, cache, blocks, place, device=device)
        if not cache.is_own_text and not mixes:
            tried[cache.section.name] = open_sample(recipe, cache, place, ingredients)
    sample = None if mixes else replace(ingredients.text, train=train)
    return costs, [tried[teacher.name] for teacher in teachers], sample


def _notes(recipe: Recipe, pending: Sequence[PendingCache], *, sampled: bool) -> Iterator[str]:
    if pending and sampled:
        names = ", ".join(cache.section.name for cache in pending)
        yield f"figures of {names} are of the running model; its cache is not built yet"
    slow = [cache.section.name for cache in pending if cache.is_own_text or not sampled]
    if slow:
        yield f"steps were timed with {', '.join(slow)} running; from a cache they are faster"


@contextlib.contextmanager
def _passing_folder(run_dir: Path) -> Iterator[Path]:
    """A folder on the disk of the run folder, of which nothing remains."""
    state = PartialState()
    folder = run_dir.with_name(f".{run_dir.name}.trial")
    made = [parent for parent in folder.absolute().parents if not parent.exists()]
    try:
        if state.is_main_process:
            shutil.rmtree(folder, ignore_errors=True)  # of a trial that was killed
            (folder / "run").mkdir(parents=True)
        state.wait_for_everyone()
        yield folder
    finally:
        if state.is_main_process:
            shutil.rmtree(folder, ignore_errors=True)
            for parent in made:
                with contextlib.suppress(OSError):
                    parent.rmdir()

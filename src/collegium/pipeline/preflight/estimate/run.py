"""The whole cost of a run, from a trial of its parts."""

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from collegium.assembly.corpus import build_text
from collegium.assembly.process import process_state
from collegium.assembly.run import Run
from collegium.assembly.tokenizers import student_tokenizer
from collegium.evaluation.cost import Clock, RunCost, folder_bytes
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


@dataclass(frozen=True)
class Known:
    """Measurements before the trial.

    Attributes:
        seconds: `start` of a command, and `teachers` (loading them).
        memory: Watches over this process since the teachers were loaded.
        pending: Caches to be built; these teachers run meanwhile.
    """

    seconds: Mapping[str, float]
    memory: PeakMemory
    pending: Sequence[PendingCache]


def estimate_run(run: Run, known: Known) -> RunCost:
    """Try the run in a folder beside its own, which is removed, and say what all of it takes.

    Args:
        run: With numbers for temperatures, and with teachers that were not asked about held-out text yet.
        known: What was measured before.

    Raises:
        UserError: the run itself would end so.
    """
    recipe = run.recipe
    clock = Clock()
    with clock.timed("text"):
        build_text(recipe, student_tokenizer(recipe))
    with _passing_folder(recipe.run_dir) as folder:
        caches, tried = _try_caches(run, known.pending, folder)
        sampled = tried is not run
        tried = tried.derive(teachers=tried.teachers, held_out=run.held_out, folder=folder / "run")
        trial = run_trial(tried, num_blocks=len(run.text.train))
        known.memory.note()
        disk_free = shutil.disk_usage(folder).free
    disk = _disk(run, trial, caches, known.pending)
    checkpoints = _num_checkpoints(recipe, trial)
    needed = sum(
        size for name, size in disk.items() if name in caches or name in ("checkpoints", "student", "logs")
    )
    passing = trial.checkpoint_bytes if checkpoints > recipe.training.keep_checkpoints else 0
    return RunCost(
        seconds=_seconds(run, {**known.seconds, **clock.seconds}, trial, caches),
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
        notes=tuple(_notes(recipe, known.pending, sampled=sampled)),
    )


def _seconds(
    run: Run, known: Mapping[str, float], trial: Trial, caches: Mapping[str, CacheCost]
) -> dict[str, float]:
    """Seconds of each part, in order."""
    recipe = run.recipe
    training = recipe.training
    took = trial.seconds
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
    past = len(run.past_runs)
    evaluations += past + 1 if past else 0
    running = 1 - len(caches) / max(1, len(recipe.teachers))  # the others will be read from their caches
    parts["held-out text, teachers"] = took["asked"] * running
    parts["held-out text, student"] = took["evaluation"] * evaluations + took["summary"]
    parts["report"] = took["student"] + took["others"]
    if took["generation"]:
        parts["continuations"] = took["generation"]
    return parts


def _num_checkpoints(recipe: Recipe, trial: Trial) -> int:
    """Number of those that are written; there is always one at the end."""
    return -(-trial.num_steps // recipe.training.save_every)


def _disk(
    run: Run, trial: Trial, caches: Mapping[str, CacheCost], pending: Sequence[PendingCache]
) -> dict[str, int]:
    training = run.recipe.training
    num_lines = trial.num_steps // training.log_every + 2
    if training.evaluate_every:
        num_lines += trial.num_steps // training.evaluate_every
    log = num_lines * trial.log_bytes
    written = [
        min(i * training.save_every, trial.num_steps) for i in range(1, _num_checkpoints(run.recipe, trial) + 1)
    ]
    kept = written[-training.keep_checkpoints :]  # each with the log up to its step
    texts = {run.text.directory, *(cache.corpus.text.directory for cache in pending)}
    return {
        "text": sum(folder_bytes(directory) for directory in texts),
        **{f"cache of {name}": size for name, size in built_cache_bytes(run, pending).items()},
        **{name: cost.bytes for name, cost in caches.items()},
        "checkpoints": len(kept) * trial.checkpoint_bytes + log * sum(kept) // trial.num_steps,
        "student": trial.student_bytes,
        "logs": log + trial.evaluation_bytes,
    }


def _try_caches(run: Run, pending: Sequence[PendingCache], folder: Path) -> tuple[dict[str, CacheCost], Run]:
    """Build a part of each cache: the cost of each, and the run to be tried, on the text that its teachers know.

    That is the run itself, on all of its text, where no teacher is read from a part of a cache.
    """
    if not pending:
        return {}, run
    mixes = run.recipe.data.mixing.kind != "natural"  # sets blocks aside, for which a sample is too small
    train = run.text.train.take(sample_size(run))
    costs = {}
    tried = {teacher.name: teacher for teacher in run.teachers}
    for cache in pending:
        place = folder / f"cache-{cache.section.name}"
        blocks = sample_of(run, cache, train)
        costs[f"cache of {cache.section.name}"] = build_sample(run, cache, blocks, place)
        if not cache.is_own_text and not mixes:
            tried[cache.section.name] = open_sample(run, cache, place)
    if mixes:
        return costs, run
    return costs, run.derive(text=replace(run.text, train=train), teachers=list(tried.values()))


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
    state = process_state()
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

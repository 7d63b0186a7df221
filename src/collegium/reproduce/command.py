"""`collegium reproduce NAME`: from nothing to the results of an experiment, and on from where it was stopped.

Everything made is in one folder for each scale, runs by the hash of what decides them, so that experiments share
what they have in common and a second call makes only what is missing.
"""

import importlib.resources
import json
import os
import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from collegium.durable import write_text
from collegium.errors import RecipeError
from collegium.reproduce.conditions import SWITCHING, conditions
from collegium.reproduce.experiment import Experiment, Plan, Run, plan
from collegium.reproduce.figure2 import figure2
from collegium.reproduce.made import made_teachers, make_models, make_teacher, read_teacher
from collegium.reproduce.page import publish
from collegium.reproduce.results import collect
from collegium.reproduce.specification import Specification, load_specification
from collegium.reproduce.switching import write_switching
from collegium.reproduce.table1 import table1
from collegium.reproduce.tables import VALIDATION, Result
from collegium.reproduce.work import Training, measure_targets, result_path, train_and_measure
from collegium.reproduce.workers import finished, worker_pool
from collegium.terminal import ProgressLine, duration, say


EXPERIMENTS = {"table1": table1, "figure2": figure2, "conditions": conditions}

PAGE = "page"
"""Said in place of an experiment."""


@dataclass(frozen=True)
class Place:
    """Where an experiment reads and writes.

    Attributes:
        specification: Its file.
        output: Folder of all that is made.
    """

    specification: Path
    output: Path

    def read(self, key: str) -> Result:
        """A finished run."""
        return Result(json.loads(result_path(self.output, key).read_text(encoding="utf-8")))

    def loss(self, run: Run) -> float | None:
        """Validation loss of a run, None if it is not finished."""
        if not result_path(self.output, run.key).exists():
            return None
        return self.read(run.key).mean("nll", VALIDATION)


def specification_path(scale: str) -> Path:
    """The file of a scale: one that exists, or the name of one that ships with the package.

    Raises:
        RecipeError: there is none.
    """
    if scale.endswith((".yaml", ".yml")):
        return Path(scale)
    shipped = Path(str(importlib.resources.files("collegium"))) / "experiments"
    folder = shipped if shipped.is_dir() else Path(__file__).parents[3] / "experiments"
    path = folder / f"{scale}.yaml"
    if not path.exists():
        known = sorted(file.stem for file in folder.glob("*.yaml"))
        raise RecipeError(f"--scale {scale}: is none of {', '.join(known)}; give one, or a YAML file")
    return path


def reproduce(
    name: str,
    *,
    scale: str,
    output: Path,
    jobs: int | None,
    results: Path | None = None,
    page: Path | None = None,
) -> dict[str, Any]:
    """Run an experiment, or what is left of it, write its results and the page of all, and return them.

    Args:
        name: One of `EXPERIMENTS`, or `page` to write only the page again.
        scale: See `specification_path`.
        output: Folder of all that is made; each scale has its own in it.
        jobs: Runs at once; as many as there are GPUs or cores if not given.
        results: Folder of the experiments' JSON that the page is made of; that of the scale if not given.
        page: The page; `results.md` in the folder of the scale if not given.

    Raises:
        RecipeError: there is no such experiment or scale.
    """
    if name not in (*EXPERIMENTS, PAGE):
        raise RecipeError(f"no experiment {name!r}; there are {', '.join(EXPERIMENTS)}, and {PAGE}")
    path = specification_path(scale)
    specification = load_specification(path)
    place = Place(path, output / specification.name)
    found: dict[str, Any] = {}
    if name != PAGE:
        found = _results(EXPERIMENTS[name](specification), specification, place, jobs or _default_jobs())
        text = json.dumps(found, indent=1) + "\n"
        for folder in dict.fromkeys([place.output, results or place.output]):
            write_text(folder / f"{name}.json", text)
    publish(results or place.output, page or place.output / "results.md")
    return found


def _results(experiment: Experiment, specification: Specification, place: Place, jobs: int) -> dict[str, Any]:
    _make(experiment, specification, place, jobs)
    plan_ = _run_all(experiment, specification, place, jobs)
    return collect(
        experiment,
        specification,
        plan_,
        place.read,
        targets=_targets(experiment, place),
        made={
            teacher: read_teacher(place.output, teacher)["mean"]
            for teacher in made_teachers(specification, experiment.teachers)
        },
        seconds=sum(place.read(run.key).content["seconds"] for run in plan_.all_runs),
    )


def _default_jobs() -> int:
    return torch.cuda.device_count() or os.cpu_count() or 1


def _make(experiment: Experiment, specification: Specification, place: Place, jobs: int) -> None:
    """Tokenizer, configurations, teachers, and what targets come to."""
    make_models(specification, place.output)
    missing = [
        name
        for name in made_teachers(specification, experiment.teachers)
        if not (place.output / "teachers" / name / "evaluation.json").exists()
    ]
    if SWITCHING in experiment.judges:
        write_switching(specification, place.output)
    if missing:
        work = partial(_make_teacher, place.specification, place.output)
        _share_out("teacher", work, missing, len(missing), place, jobs)
    path = _targets_path(experiment, place)
    if experiment.targets and not path.exists():
        say("measuring teachers and fused targets")
        measure_targets(experiment.judges["experts"], experiment.targets, place.output, path)


def _make_teacher(specification: Path, output: Path, name: str) -> None:
    make_teacher(load_specification(specification), name, specification.parent, output)


def _targets_path(experiment: Experiment, place: Place) -> Path:
    return place.output / f"{experiment.name}-targets.json"


def _targets(experiment: Experiment, place: Place) -> Mapping[str, Any]:
    path = _targets_path(experiment, place)
    read: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return read


def _run_all(experiment: Experiment, specification: Specification, place: Place, jobs: int) -> Plan:
    """Waves of runs until nothing more is known to be missing."""
    while True:
        known = plan(experiment, specification, place.loss)
        missing = [run for run in known.all_runs if not result_path(place.output, run.key).exists()]
        if not missing:
            return known
        own = {run.key for row in known.rows.values() if row.headline for run in known.runs[row.name]}
        work = partial(_train, place.output, dict(experiment.judges), own)
        _share_out("run", work, missing, len(known.all_runs), place, jobs)


def _train(output: Path, judges: Mapping[str, Any], own: Set[str], run: Run) -> None:
    train_and_measure(Training(run.key, run.recipe, judges[run.judge], run.key in own), output)


def _share_out(noun: str, work: Any, items: Sequence[Any], total: int, place: Place, jobs: int) -> None:
    """Do the work in processes, and tell how far it is and how long it will take."""
    line, start, done = ProgressLine(), time.monotonic(), 0

    def show() -> None:
        seconds = time.monotonic() - start
        left = ""
        if done:
            left = f", about {duration(seconds / done * (len(items) - done))} left of what is known"
        line.update(f"{noun} {total - len(items) + done}/{total}, {min(jobs, len(items))} at once{left}")

    with worker_pool(min(jobs, len(items)), place.output / "logs", num_gpus=torch.cuda.device_count()) as pool:
        for _ in finished(pool, work, items, every=1.0, tick=show):
            done += 1
    line.finish(f"{noun}s: {total} of {total} known so far are done ({duration(time.monotonic() - start)})")

"""`collegium reproduce NAME`: runs an experiment from start to results, or from where it was stopped.

Each scale has one folder for everything that is made, with runs named by the hash of what decides them. So
experiments share what they have in common, and a second call makes only what is missing.
"""

import importlib.resources
import json
import math
import os
import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from collegium.base.digest import json_digest
from collegium.base.digests import read_sealed, sealed
from collegium.base.durable import write_text
from collegium.base.errors import RecipeError
from collegium.base.locks import folder_lock
from collegium.base.progress import Phase
from collegium.base.terminal import duration, say
from collegium.paper.conditions import SWITCHING, conditions
from collegium.paper.experiment import Experiment, Plan, PlannedRun, plan
from collegium.paper.figure2 import figure2
from collegium.paper.figure3 import figure3
from collegium.paper.page import publish
from collegium.paper.preparation import (
    claim_folder,
    made_teachers,
    make_models,
    make_teacher,
    read_teacher,
    teacher_folder,
    teacher_recipe,
)
from collegium.paper.results import collect
from collegium.paper.run_result import MAKE_AGAIN, VALIDATION, RunResult
from collegium.paper.specification import Specification, in_folder, load_specification, with_local_files
from collegium.paper.switching import write_switching
from collegium.paper.table1 import table1
from collegium.paper.task_work import measure_specialists
from collegium.paper.work import Training, measure_targets, result_path, train_and_measure
from collegium.paper.workers import Workers, finished, worker_pool
from collegium.recipe.file import validated
from collegium.report.evaluation_file import NAME as EVALUATION
from collegium.report.metric_names import NLL


EXPERIMENTS = {"table1": table1, "figure2": figure2, "figure3": figure3, "conditions": conditions}

PAGE = "page"
"""Given in place of an experiment, it writes only the results page."""


@dataclass(frozen=True)
class Place:
    """The place where an experiment reads and writes.

    Attributes:
        specification: File of the specification.
        output: Folder of everything that is made.
    """

    specification: Path
    output: Path

    def read(self, key: str) -> RunResult:
        """Read the result of a finished run."""
        return RunResult.read(result_path(self.output, key))

    def loss(self, run: PlannedRun) -> float | None:
        """Return the validation loss of a run, None if it is not finished; NaN counts as the worst."""
        if not result_path(self.output, run.key).exists():
            return None
        loss = self.read(run.key).mean(NLL, VALIDATION)
        return math.inf if math.isnan(loss) else loss

    def lacks(self, run: PlannedRun, own: Set[str]) -> bool:
        """Tell whether a run is unfinished, or in `own` but not measured against its own target."""
        if not result_path(self.output, run.key).exists():
            return True
        return run.key in own and not self.read(run.key).has_own_target


def specification_path(scale: str, experiment: str = "table1") -> Path:
    """Find the specification of a scale: a YAML file, or the name of one that ships with the package.

    Figure 3 has files of its own, since its text, teachers and student are others.

    Raises:
        RecipeError: there is no such scale.
    """
    if scale.endswith((".yaml", ".yml")):
        return Path(scale)
    shipped = Path(str(importlib.resources.files("collegium.paper"))) / "experiments"
    folder = shipped if shipped.is_dir() else Path(__file__).parents[3] / "experiments"
    prefix = "tasks-" if experiment == "figure3" else ""
    path = folder / f"{prefix}{scale}.yaml"
    if not path.exists():
        stems = sorted(file.stem for file in folder.glob("*.yaml"))
        known = [stem.removeprefix(prefix) for stem in stems if stem.startswith("tasks-") == bool(prefix)]
        raise RecipeError(f"--scale {scale}: is none of {', '.join(known)}; give one, or a YAML file")
    return path


def reproduce(
    name: str,
    *,
    scale: str,
    output: Path,
    jobs: int | None,
    local: Path | None = None,
    results: Path | None = None,
    page: Path | None = None,
) -> dict[str, Any]:
    """Run an experiment or what is left of it, write its results and the results page, and return the results.

    Args:
        name: One of `EXPERIMENTS`, or `page` to write only the page again.
        scale: See `specification_path`.
        output: Folder of everything that is made; each scale has its own folder in it.
        jobs: Runs in parallel; as many as there are GPUs or cores if not given.
        local: Folder of local copies of the hub data sets that the specification names.
        results: Folder of the JSON that the page is made from; that of the scale if not given.
        page: Results page; `results.md` in the folder of the scale if not given.

    Raises:
        BusyError: another process runs an experiment in the same folder.
        RecipeError: there is no such experiment or scale.
    """
    if name not in (*EXPERIMENTS, PAGE):
        raise RecipeError(f"no experiment {name!r}; there are {', '.join(EXPERIMENTS)}, and {PAGE}")
    path = specification_path(scale, name)
    specification = load_specification(path)
    place = Place(path, output / specification.name)
    if local is not None:
        specification = with_local_files(specification, local, place.output)
    found: dict[str, Any] = {}
    if name != PAGE:
        _check(EXPERIMENTS[name](specification), specification, place)
        with folder_lock(place.output):
            claim_folder(specification, place.specification.parent, place.output)
            found = _results(EXPERIMENTS[name](specification), specification, place, jobs or _default_jobs())
        text = json.dumps(sealed(found), indent=1, allow_nan=False) + "\n"
        for folder in dict.fromkeys([place.output, results or place.output]):
            write_text(folder / f"{name}.json", text)
            say(f"results: {folder / name}.json")
    publish(results or place.output, page or place.output / "results.md")
    return found


def _results(experiment: Experiment, specification: Specification, place: Place, jobs: int) -> dict[str, Any]:
    with worker_pool(jobs, place.output / "logs", num_gpus=torch.cuda.device_count()) as workers:
        _make(experiment, specification, place, workers)
        plan_ = _run_all(experiment, specification, place, workers)
    return collect(
        experiment,
        specification,
        plan_,
        place.read,
        targets=_read(_measured_path(experiment, place, "targets")),
        made={
            teacher: read_teacher(place.output, teacher)
            for teacher in made_teachers(specification, experiment.teachers)
        },
        specialists=_read(_measured_path(experiment, place, "specialists")),
        origins=load_specification(place.specification).sources,
        seconds=sum(place.read(run.key).seconds for run in plan_.all_runs),
    )


def _default_jobs() -> int:
    return torch.cuda.device_count() or os.cpu_count() or 1


def _check(experiment: Experiment, specification: Specification, place: Place) -> None:
    """Refuse, before anything is made, recipes that a later run could not read."""
    every_row = plan(experiment, specification, lambda run: 0.0)
    for recipe in [*experiment.judges.values(), *(run.recipe for run in every_row.all_runs)]:
        validated(in_folder(recipe, place.output), f"{place.specification}: recipe")
    for name in made_teachers(specification, experiment.teachers):
        teacher_recipe(specification, name, place.specification.parent, place.output)


def _make(experiment: Experiment, specification: Specification, place: Place, workers: Workers) -> None:
    """Make tokenizer, configurations and teachers, and measure targets."""
    make_models(specification, place.output)
    missing = [
        name
        for name in made_teachers(specification, experiment.teachers)
        if not (teacher_folder(place.output, name) / EVALUATION).exists()
    ]
    if SWITCHING in experiment.judges:
        write_switching(specification, place.output)
    if missing:
        work = partial(make_teacher, specification, folder=place.specification.parent, output=place.output)
        _share_out("teacher", work, missing, 0, len(missing), workers)
    path = _measured_path(experiment, place, "targets")
    if experiment.targets and not path.exists():
        with Phase("measuring teachers and fused targets"):
            measure_targets(experiment.judges["experts"], experiment.targets, place.output, path)
    path = _measured_path(experiment, place, "specialists")
    if experiment.has_tasks and not path.exists():
        with Phase("measuring specialists on their tasks"):
            measure_specialists(experiment.judges["experts"], place.output, path)


def _measured_path(experiment: Experiment, place: Place, what: str) -> Path:
    """Path named by the hash of what decides the content: shared where that is the same, and never out of date."""
    deciding = [experiment.judges["experts"], dict(experiment.targets)]
    return place.output / f"{what}-{json_digest(deciding)[:16]}.json"


def _read(path: Path) -> Mapping[str, Any]:
    content: Mapping[str, Any] = read_sealed(path, fix=MAKE_AGAIN) if path.exists() else {}
    return content


def _run_all(experiment: Experiment, specification: Specification, place: Place, workers: Workers) -> Plan:
    """Run in waves until nothing is known to be missing."""
    while True:
        known = plan(experiment, specification, place.loss)
        own = {run.key for row in known.rows.values() if row.headline for run in known.runs[row.name]}
        missing = [run for run in known.all_runs if place.lacks(run, own)]
        if not missing:
            return known
        work = partial(_train, place.output, dict(experiment.judges), own)
        before = len(known.all_runs) - len(missing)
        total = len(known.all_runs) + known.num_to_come
        _share_out("run", work, missing, before, total, workers)


def _train(output: Path, judges: Mapping[str, Any], own: Set[str], run: PlannedRun) -> None:
    train_and_measure(Training(run.key, run.recipe, judges[run.judge], run.key in own), output)


def _share_out(noun: str, work: Any, items: Sequence[Any], before: int, total: int, workers: Workers) -> None:
    """Do the work in processes, and report how far it is and how long the rest will take.

    Args:
        noun: Name of one item.
        work: Function called with each item.
        items: Items to be done now.
        before: Number of items done already.
        total: Number of items in all, with those that are certain to follow.
        workers: Processes that do the work.
    """
    processes = min(workers.jobs, len(items))
    start = time.monotonic()
    with Phase(f"running {noun}s, {processes} at once", total=total, unit=f"{noun}s") as phase:
        phase.begin_at(before)
        for done, _ in enumerate(finished(workers, work, items), 1):
            left = (time.monotonic() - start) / done * (total - before - done)
            phase.update(before + done, rate=f"about {duration(left)} left")
    say(f"{noun}s: {before + len(items)} of {total} are done ({duration(time.monotonic() - start)})")

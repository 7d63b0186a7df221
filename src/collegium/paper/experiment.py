"""An experiment: its rows, the runs that each needs, and the order in which they become known.

A row is one way to train the student. Every row has the same budget: each learning rate of the specification on
the first seed, of which validation text chooses one, and that one on the other seeds. Rows with the same seed
start from the same weights and read the same blocks in the same order. Some rows depend on the results of others
(the best single teacher), so runs are planned again after each wave from what is finished. An experiment that was
stopped resumes in the same way. No torch here.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from collegium.base.digest import json_digest
from collegium.paper.specification import Specification


@dataclass(frozen=True)
class Row:
    """One way to train the student.

    Attributes:
        name: Short, unique name.
        label: In words, for tables.
        group: Name of the rows that are shown together.
        changes: Dotted keys of the recipe and their values.
        headline: Whether claims rest on it, so that it has all seeds.
        judge: Name of the text and teachers that its student is measured against.
        like: Row whose learning rate it takes instead of being tuned.
        num_seeds: Number of seeds, if not that of the specification.
    """

    name: str
    label: str
    group: str
    changes: Mapping[str, Any]
    headline: bool = False
    judge: str = "experts"
    like: str | None = None
    num_seeds: int | None = None


@dataclass(frozen=True)
class PlannedRun:
    """One training of a row's student.

    Attributes:
        row: Name of the row.
        seed: Seed of weights and order.
        learning_rate: Peak learning rate.
        recipe: The whole recipe, with paths that begin with `OUTPUT/`.
        judge: See `Row`.
    """

    row: str
    seed: int
    learning_rate: float
    recipe: Mapping[str, Any]
    judge: str

    @cached_property
    def key(self) -> str:
        """Hash of everything that decides its result."""
        return json_digest([self.recipe, self.judge])[:16]


Loss = Callable[[PlannedRun], float | None]
"""Validation loss of a run, in nats per token; None if it is not finished."""

Best = Callable[[Sequence[str]], str | None]
"""Name of the row with the lowest validation loss among these; None until all are tuned."""


@dataclass(frozen=True)
class Experiment:
    """Rows and what they are measured against.

    Attributes:
        name: Short name, such as `table1`.
        title: In words.
        rows: Function from what is known of the best row to all rows that can be named.
        teachers: Names of all teachers that take part.
        judges: Recipes whose held-out text and teachers measure students, by name.
        targets: Weightings of the experts to be measured themselves, as in a recipe's `objective.weighting`.
        baseline: Name of the row that others are compared with.
        has_tasks: Whether students and teachers are measured on tasks.
    """

    name: str
    title: str
    rows: Callable[[Best], Sequence[Row]]
    teachers: Sequence[str]
    judges: Mapping[str, Mapping[str, Any]]
    targets: Mapping[str, Any] = field(default_factory=dict)
    baseline: str = "ours"
    has_tasks: bool = False


@dataclass(frozen=True)
class Plan:
    """Runs that are known by now.

    Attributes:
        rows: Rows by name.
        runs: All known runs of each row, finished or not; those of the tuning first.
        chosen: Learning rate of each row that is tuned.
        num_to_come: Number of runs that are certain to follow; rows that depend on others may add more.
    """

    rows: Mapping[str, Row]
    runs: Mapping[str, Sequence[PlannedRun]]
    chosen: Mapping[str, float]
    num_to_come: int

    @property
    def all_runs(self) -> list[PlannedRun]:
        """All known runs, each once: rows may share some."""
        return list({run.key: run for runs in self.runs.values() for run in runs}.values())

    def measured(self, row: str) -> list[PlannedRun]:
        """Runs of a row with the chosen learning rate, by seed."""
        rate = self.chosen[row]
        return sorted((r for r in self.runs[row] if r.learning_rate == rate), key=lambda r: r.seed)


def plan(experiment: Experiment, specification: Specification, loss: Loss) -> Plan:
    """Plan the runs, given the losses of those that are finished."""
    chosen: dict[str, float] = {}
    tuned_loss: dict[str, float] = {}
    rows: dict[str, Row] = {}
    runs: dict[str, Sequence[PlannedRun]] = {}

    def best(names: Sequence[str]) -> str | None:
        return min(names, key=tuned_loss.__getitem__) if set(names) <= set(tuned_loss) else None

    while unknown := [row for row in experiment.rows(best) if row.name not in rows]:
        for row in unknown:  # their results may name more rows
            rows[row.name] = row
            runs[row.name] = _runs(row, specification, loss, chosen, tuned_loss)
    untuned = [row for row in rows.values() if row.name not in chosen]
    to_come = sum(_num_seeds(row, specification) - (row.like is None) for row in untuned)
    return Plan(rows, runs, chosen, to_come)


def _runs(
    row: Row,
    specification: Specification,
    loss: Loss,
    chosen: dict[str, float],
    tuned_loss: dict[str, float],
) -> list[PlannedRun]:
    if row.like is not None:
        if row.like not in chosen:
            return []
        chosen[row.name] = chosen[row.like]
        return _seeds(row, specification, chosen[row.name])
    tuning = [_run(row, specification, 0, rate) for rate in specification.learning_rates]
    losses = {run.learning_rate: value for run in tuning if (value := loss(run)) is not None}
    if len(losses) < len(tuning):
        return tuning
    chosen[row.name] = min(losses, key=losses.__getitem__)
    tuned_loss[row.name] = losses[chosen[row.name]]
    seeds = _seeds(row, specification, chosen[row.name])
    return [*tuning, *(run for run in seeds if run.seed > 0)]


def _seeds(row: Row, specification: Specification, rate: float) -> list[PlannedRun]:
    return [_run(row, specification, seed, rate) for seed in range(_num_seeds(row, specification))]


def _num_seeds(row: Row, specification: Specification) -> int:
    if row.num_seeds is not None:
        return row.num_seeds
    return specification.headline_seeds if row.headline else specification.seeds


def _run(row: Row, specification: Specification, seed: int, rate: float) -> PlannedRun:
    recipe = student_recipe(specification)
    for key, value in row.changes.items():
        set_key(recipe, key, value)
    recipe["seed"] = seed
    recipe["training"]["learning_rate"] = rate
    return PlannedRun(row.name, seed, rate, recipe, row.judge)


def student_recipe(specification: Specification) -> dict[str, Any]:
    """Build the recipe common to all rows: student and text, no teachers."""
    recipe: dict[str, Any] = json.loads(json.dumps(specification.recipe))
    recipe.setdefault("data", {})["sources"] = source_sections(specification)
    recipe.setdefault("training", {})
    recipe.setdefault("objective", {})
    recipe["name"] = "student"
    return recipe


def judge_recipe(
    specification: Specification, names: Sequence[str], sources: Sequence[Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """Build the recipe of a judge: held-out text, and teachers that are neither cached nor calibrated.

    Args:
        specification: Text and teachers to choose from.
        names: Names of the teachers.
        sources: Sections of the text; the student's if not given.
    """
    recipe = student_recipe(specification)
    if sources is not None:
        recipe["data"]["sources"] = list(sources)
    return {**recipe, "teachers": teacher_sections(specification, names, cached=False)}


def source_sections(specification: Specification, *, tokens: int | None = None) -> list[dict[str, Any]]:
    """Build the sections of the student's part of each source."""
    limit = tokens or specification.student_tokens
    limited = {} if limit is None else {"max_tokens": limit}
    return [{"name": name, **source, **limited} for name, source in specification.sources.items()]


def teacher_sections(
    specification: Specification,
    names: Sequence[str],
    *,
    cached: bool = True,
    changes: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Build the sections of these teachers, each with the same changes."""
    return [{**_teacher_section(specification, name), "cached": cached, **(changes or {})} for name in names]


def _teacher_section(specification: Specification, name: str) -> dict[str, Any]:
    teacher = specification.teachers[name]
    section: dict[str, Any] = {"name": name, "dtype": teacher.dtype}
    if teacher.base is not None:
        section |= {"model": teacher.base, "adapter": f"OUTPUT/teachers/{name}/adapter"}
    else:
        section |= {"model": teacher.model or f"OUTPUT/teachers/{name}/student"}
    if teacher.adapter is not None:
        section["adapter"] = teacher.adapter
    return section if teacher.domains is None else {**section, "domains": list(teacher.domains)}


def set_key(content: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key, creating the mappings on its way."""
    *parents, last = key.split(".")
    for parent in parents:
        content = content.setdefault(parent, {})
    content[last] = value

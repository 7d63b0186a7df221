"""A finished run as its folder tells it: the only source of the page.

`evaluation.json` has all figures, `recipe.yaml` what was asked for. Sections that an evaluation lacks (an older
one, or one whose recipe left them out) are left out of the page.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from collegium.base.errors import DataError, RecipeError
from collegium.recipe.file import load_recipe
from collegium.recipe.recipe import Recipe


Content = Mapping[str, Any]


@dataclass(frozen=True)
class Figure:
    """A figure and its interval; nats per token if not said otherwise."""

    value: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, content: Content | None) -> "Figure | None":
        """From JSON, where an end that is not known is null or NaN."""
        if content is None or not _is_number(content["value"]):
            return None
        low, high = (end if _is_number(end := content.get(key)) else None for key in ("low", "high"))
        return cls(float(content["value"]), low, high)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and value == value and abs(value) != float("inf")


@dataclass(frozen=True)
class RunRecord:
    """One run.

    Attributes:
        folder: The run folder.
        recipe: As it was resolved.
        evaluation: Content of `evaluation.json`.
    """

    folder: Path
    recipe: Recipe
    evaluation: Content

    @property
    def name(self) -> str:
        """Of the run."""
        return self.recipe.name

    @cached_property
    def domains(self) -> Sequence[str]:
        """Of the held-out text."""
        return tuple(self.evaluation["domains"])

    @cached_property
    def teachers(self) -> Sequence[str]:
        """Names, in the recipe's order, which gives each its colour; then others that it was measured beside."""
        passages = (self.evaluation.get("passages") or {}).values()
        others = [name for passage in passages for name in passage["weight"]]
        return tuple(dict.fromkeys([*(teacher.name for teacher in self.recipe.teachers), *others]))

    def figure(self, domain: str, name: str, section: str | None = None) -> Figure | None:
        """A figure on held-out text of a domain: the student's own, or of the section `before` or `teachers`."""
        content = self.evaluation if section is None else self.evaluation.get(section, {})
        return Figure.of(content.get("domains", {}).get(domain, {}).get("figures", {}).get(name))

    def mean(self, name: str, section: str | None = None) -> float | None:
        """Plain mean over domains."""
        content = self.evaluation if section is None else self.evaluation.get(section, {})
        value = content.get("mean", {}).get(name)
        return float(value) if _is_number(value) else None

    def difference(self, other: str, domain: str = "all") -> tuple[Figure, float | None] | None:
        """The student's loss minus that of another on the same documents, and its p-value."""
        content = self.evaluation.get("differences", {}).get(other, {}).get(domain)
        figure = Figure.of(content)
        if figure is None:
            return None
        p_value = content["p_value"]
        return figure, (float(p_value) if _is_number(p_value) else None)

    @property
    def course(self) -> Mapping[str, Mapping[str, Sequence[float]]]:
        """What was logged in training, by name: `step` and `value`."""
        course: Mapping[str, Any] = self.evaluation.get("course") or {}
        return course


def read_run(folder: Path) -> RunRecord:
    """Read a run folder.

    Raises:
        DataError: it holds no finished run, or one that cannot be read.
    """
    path = folder / "evaluation.json"
    if not path.exists():
        raise DataError(
            f"{folder}: holds no evaluation.json; give the folder of a finished run, "
            f"or measure it: collegium evaluate {folder}"
        )
    try:
        evaluation = json.loads(path.read_text(encoding="utf-8"))
        domains = evaluation["domains"]
        recipe = load_recipe(folder / "recipe.yaml")
    except RecipeError as error:
        raise DataError(f"{folder}: holds a recipe that this version does not read\n{error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: is damaged ({error!r}); measure it again: collegium evaluate {folder}"
        ) from error
    if not domains:
        raise DataError(f"{path}: measures nothing; measure it again: collegium evaluate {folder}")
    return RunRecord(folder, recipe, evaluation)

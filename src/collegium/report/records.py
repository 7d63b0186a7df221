"""A finished run as its folder has it: the only source of the page.

`evaluation.json` has all figures, `recipe.yaml` what was asked for. Sections that an evaluation lacks, since its
recipe left them out, are left out of the page.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from collegium.base.errors import DataError, RecipeError
from collegium.recipe.file import load_run_recipe
from collegium.recipe.recipe import Recipe
from collegium.report.evaluation import Evaluation
from collegium.report.evaluation_file import read_evaluation
from collegium.report.figures import StudentMeasured, TeachersMeasured


@dataclass(frozen=True)
class RunRecord:
    """One run.

    Attributes:
        folder: The run folder.
        recipe: As it was resolved.
        evaluation: All that was measured.
    """

    folder: Path
    recipe: Recipe
    evaluation: Evaluation

    @property
    def name(self) -> str:
        """The run's name in its recipe."""
        return self.recipe.name

    @cached_property
    def domains(self) -> Sequence[str]:
        """Domains of the held-out text."""
        return tuple(self.evaluation.domains)

    @property
    def student(self) -> StudentMeasured:
        """The student's figures."""
        return self.evaluation.student

    @property
    def before(self) -> StudentMeasured:
        """Those of the student before training; empty if it was not measured."""
        return self.evaluation.before or StudentMeasured()

    @property
    def measured_teachers(self) -> TeachersMeasured:
        """Those of the teachers; empty without any."""
        return self.evaluation.teachers or TeachersMeasured()

    @cached_property
    def teachers(self) -> Sequence[str]:
        """Names, in the recipe's order, which gives each its colour; then others that it was measured beside."""
        others = [name for passage in self.evaluation.passages.values() for name in passage.teachers]
        return tuple(dict.fromkeys([*(teacher.name for teacher in self.recipe.teachers), *others]))


def read_run(folder: Path) -> RunRecord:
    """Read a run folder.

    Raises:
        DataError: it holds no finished run, or one that cannot be read.
    """
    evaluation = read_evaluation(folder)
    try:
        recipe = load_run_recipe(folder / "recipe.yaml")
    except RecipeError as error:
        raise DataError(f"{folder}: holds a recipe that this version does not read\n{error}") from error
    return RunRecord(folder, recipe, evaluation)

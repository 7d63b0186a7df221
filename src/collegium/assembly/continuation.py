"""Earlier runs that a run continues: their folders, what they learned, and how they began."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import PreTrainedModel

from collegium.base.errors import DataError
from collegium.models.pretrained import causal_lm_of
from collegium.recipe.file import load_run_recipe
from collegium.recipe.recipe import Recipe
from collegium.recipe.sections.models import ContinuedStudentSection


if TYPE_CHECKING:
    from collegium.assembly.run import Run


@dataclass(frozen=True)
class PastRun:
    """A finished run.

    Attributes:
        folder: The run folder.
        recipe: Its recipe.
    """

    folder: Path
    recipe: Recipe

    @property
    def student(self) -> str:
        """Folder of its student."""
        return str(self.folder / "student")

    @property
    def domains(self) -> list[str]:
        """Names of the domains that it learned."""
        return [source.name for source in self.recipe.data.sources]


def past_runs(recipe: Recipe) -> list[PastRun]:
    """The runs that a recipe continues, the newest first; they end where a folder is not there any more.

    Raises:
        DataError: the run that it continues itself is not finished.
    """
    runs = list(_past_runs(recipe))
    section = recipe.student
    if isinstance(section, ContinuedStudentSection) and not runs:
        raise DataError(
            f"student.run: {section.run} holds no finished run (no `recipe.yaml` with a `student` folder); "
            "train that run first, or give another folder"
        )
    return runs


def _past_runs(recipe: Recipe) -> Iterator[PastRun]:
    seen: set[Path] = set()
    while isinstance(recipe.student, ContinuedStudentSection):
        folder = Path(recipe.student.run)
        whole = (folder / "recipe.yaml").exists() and (folder / "student").is_dir()
        if not whole or folder.resolve() in seen:
            return
        seen.add(folder.resolve())
        recipe = load_run_recipe(folder / "recipe.yaml")
        yield PastRun(folder, recipe)


def first_student(run: "Run") -> PreTrainedModel:
    """The student as the first of the runs before this one began: what earlier training is measured against."""
    first = run.past_runs[-1]
    bare = first.recipe.student.model_copy(update={"lora": None})
    began = run.derive(recipe=first.recipe.model_copy(update={"student": bare}), folder=first.folder)
    return causal_lm_of(began.student)

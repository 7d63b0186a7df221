"""Findings on the models of a recipe by their configurations alone: families, and positions for its blocks."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from collegium.base.errors import DataError, TeacherError
from collegium.models.config_file import read_config_file
from collegium.models.families import positions_of, require_usable
from collegium.recipe.recipe import Recipe
from collegium.recipe.sections.models import ConfigStudentSection


class Unfit(NamedTuple):
    """A model that cannot be used, or hardly.

    Attributes:
        key: The recipe's key.
        found: What was found.
        fix: What to do about it.
        exit_code: In what a run would end; 0 if it would only warn.
    """

    key: str
    found: str
    fix: str
    exit_code: int


def unfit_models(recipe: Recipe) -> Iterator[Unfit]:
    """Find the models whose family cannot be used, and those with fewer positions than a block has tokens."""
    for key, reference, config, exit_code in _configs(recipe):
        try:
            require_usable(config, reference)
        except DataError as error:
            found, _, fix = str(error).partition("; ")
            yield Unfit(key, found, fix, exit_code)
            continue
        positions = positions_of(config)
        sentence = None if positions is None else positions.too_few(reference, recipe.data.block_size)
        if positions is not None and sentence is not None:
            found, _, fix = sentence.partition("; ")
            yield Unfit(key, found, fix, exit_code if positions.is_table else 0)


class _Named(NamedTuple):
    """A configuration, the key and the reference of its model, and the exit code of a run that cannot load it."""

    key: str
    reference: str
    config: Mapping[str, Any]
    exit_code: int


def _configs(recipe: Recipe) -> Iterator[_Named]:
    """Configurations that are on this machine; a student's with its overrides."""
    student = recipe.student
    config = read_config_file(student.model, revision=getattr(student, "revision", None))
    if config is not None:
        overrides = student.overrides if isinstance(student, ConfigStudentSection) else {}
        yield _Named("student.model", student.model, {**config, **overrides}, DataError.exit_code)
    for i, teacher in recipe.placed_local_teachers.items():  # of a cache nothing is loaded
        config = read_config_file(teacher.model, revision=teacher.revision)
        if config is not None:
            yield _Named(f"teachers.{i}.model", teacher.model, config, TeacherError.exit_code)

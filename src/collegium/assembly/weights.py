"""The weights that a recipe names, looked at before any work: names and shapes in headers, adapters included.

A student whose file lacks a layer should not be found out after an hour of preparing text. Nothing but headers is
read: 0.2 s a model.
"""

import logging
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from collegium.base.errors import DataError, TeacherError, pass_on_full_disk
from collegium.base.references import resolve_reference
from collegium.models.adapter_config import other_base, read_adapter_config
from collegium.models.adapters import put_adapter
from collegium.models.gguf import require_readable
from collegium.models.loading import require_loadable
from collegium.recipe.recipe import Recipe
from collegium.recipe.sections.models import ConfigStudentSection, LocalTeacherSection, TeachingSection


logger = logging.getLogger(__name__)


def require_student_weights(recipe: Recipe) -> None:
    """Require that the files of the model that the student begins with hold all of it.

    Raises:
        DataError: they do not.
    """
    section = recipe.student
    if not isinstance(section, ConfigStudentSection):
        _require(section.model, section.revision, section.trust_remote_code)


def _require(model: str, revision: str | None, trust_remote_code: bool) -> PreTrainedModel | None:
    path = resolve_reference(model)
    if not path.endswith(".gguf"):
        return require_loadable(model, revision=revision, trust_remote_code=trust_remote_code)
    if not Path(path).is_file():
        raise DataError(f"{model}: no such GGUF file")
    require_readable(Path(path))
    return None


def require_teacher_weights(sections: Sequence[TeachingSection]) -> None:
    """Require that the files of teachers and their adapters hold all of them, and that the adapters fit.

    Raises:
        TeacherError: one does not.
    """
    bases: dict[str, Any] = {}
    for i, section in enumerate(sections):
        if not isinstance(section, LocalTeacherSection):  # of a cache nothing is loaded
            continue
        key = section.model_dump_json(include={"model", "revision", "trust_remote_code"})
        try:
            if key not in bases:
                bases[key] = _require(section.model, section.revision, section.trust_remote_code)
            if section.adapter is None:
                continue
            path = resolve_reference(section.adapter)
            report_other_base(section)
            if bases[key] is None:
                read_adapter_config(path, revision=section.adapter_revision)
            else:
                bases[key] = put_adapter(bases[key], path, f"adapter_{i}", revision=section.adapter_revision)
        except DataError as error:
            pass_on_full_disk(error)
            raise TeacherError(f"teacher {section.name!r}: {error}") from error


def report_other_base(section: LocalTeacherSection) -> None:
    """Warn, once, if the adapter of a teacher says that it was made for another model.

    Raises:
        DataError: its description cannot be read, or it is of a kind that cannot be used.
    """
    assert section.adapter is not None, "called for these only"
    config = read_adapter_config(resolve_reference(section.adapter), revision=section.adapter_revision)
    if sentence := other_base(config, section.model):
        _warn(section.name, sentence)


@cache
def _warn(name: str, sentence: str) -> None:
    logger.warning("teacher %r: %s", name, sentence)


def require_weights(recipe: Recipe) -> None:
    """Require all that a run loads; teachers that are read from a cache are not loaded.

    Raises:
        DataError: of the student.
        TeacherError: of a teacher.
    """
    require_student_weights(recipe)
    require_teacher_weights([section for section in recipe.teachers if not section.is_cached])

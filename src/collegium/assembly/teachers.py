"""The teachers of a run: loaded, or read from their caches."""

from typing import TYPE_CHECKING

from collegium.assembly.cached_teachers import open_cache
from collegium.assembly.local_teachers import load_teachers
from collegium.base.progress import Phase
from collegium.recipe.recipe import Recipe
from collegium.recipe.sections.models import TeachingSection
from collegium.signals.contracts import Teacher
from collegium.teachers.restricted import RestrictedTeacher


if TYPE_CHECKING:
    from collegium.assembly.run import Run


def build_teachers(run: "Run") -> list[Teacher]:
    """Load the teachers of a run, or open their caches.

    Raises:
        TeacherError: one cannot be loaded, or has another tokenizer.
        DataError: a cache is not finished, is damaged, or holds something else.
    """
    fitted = run.fitted
    with Phase("preparing the teachers"):
        return _built(run, fitted)


def _built(run: "Run", fitted: Recipe) -> list[Teacher]:
    sections = fitted.teachers
    running = [section for section in fitted.local_teachers if not section.cached]
    loaded = {t.name: t for t in load_teachers(running, run.tokenizer, device=run.device, shape=run.block_shape)}
    opened = {s.name: open_cache(run, s).teacher for s in sections if s.name not in loaded}
    teachers = [loaded.get(section.name) or opened[section.name] for section in sections]
    return [within_domains(run, s, t) for s, t in zip(sections, teachers, strict=True)]


def within_domains(run: "Run", section: TeachingSection, teacher: Teacher) -> Teacher:
    """A teacher that is asked within the domains of its section only, if that names some."""
    if section.domains is None:
        return teacher
    return RestrictedTeacher(teacher, [run.domains.index(name) for name in section.domains])

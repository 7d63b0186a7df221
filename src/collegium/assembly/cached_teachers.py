"""Teachers that are read from their caches, and what is compared before one is believed."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from collegium.alignment.plan import Aligner
from collegium.alignment.tokenizer_match import tokenizer_fingerprint
from collegium.assembly.cache import CachePlace, cache_place, domain_blocks
from collegium.assembly.corpus import Corpus
from collegium.assembly.local_teachers import alignment_policy
from collegium.base.errors import DataError, RecipeError
from collegium.cache.folder import Folder
from collegium.cache.manifest import MANIFEST_NAME, Manifest
from collegium.cache.records import finished_manifest, plan_difference, plan_differences, require_same_plan
from collegium.data.joined import JoinedText
from collegium.recipe.sections.models import CachedTeacherSection, LocalTeacherSection, TeachingSection
from collegium.signals.contracts import Teacher
from collegium.teachers.aligned import AlignedTeacher
from collegium.teachers.cached import CachedTeacher


if TYPE_CHECKING:
    from collegium.assembly.run import Run

NUM_PROBES = 32
"""Blocks of each domain that are looked for in a cache that was made from other text."""


class OpenCache(NamedTuple):
    """A teacher read from its cache, and what the cache says of itself."""

    teacher: Teacher
    manifest: Manifest


def open_cache(run: "Run", section: LocalTeacherSection | CachedTeacherSection) -> OpenCache:
    """Open the cache of a teacher, aligned if its tokenizer is another than the student's.

    Args:
        run: Says what the cache must hold.
        section: The teacher, with numbers for temperatures.

    Raises:
        DataError: the cache is not finished, is damaged, or holds something else.
        RecipeError: it serves other temperatures.
    """
    own = run.corpus_of(section)
    if own is run.corpus:
        teacher = _open_own(run, section)
        return OpenCache(teacher, teacher.manifest)
    inner = _open_own(run, section.at_one)
    if inner.manifest.settings.mode != "hidden_states":
        require_plain(section, kd_temperature=run.recipe.objective.kd_temperature)
    aligner = Aligner.of(run.tokenizer, own.tokenizer)
    aligned = AlignedTeacher(
        inner,
        aligner,
        alignment_policy(section),
        by_documents=JoinedText(own.text, aligner),
        temperatures=section.temperatures,
    )
    return OpenCache(aligned, inner.manifest)


def require_plain(section: TeachingSection, *, kd_temperature: float) -> None:
    """See that temperatures are 1, the only one that lists in a teacher's own vocabulary serve.

    Raises:
        RecipeError: another one is asked for.
    """
    keys = {
        "objective.kd_temperature": kd_temperature,
        f"weight_temperature of teacher {section.name!r}": section.weight_temperature,
        f"target_temperature of teacher {section.name!r}": section.target_temperature,
    }
    for key, value in keys.items():
        if value != 1.0:
            raise RecipeError(
                f"{key} is {value}, but lists of a teacher with another tokenizer are carried at temperature 1 "
                "only: set it to 1, keep hidden states (cache.mode: hidden_states), or run the teacher"
            )


def _open_own(run: "Run", section: LocalTeacherSection | CachedTeacherSection) -> CachedTeacher:
    """Open a cache of text in the teacher's own tokens."""
    if isinstance(section, LocalTeacherSection):
        place = cache_place(run, section)
        require_there(section.name, place)
        teacher = cached_teacher(run, section, place.location)
        require_same_plan(teacher.manifest, place.plan, Folder.at(place.location))
        return teacher
    own = run.corpus_of(section)
    teacher = cached_teacher(run, section, section.path)
    if section.domains is not None:
        _require_blocks(teacher, section.domains, own)
    elif teacher.manifest.text != own.text.fingerprint:
        raise DataError(
            f"teacher {section.name!r}: its cache was made from text {teacher.manifest.text}, the recipe's is "
            f"{own.text.fingerprint}; use the same data section, name the teacher's `tokenizer` if it is "
            "another than the student's, or make a cache of this text"
        )
    return teacher


def require_there(name: str, place: CachePlace) -> None:
    """See that a teacher has a cache, and say what changed where there is one of what it was before.

    Raises:
        DataError: it has none.
    """
    folder = Folder.at(place.location)
    if folder.size(MANIFEST_NAME) is not None:
        return
    asked = f"teacher {name!r} is to be read from its cache (`cached: true`)"
    others = () if folder.local is None else folder.local.parent.glob(f"{name}-{'[0-9a-f]' * 16}")
    found = [manifest for path in others if (manifest := finished_manifest(Folder.at(path))) is not None]
    near = min(found, key=lambda manifest: len(list(plan_differences(manifest, place.plan))), default=None)
    if near is not None and (sentence := plan_difference(near, place.plan)):
        raise DataError(
            f"{asked}, and the one that is there is with {sentence}: run `collegium cache RECIPE`, which makes "
            "one of it as it is now"
        )
    raise DataError(f"{asked}, which is not there yet: run `collegium cache RECIPE`, which also resumes one")


def is_built(run: "Run", section: LocalTeacherSection | CachedTeacherSection) -> bool:
    """See whether there is a finished cache where a teacher's is looked for, whatever it holds."""
    location = section.cache_path
    if isinstance(section, LocalTeacherSection):
        location = cache_place(run, section).location
    assert location is not None, "a teacher that is only a cache says where that is"
    return Folder.at(location).size(MANIFEST_NAME) is not None


def cached_teacher(run: "Run", section: TeachingSection, location: str | Path) -> CachedTeacher:
    """Open any cache, and read it as the recipe does; `section` has numbers for temperatures."""
    weight_temperature, target_temperature = section.temperatures
    return CachedTeacher(
        section.name,
        location,
        tail=run.recipe.cache.tail,
        kd_temperature=run.recipe.objective.kd_temperature,
        target_temperature=target_temperature,
        weight_temperature=weight_temperature,
    )


def _require_blocks(teacher: CachedTeacher, domains: Sequence[str], corpus: Corpus) -> None:
    """See that a cache holds the text of these domains, whatever else there is; a block is looked up by content.

    Raises:
        DataError: it does not, or it was made with another tokenizer.
    """
    if not teacher.manifest.teacher.fingerprint.endswith(f"/{tokenizer_fingerprint(corpus.tokenizer)}"):
        raise DataError(f"teacher {teacher.name!r}: its cache was made with another tokenizer; make one with this")
    collate = corpus.collator
    for domain in domains:
        for part in (corpus.text.held_out[domain], domain_blocks(corpus, domain)):
            blocks = part.take(NUM_PROBES)
            try:
                for i in range(len(blocks)):
                    teacher.read(collate([blocks[i]]))
            except DataError as error:
                raise DataError(
                    f"teacher {teacher.name!r}: its cache lacks text of domain {domain!r} ({error}); keep the "
                    "sources, limits and block size of that domain as they were, or leave the domain out"
                ) from error

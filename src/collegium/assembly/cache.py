"""Caches of teachers: what one will hold, where it lies, who builds it, and teachers read from one."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from transformers import PretrainedConfig

from collegium.alignment.plan import Aligner
from collegium.alignment.tokenizer_match import tokenizer_fingerprint, vocab_size_of
from collegium.assembly.ingredients import Ingredients, own_ingredients
from collegium.assembly.models import alignment_policy, load_teachers, teacher_fingerprint
from collegium.base.errors import DataError, RecipeError, TeacherError
from collegium.base.references import cache_dir
from collegium.cache.builder import CacheBuilder, CacheProgress, Ranks
from collegium.cache.folder import Folder
from collegium.cache.manifest import CacheSettings, Manifest, TeacherIdentity
from collegium.cache.records import require_same_plan
from collegium.data.blocks import PackedBlocks
from collegium.data.joined import JoinedText
from collegium.models.pretrained import load_config
from collegium.recipe.recipe import Recipe
from collegium.recipe.sections.models import CachedTeacherSection, LocalTeacherSection, TeachingSection
from collegium.signals.contracts import Teacher
from collegium.teachers.aligned import AlignedTeacher
from collegium.teachers.cached import CachedTeacher
from collegium.teachers.restricted import RestrictedTeacher


def build_teachers(recipe: Recipe, ingredients: Ingredients, *, device: torch.device) -> list[Teacher]:
    """Load the teachers, or open their caches.

    Raises:
        TeacherError: one cannot be loaded, or has another tokenizer.
        DataError: a cache is not finished, is damaged, or holds something else.
    """
    running = [s for s in recipe.teachers if isinstance(s, LocalTeacherSection) and not s.cached]
    loaded = {t.name: t for t in load_teachers(running, ingredients.tokenizer, device=device)}
    opened = {s.name: open_cache(recipe, s, ingredients).teacher for s in recipe.teachers if s.name not in loaded}
    teachers = [loaded.get(section.name) or opened[section.name] for section in recipe.teachers]
    return [within_domains(t, s, ingredients) for t, s in zip(teachers, recipe.teachers, strict=True)]


def within_domains(teacher: Teacher, section: TeachingSection, ingredients: Ingredients) -> Teacher:
    """The teacher, within the domains that its section names."""
    if section.domains is None:
        return teacher
    return RestrictedTeacher(teacher, [ingredients.domains.index(name) for name in section.domains])


class OpenCache(NamedTuple):
    """A teacher read from its cache, and what the cache says of itself."""

    teacher: Teacher
    manifest: Manifest


def open_cache(
    recipe: Recipe, section: LocalTeacherSection | CachedTeacherSection, ingredients: Ingredients
) -> OpenCache:
    """A teacher read from its cache, aligned if its tokenizer is another than the student's.

    Raises:
        DataError: the cache is not finished, is damaged, or holds something else.
        RecipeError: it serves other temperatures.
    """
    own = own_ingredients(recipe, section, ingredients)
    if own is ingredients:
        teacher = _open_own(recipe, section, own)
        return OpenCache(teacher, teacher.manifest)
    inner = _open_own(recipe, section.at_one, own)
    if inner.manifest.settings.mode != "hidden_states":
        require_plain(recipe, section)
    aligner = Aligner.of(ingredients.tokenizer, own.tokenizer)
    aligned = AlignedTeacher(
        inner,
        aligner,
        alignment_policy(section),
        by_documents=JoinedText(own.text, aligner),
        temperatures=section.temperatures,
    )
    return OpenCache(aligned, inner.manifest)


def require_plain(recipe: Recipe, section: TeachingSection) -> None:
    """Lists in a teacher's own vocabulary serve temperature 1 only.

    Raises:
        RecipeError: another one is asked for.
    """
    keys = {
        "objective.kd_temperature": recipe.objective.kd_temperature,
        f"weight_temperature of teacher {section.name!r}": section.weight_temperature,
        f"target_temperature of teacher {section.name!r}": section.target_temperature,
    }
    for key, value in keys.items():
        if value != 1.0:
            raise RecipeError(
                f"{key} is {value}, but lists of a teacher with another tokenizer are carried at temperature 1 "
                "only: set it to 1, keep hidden states (cache.mode: hidden_states), or run the teacher"
            )


def _open_own(
    recipe: Recipe, section: LocalTeacherSection | CachedTeacherSection, ingredients: Ingredients
) -> CachedTeacher:
    """A teacher read from a cache of text in its own tokens."""
    plan = None
    if isinstance(section, LocalTeacherSection):
        plan = cache_plan(recipe, section, ingredients)
        location = cache_location(recipe, section, plan)
    else:
        location = section.path
    teacher = cached_teacher(recipe, section, location)
    if plan is not None:
        require_same_plan(teacher.manifest, plan, Folder.at(location))
    elif section.domains is not None:
        _require_blocks(teacher, section.domains, ingredients)
    elif teacher.manifest.text != ingredients.text.fingerprint:
        raise DataError(
            f"teacher {section.name!r}: its cache was made from text {teacher.manifest.text}, the recipe's is "
            f"{ingredients.text.fingerprint}; use the same data section, name the teacher's `tokenizer` if it is "
            "another than the student's, or make a cache of this text"
        )
    return teacher


def cached_teacher(recipe: Recipe, section: TeachingSection, location: str | Path) -> CachedTeacher:
    """A teacher read from any cache, as the recipe reads it; `section` has numbers for temperatures."""
    weight_temperature, target_temperature = section.temperatures
    return CachedTeacher(
        section.name,
        location,
        tail=recipe.cache.tail,
        kd_temperature=recipe.objective.kd_temperature,
        target_temperature=target_temperature,
        weight_temperature=weight_temperature,
    )


NUM_PROBES = 32
"""Blocks of each domain that are looked for in a cache that was made from other text."""


def _require_blocks(teacher: CachedTeacher, domains: Sequence[str], ingredients: Ingredients) -> None:
    """See that a cache holds the text of these domains, whatever else there is; a block is looked up by content.

    Raises:
        DataError: it does not, or it was made with another tokenizer.
    """
    if not teacher.manifest.teacher.fingerprint.endswith(f"/{tokenizer_fingerprint(ingredients.tokenizer)}"):
        raise DataError(f"teacher {teacher.name!r}: its cache was made with another tokenizer; make one with this")
    collate = ingredients.collator
    for domain in domains:
        for part in (ingredients.text.held_out[domain], domain_blocks(ingredients, domain)):
            blocks = part.take(NUM_PROBES)
            try:
                for i in range(len(blocks)):
                    teacher.read(collate([blocks[i]]))
            except DataError as error:
                raise DataError(
                    f"teacher {teacher.name!r}: its cache lacks text of domain {domain!r} ({error}); keep the "
                    "sources, limits and block size of that domain as they were, or leave the domain out"
                ) from error


def cached_text(section: TeachingSection, ingredients: Ingredients) -> dict[str, PackedBlocks]:
    """The parts of the text that a teacher's cache holds, in order: those of its domains."""
    text, own = ingredients.text, section.domains
    train = text.train if own is None else domain_blocks(ingredients, *own)
    held_out = {name: blocks for name, blocks in text.held_out.items() if own is None or name in own}
    return {"train": train, **{f"held_out/{name}": blocks for name, blocks in held_out.items()}}


def domain_blocks(ingredients: Ingredients, *domains: str) -> PackedBlocks:
    """Training blocks of some domains."""
    train = ingredients.text.train
    rows = np.flatnonzero(np.isin(np.asarray(train.dataset["domain"]), domains)).tolist()
    return PackedBlocks(train.dataset.select(rows), rows)


def cache_plan(recipe: Recipe, section: LocalTeacherSection, ingredients: Ingredients) -> Manifest:
    """What the cache of a teacher holds; its weights are not loaded.

    Raises:
        TeacherError: the model cannot be found.
    """
    config, fingerprint = identify(section, ingredients)
    cache, text = recipe.cache, config.get_text_config()
    is_list = cache.mode != "hidden_states"  # hidden states serve every temperature
    weight_temperature, target_temperature = section.temperatures if is_list else (1.0, 1.0)
    settings = CacheSettings(
        mode=cache.mode,
        max_kept=cache.max_kept,
        min_probability=cache.min_probability,
        num_samples=cache.num_samples,
        kd_temperature=recipe.objective.kd_temperature if is_list else 1.0,
        target_temperature=target_temperature,
        weight_temperature=weight_temperature,
        rows_per_shard=cache.rows_per_shard,
    )
    return Manifest(
        teacher=TeacherIdentity(
            fingerprint,
            section.model,
            vocab_size_of(ingredients.tokenizer),
            int(text.hidden_size),
            int(text.num_hidden_layers),
        ),
        text=ingredients.text.fingerprint,
        splits={name: len(blocks) for name, blocks in cached_text(section, ingredients).items()},
        settings=settings,
    )


def identify(section: LocalTeacherSection, ingredients: Ingredients) -> tuple[PretrainedConfig, str]:
    """Configuration and fingerprint of a teacher whose weights are not loaded.

    Raises:
        TeacherError: the model cannot be found.
    """
    try:
        config = load_config(section.model, revision=section.revision, trust_remote_code=section.trust_remote_code)
        return config, teacher_fingerprint(section, config, ingredients.tokenizer)
    except (DataError, OSError) as error:
        raise TeacherError(f"teacher {section.name!r}: {error}") from error


def cache_location(recipe: Recipe, section: LocalTeacherSection, plan: Manifest) -> str:
    """Where the cache of a teacher lies."""
    if recipe.cache.directory is not None:
        return f"{recipe.cache.directory.rstrip('/')}/{section.name}"
    return str(cache_dir() / "teachers" / f"{section.name}-{plan.identity[:16]}")


def build_builder(
    recipe: Recipe,
    section: LocalTeacherSection,
    ingredients: Ingredients,
    plan: Manifest,
    *,
    location: str | Path,
    device: torch.device,
    ranks: Ranks | None = None,
    source: bytes = b"",
    on_progress: Callable[[CacheProgress], None] | None = None,
) -> CacheBuilder:
    """What scores the text with one teacher; the model is loaded when it is needed."""

    def teacher() -> Teacher:
        kept = section.at_one if plan.settings.mode == "hidden_states" else section
        return load_teachers([kept], ingredients.tokenizer, device=device)[0]

    return CacheBuilder(
        Folder.at(location),
        teacher,
        _Rows(list(cached_text(section, ingredients).values())),
        ingredients.collator,
        plan,
        source=source,
        batch_size=recipe.cache.batch_size,
        device=device,
        ranks=ranks,
        on_progress=on_progress,
    )


class _Rows(Sequence[dict[str, object]]):
    """Blocks of several data sets, one behind the other."""

    def __init__(self, parts: Sequence[PackedBlocks]) -> None:
        self._parts = parts

    def __len__(self) -> int:
        return sum(len(part) for part in self._parts)

    def __getitem__(self, index: int) -> dict[str, object]:  # type: ignore[override]
        for part in self._parts:
            if index < len(part):
                return part[index]
            index -= len(part)
        raise IndexError(index)

"""Caches of teachers: what one will hold, where it lies, and who builds it."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from collegium.assembly.corpus import Corpus
from collegium.assembly.local_teachers import load_teachers, settings_of, teacher_fingerprint
from collegium.base.errors import DataError, TeacherError
from collegium.base.references import cache_dir
from collegium.base.terminal import say
from collegium.cache.builder import CacheBuilder, CacheProgress, Ranks
from collegium.cache.folder import Folder
from collegium.cache.manifest import CacheSettings, Manifest, TeacherIdentity
from collegium.cache.records import as_begun
from collegium.data.blocks import PackedBlocks
from collegium.models.identity import with_settings
from collegium.models.pretrained import load_config
from collegium.models.settings import Settings
from collegium.recipe.sections.models import LocalTeacherSection, TeachingSection
from collegium.signals.contracts import Teacher


if TYPE_CHECKING:
    from collegium.assembly.run import Run


def cached_text(section: TeachingSection, corpus: Corpus) -> dict[str, PackedBlocks]:
    """The parts of the text that a teacher's cache holds, in order: those of its domains."""
    own = section.domains
    train = corpus.text.train if own is None else domain_blocks(corpus, *own)
    held_out = {name: blocks for name, blocks in corpus.text.held_out.items() if own is None or name in own}
    return {"train": train, **{f"held_out/{name}": blocks for name, blocks in held_out.items()}}


def domain_blocks(corpus: Corpus, *domains: str) -> PackedBlocks:
    """Training blocks of some domains."""
    train = corpus.text.train
    rows = np.flatnonzero(np.isin(np.asarray(train.dataset["domain"]), domains)).tolist()
    return PackedBlocks(train.dataset.select(rows), rows)


class CachePlace(NamedTuple):
    """Folder or URL of a teacher's cache, and the plan of what lies or will lie there."""

    location: str
    plan: Manifest


def cache_place(run: "Run", section: LocalTeacherSection) -> CachePlace:
    """Say where the cache of a teacher lies: as the recipe says, or by what decides its content.

    A cache of an earlier version is taken as it is, and what cannot be known of it is said.

    Raises:
        TeacherError: the model cannot be found.
    """
    plan = cache_plan(run, section)
    directory = run.recipe.cache.directory
    if directory is None:
        location = _default_location(section.name, plan)
        before = _default_location(section.name, plan.earlier)
        if not Path(location).exists() and as_begun(plan, Folder.at(before)).is_earlier:
            location = before
    else:
        location = f"{directory.rstrip('/')}/{section.name}"
    begun = as_begun(plan, Folder.at(location))
    if begun.is_earlier:
        _say_unknown(location, section.name)
    return CachePlace(location, begun)


def _default_location(name: str, plan: Manifest) -> str:
    return str(cache_dir() / "teachers" / f"{name}-{plan.identity[:16]}")


@cache
def _say_unknown(location: str, name: str) -> None:
    """Say it once, however often a command looks."""
    say(
        f"teacher {name}: its cache {location} is of an earlier version, which kept a hash of the weights but not "
        "the settings in config.json and adapter_config.json: that these are as they were is not known; to be "
        "sure, delete it and run `collegium cache` again"
    )


def cache_plan(run: "Run", section: LocalTeacherSection) -> Manifest:
    """Say what the cache of a teacher holds; its weights are not loaded.

    Raises:
        TeacherError: the model cannot be found.
    """
    corpus = run.corpus_of(section)
    teacher = identify(section, corpus.tokenizer)
    network = teacher.config.get_text_config()
    cache = run.recipe.cache
    is_list = cache.mode != "hidden_states"  # hidden states serve every temperature
    weight_temperature, target_temperature = section.temperatures if is_list else (1.0, 1.0)
    settings = CacheSettings(
        mode=cache.mode,
        max_kept=cache.max_kept,
        min_probability=cache.min_probability,
        num_samples=cache.num_samples,
        kd_temperature=run.recipe.objective.kd_temperature if is_list else 1.0,
        target_temperature=target_temperature,
        weight_temperature=weight_temperature,
        rows_per_shard=cache.rows_per_shard,
    )
    return Manifest(
        teacher=TeacherIdentity(
            teacher.fingerprint,
            section.model,
            corpus.vocab_size,
            int(network.hidden_size),
            int(network.num_hidden_layers),
            teacher.settings,
        ),
        text=corpus.text.fingerprint,
        splits={name: len(blocks) for name, blocks in cached_text(section, corpus).items()},
        settings=settings,
    )


class Identified(NamedTuple):
    """A teacher whose weights are not loaded.

    Attributes:
        config: Its configuration.
        fingerprint: Identity of its weights, their type, and the tokenizer.
        settings: What else decides its numbers.
    """

    config: PretrainedConfig
    fingerprint: str
    settings: Settings

    @property
    def whole(self) -> str:
        """Identity of weights and settings."""
        return with_settings(self.fingerprint, self.settings)


def identify(section: LocalTeacherSection, tokenizer: PreTrainedTokenizerBase) -> Identified:
    """Say which teacher a section means; its weights are not loaded.

    Raises:
        TeacherError: the model cannot be found.
    """
    try:
        config = load_config(section.model, revision=section.revision, trust_remote_code=section.trust_remote_code)
        return Identified(config, teacher_fingerprint(section, config, tokenizer), settings_of(section))
    except (DataError, OSError) as error:
        raise TeacherError(f"teacher {section.name!r}: {error}") from error


def build_builder(
    run: "Run",
    section: LocalTeacherSection,
    plan: Manifest,
    *,
    location: str | Path,
    ranks: Ranks | None = None,
    source: bytes = b"",
    on_progress: Callable[[CacheProgress], None] | None = None,
) -> CacheBuilder:
    """Build what scores the text with one teacher; the model is loaded when it is needed."""
    corpus = run.corpus_of(section)
    return CacheBuilder(
        Folder.at(location),
        lambda: teacher_to_cache(run, section, plan),
        _Rows(list(cached_text(section, corpus).values())),
        corpus.collator,
        plan,
        source=source,
        batch_size=run.recipe.cache.batch_size,
        device=run.device,
        ranks=ranks,
        on_progress=on_progress,
    )


def teacher_to_cache(run: "Run", section: LocalTeacherSection, plan: Manifest) -> Teacher:
    """Load a teacher as its cache holds it: in its own tokens, at temperature 1 if that is of hidden states."""
    kept = section.at_one if plan.settings.mode == "hidden_states" else section
    return load_teachers([kept], run.corpus_of(section).tokenizer, device=run.device, shape=run.block_shape)[0]


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

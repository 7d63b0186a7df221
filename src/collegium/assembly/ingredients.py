"""Tokenizer and prepared text."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from collegium.alignment.tokenizer_match import tokenizer_difference, tokenizer_fingerprint, vocab_size_of
from collegium.base.errors import DataError, TeacherError
from collegium.base.references import cache_dir
from collegium.data.collate import BlockCollator, padding_id
from collegium.data.hub import HubRows, HubSource
from collegium.data.prepare import prepare_text
from collegium.data.prepared import MANIFEST_NAME, SCHEMA_VERSION, PreparedText
from collegium.data.settings import PrepareProgress, SourceLimits
from collegium.data.sources import FileSource, Source
from collegium.data.task_source import FileRows, TaskSource
from collegium.models.pretrained import load_tokenizer
from collegium.recipe.recipe import Recipe
from collegium.recipe.sections.base import DESCRIBING
from collegium.recipe.sections.models import CachedTeacherSection, LocalTeacherSection, TeachingSection
from collegium.recipe.sections.sources import FileSourceSection, HubSourceSection, TaskSourceSection
from collegium.recipe.sections.tasks import TaskDataSection


@dataclass(frozen=True)
class Ingredients:
    """What every command starts from: tokenizer, prepared text and the size of the vocabulary."""

    tokenizer: PreTrainedTokenizerBase
    text: PreparedText
    vocab_size: int

    @property
    def collator(self) -> BlockCollator:
        """Makes batches of packed blocks, prompts given."""
        return self.collator_for(learn_prompts=False)

    def collator_for(self, *, learn_prompts: bool) -> BlockCollator:
        """Makes batches of packed blocks."""
        return BlockCollator(pad_token_id=self.pad_token_id, domains=self.domains, learn_prompts=learn_prompts)

    @property
    def pad_token_id(self) -> int:
        """See `padding_id`."""
        return padding_id(self.tokenizer)

    @property
    def domains(self) -> list[str]:
        """Names of the domains, in the order of `Batch.domain_ids`."""
        return sorted(self.text.held_out)


def build_ingredients(
    recipe: Recipe, *, on_progress: Callable[[PrepareProgress], None] | None = None
) -> Ingredients:
    """Load the tokenizer and prepare the text, or find it prepared."""
    tokenizer = student_tokenizer(recipe)
    text = build_text(recipe, tokenizer, on_progress=on_progress)
    return Ingredients(tokenizer, text, vocab_size_of(tokenizer))


def own_ingredients(recipe: Recipe, section: TeachingSection, ingredients: Ingredients) -> Ingredients:
    """What a teacher's cache is made of: the same text in the tokens of the teacher's own tokenizer.

    The recipe's own ingredients, if that is the student's too.

    Raises:
        TeacherError: its tokenizer cannot be found.
        DataError: it cannot be told that the text is the same.
    """
    tokenizer = teacher_tokenizer(section)
    if tokenizer is None or tokenizer_difference(ingredients.tokenizer, tokenizer) is None:
        return ingredients
    text = build_text(recipe, tokenizer, is_students=False)
    ingredients.text.require_same_text(text)
    return Ingredients(tokenizer, text, vocab_size_of(tokenizer))


def teacher_tokenizer(section: TeachingSection) -> PreTrainedTokenizerBase | None:
    """A teacher's own tokenizer; None for one in a cache that does not say which it is.

    Raises:
        TeacherError: it cannot be found.
    """
    if not isinstance(section, LocalTeacherSection | CachedTeacherSection):
        return None
    try:
        if isinstance(section, LocalTeacherSection):
            return _tokenizer_of(section.model, section.revision, section.trust_remote_code)
        return None if section.tokenizer is None else _tokenizer_of(section.tokenizer, None, False)
    except DataError as error:
        raise TeacherError(f"teacher {section.name!r}: {error}") from error


@cache
def _tokenizer_of(reference: str, revision: str | None, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """Kept, since some take ten seconds to load."""
    return load_tokenizer(reference, revision=revision, trust_remote_code=trust_remote_code)


def build_text(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    *,
    is_students: bool = True,
    on_progress: Callable[[PrepareProgress], None] | None = None,
) -> PreparedText:
    """Prepare the text of a recipe; returns at once if it is there.

    In a teacher's own tokens every segment begins with BOS, and each document ends with EOS, if that is the
    tokenizer's custom.
    """
    data = recipe.data
    as_told = is_students and isinstance(data.add_bos, bool)
    add_bos = bool(data.add_bos) if as_told else adds_bos(tokenizer)
    sources = [build_source(source) for source in data.sources]
    limits = {
        source.name: SourceLimits(
            max_documents=source.max_documents,
            max_tokens=source.max_tokens,
            min_characters=source.min_characters,
            skip_documents=source.skip_documents,
        )
        for source in data.sources
    }
    return prepare_text(
        sources,
        tokenizer,
        directory=text_directory(recipe, tokenizer, sources, is_students=is_students),
        block_size=data.block_size,
        held_out_documents=data.held_out_documents,
        add_bos=add_bos,
        add_eos=data.add_eos and (is_students or tokenizer.eos_token_id is not None),
        bos_at_segments=add_bos and not is_students,
        max_bad_fraction=data.max_bad_fraction,
        near_duplicate_threshold=data.near_duplicate_threshold,
        blocks_per_shard=data.blocks_per_shard,
        limits=limits,
        on_progress=on_progress,
    )


def text_directory(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[Source],
    *,
    is_students: bool = True,
) -> Path:
    """Where the prepared text lies: as the recipe says, in a teacher's own tokens beside that, else in the cache.

    In the cache it is named by its fingerprint. The content of the sources is part of that, so that an edited
    file is prepared anew, and so is the version of what is written.
    """
    if recipe.data.directory is not None:
        told = Path(recipe.data.directory)
        return told if is_students else told.with_name(f"{told.name}-{tokenizer_fingerprint(tokenizer)[:8]}")
    parts = [tokenizer_fingerprint(tokenizer), *(source.fingerprint for source in sources)]
    neutral: Any = {"directory": True, "mixing": True, "sources": {"__all__": DESCRIBING}}
    content = recipe.data.model_dump_json(exclude=neutral) + "".join(parts) + str(SCHEMA_VERSION)
    if not is_students and adds_bos(tokenizer):
        content += "bos at segments"
    return cache_dir() / "prepared" / hashlib.sha256(content.encode()).hexdigest()[:16]


def prepared_text(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, *, is_students: bool = True
) -> PreparedText | None:
    """The text of a recipe if it is prepared already; else None, and nothing is written.

    Raises:
        DataError: a source is not there, or the folder holds other text or is damaged.
    """
    sources = [build_source(source) for source in recipe.data.sources]
    folder = text_directory(recipe, tokenizer, sources, is_students=is_students)
    is_there = (folder / MANIFEST_NAME).exists()
    return build_text(recipe, tokenizer, is_students=is_students) if is_there else None


def student_tokenizer(recipe: Recipe) -> PreTrainedTokenizerBase:
    """Load the tokenizer that the text is prepared with."""
    student = recipe.student
    if student.tokenizer:  # another repository: neither the pinned commit nor the trust is meant for it
        return load_tokenizer(student.tokenizer)
    return load_tokenizer(student.model, revision=student.revision, trust_remote_code=student.trust_remote_code)


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer begins a text with BOS by itself."""
    bos: int | None = tokenizer.bos_token_id
    return bos is not None and tokenizer.encode("a")[:1] == [bos]


def build_source(section: HubSourceSection | FileSourceSection | TaskSourceSection) -> Source:
    """A text source."""
    if isinstance(section, TaskSourceSection):
        return build_task_source(section.name, section)
    if isinstance(section, FileSourceSection):
        return FileSource(
            section.name,
            section.path,
            format=section.format,
            documents=section.documents,
            separator=section.separator,
            text_column=section.text_column,
            prompt_column=section.prompt_column,
        )
    return HubSource(
        section.name,
        section.dataset,
        config=section.config,
        split=section.split,
        revision=section.revision,
        text_column=section.text_column,
        prompt_column=section.prompt_column,
    )


def build_task_source(name: str, section: TaskDataSection) -> TaskSource:
    """The items of a task, as documents or as they are."""
    if section.path is not None:
        rows: FileRows | HubRows = FileRows(section.path)
    else:
        assert section.dataset is not None, "the section has one of them"
        rows = HubRows(
            name, section.dataset, config=section.config, split=section.split, revision=section.revision
        )
    return TaskSource(
        name,
        section.task,
        rows,
        part=section.part,
        evaluation_share=section.evaluation_share,
        max_characters=section.max_characters,
    )

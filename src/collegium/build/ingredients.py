"""Tokenizer and prepared text."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from collegium.data.collate import BlockCollator
from collegium.data.prepare import prepare_text
from collegium.data.prepared import MANIFEST_NAME, SCHEMA_VERSION, PreparedText
from collegium.data.settings import PrepareProgress, SourceLimits
from collegium.data.sources import FileSource, HubSource
from collegium.pretrained import cache_dir, load_tokenizer
from collegium.recipe import FileSourceSection, HubSourceSection, Recipe
from collegium.tokenizer_match import tokenizer_fingerprint, vocab_size_of


@dataclass(frozen=True)
class Ingredients:
    """What every command starts from: tokenizer, prepared text and the size of the vocabulary."""

    tokenizer: PreTrainedTokenizerBase
    text: PreparedText
    vocab_size: int

    @property
    def collator(self) -> BlockCollator:
        """Makes batches of packed blocks."""
        ids = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        pad_token_id = next(int(i) for i in ids if isinstance(i, int))
        return BlockCollator(pad_token_id=pad_token_id, domains=self.domains)

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


def build_text(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    *,
    on_progress: Callable[[PrepareProgress], None] | None = None,
) -> PreparedText:
    """Prepare the text of a recipe; returns at once if it is there."""
    data = recipe.data
    add_bos = data.add_bos if isinstance(data.add_bos, bool) else adds_bos(tokenizer)
    limits = {
        source.name: SourceLimits(
            max_documents=source.max_documents,
            max_tokens=source.max_tokens,
            min_characters=source.min_characters,
        )
        for source in data.sources
    }
    sources = [build_source(source) for source in data.sources]
    return prepare_text(
        sources,
        tokenizer,
        directory=text_directory(recipe, tokenizer, sources),
        block_size=data.block_size,
        held_out_documents=data.held_out_documents,
        add_bos=add_bos,
        add_eos=data.add_eos,
        max_bad_fraction=data.max_bad_fraction,
        near_duplicate_threshold=data.near_duplicate_threshold,
        blocks_per_shard=data.blocks_per_shard,
        limits=limits,
        on_progress=on_progress,
    )


def text_directory(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, sources: Sequence[FileSource | HubSource]
) -> Path:
    """Where the prepared text lies: as the recipe says, else in the cache under its fingerprint.

    The content of the sources is part of that, so that an edited file is prepared anew, and so is the
    version of what is written.
    """
    if recipe.data.directory is not None:
        return Path(recipe.data.directory)
    parts = [tokenizer_fingerprint(tokenizer), *(source.fingerprint for source in sources)]
    content = recipe.data.model_dump_json(exclude={"directory", "mixing"}) + "".join(parts) + str(SCHEMA_VERSION)
    return cache_dir() / "prepared" / hashlib.sha256(content.encode()).hexdigest()[:16]


def prepared_text(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> PreparedText | None:
    """The text of a recipe if it is prepared already; else None, and nothing is written.

    Raises:
        DataError: a source is not there, or the folder holds other text or is damaged.
    """
    folder = text_directory(recipe, tokenizer, [build_source(source) for source in recipe.data.sources])
    return build_text(recipe, tokenizer) if (folder / MANIFEST_NAME).exists() else None


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


def build_source(section: HubSourceSection | FileSourceSection) -> FileSource | HubSource:
    """A text source."""
    if isinstance(section, FileSourceSection):
        return FileSource(
            section.name,
            section.path,
            format=section.format,
            documents=section.documents,
            separator=section.separator,
            text_column=section.text_column,
        )
    return HubSource(
        section.name,
        section.dataset,
        config=section.config,
        split=section.split,
        revision=section.revision,
        text_column=section.text_column,
    )

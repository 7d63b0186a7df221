"""The text of a recipe in the tokens of one tokenizer: the student's, or a teacher's own."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase

from collegium.alignment.tokenizer_match import tokenizer_difference, tokenizer_fingerprint, vocab_size_of
from collegium.assembly.process import first_rank_first
from collegium.assembly.sources import build_source
from collegium.assembly.tokenizers import adds_bos, begins_with_bos, teacher_tokenizer
from collegium.base.progress import Phase
from collegium.base.references import cache_dir
from collegium.base.terminal import duration, say
from collegium.data.collate import BlockCollator, padding_id
from collegium.data.prepare import prepare_text
from collegium.data.prepared import MANIFEST_NAME, SCHEMA_VERSION, PreparedText
from collegium.data.settings import PrepareProgress, SourceLimits
from collegium.data.sources import Source
from collegium.recipe.recipe import Recipe
from collegium.recipe.sections.base import DESCRIBING
from collegium.recipe.sections.models import TeachingSection


if TYPE_CHECKING:
    from collegium.assembly.run import Run


@dataclass(frozen=True)
class Corpus:
    """Prepared text and the tokenizer that it was prepared with."""

    tokenizer: PreTrainedTokenizerBase
    text: PreparedText

    @cached_property
    def vocab_size(self) -> int:
        """Tokens that the tokenizer knows."""
        return vocab_size_of(self.tokenizer)

    @property
    def collator(self) -> BlockCollator:
        """Makes batches of packed blocks; tokens of prompts are not predicted."""
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


def shared_text(run: "Run") -> PreparedText:
    """Prepare the text of a run on the first rank while the others wait."""
    with first_rank_first():  # the tokenizer too, which may have to be fetched
        text = _prepared(run.recipe, run.tokenizer, "preparing the text")
    held_out = ", ".join(f"{len(blocks):,} of {name}" for name, blocks in text.held_out.items())
    say(f"text: {len(text.train):,} training blocks; held-out blocks: {held_out}; in {text.directory}")
    return text


def _prepared(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, name: str, *, is_students: bool = True
) -> PreparedText:
    """Prepare text in a phase of this name."""
    with Phase(name, unit="tokens") as phase:

        def show(progress: PrepareProgress) -> None:
            left = "" if progress.seconds_left is None else f", {duration(progress.seconds_left)} left"
            phase.update(
                progress.tokens,
                total=progress.tokens_total,
                note=f"{progress.documents:,} documents of {progress.source}",
                rate=f"{progress.tokens_per_second:,.0f} tokens/s{left}",
            )

        notice = say if is_students else None  # it was said of the text, and these are other tokens of it
        return build_text(recipe, tokenizer, is_students=is_students, on_progress=show, on_notice=notice)


def own_corpus(run: "Run", section: TeachingSection) -> Corpus:
    """The same text in the tokens of a teacher's own tokenizer; the run's corpus, if that is the student's too.

    Raises:
        TeacherError: its tokenizer cannot be found.
        DataError: the text may be another one.
    """
    tokenizer = teacher_tokenizer(section)
    if tokenizer is None or tokenizer_difference(run.tokenizer, tokenizer) is None:
        return run.corpus
    students = run.text  # first, as everywhere
    name = f"preparing the text in the tokens of {section.name}"
    text = _prepared(run.recipe, tokenizer, name, is_students=False)
    students.require_same_text(text)
    return Corpus(tokenizer, text)


def build_text(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    *,
    is_students: bool = True,
    on_progress: Callable[[PrepareProgress], None] | None = None,
    on_notice: Callable[[str], None] | None = None,
) -> PreparedText:
    """Prepare the text of a recipe; returns at once if it is there.

    In a teacher's own tokens every segment begins with BOS, and each document ends with EOS, if that is the
    tokenizer's custom.
    """
    data = recipe.data
    add_bos = begins_with_bos(data.add_bos, tokenizer) if is_students else adds_bos(tokenizer)
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
        on_notice=on_notice,
    )


def text_directory(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[Source],
    *,
    is_students: bool = True,
) -> Path:
    """Folder of the prepared text: as the recipe says, in a teacher's own tokens beside that, else in the cache.

    In the cache it is named by its fingerprint. The content of the sources is part of that, so that an edited
    file is prepared again, and so is the version of what is written. Text that an earlier version prepared, which
    looked at samples of large files, is found by its name.
    """
    if recipe.data.directory is not None:
        given = Path(recipe.data.directory)
        return given if is_students else given.with_name(f"{given.name}-{tokenizer_fingerprint(tokenizer)[:8]}")
    default = _default_directory(recipe, tokenizer, [source.fingerprint for source in sources], is_students)
    if (default / MANIFEST_NAME).exists():
        return default
    before = _default_directory(recipe, tokenizer, [source.earlier_fingerprint for source in sources], is_students)
    return before if (before / MANIFEST_NAME).exists() else default


def _default_directory(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, sources: Sequence[str], is_students: bool
) -> Path:
    """Folder in the cache for text of sources with these fingerprints."""
    parts = [tokenizer_fingerprint(tokenizer), *sources]
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

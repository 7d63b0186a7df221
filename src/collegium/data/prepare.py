"""From text sources to packed blocks on disk, in constant memory, resumable at any moment.

First, some documents of every source are held out. Then each source is read from its beginning, and
whatever is not held-out text, or nearly the same as it, is packed and written, a shard at a time.
After kill -9 the same call resumes, and the folder becomes byte for byte what it would have been.
What is lost is at most one shard of work.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from collegium.base.digest import json_digest
from collegium.base.errors import DataError
from collegium.base.locks import folder_lock
from collegium.base.terminal import say
from collegium.data.journal import JOURNAL_NAME
from collegium.data.preparation import Preparation
from collegium.data.prepared import MANIFEST_NAME, SCHEMA_VERSION, PreparedText, read_manifest
from collegium.data.settings import PrepareProgress, PrepareSettings, SourceLimits
from collegium.data.sources import Source
from collegium.data.tokenization import DocumentTokenizer


def prepare_text(
    sources: Sequence[Source],
    tokenizer: PreTrainedTokenizerBase,
    *,
    directory: Path,
    block_size: int,
    held_out_documents: int,
    add_bos: bool,
    add_eos: bool,
    bos_at_segments: bool = False,
    max_bad_fraction: float,
    near_duplicate_threshold: float,
    blocks_per_shard: int,
    limits: Mapping[str, SourceLimits] | None = None,
    on_progress: Callable[[PrepareProgress], None] | None = None,
    on_notice: Callable[[str], None] | None = None,
) -> PreparedText:
    """Prepare text, resume an interrupted preparation, or open a finished one.

    Args:
        sources: One for each domain.
        tokenizer: A fast tokenizer.
        directory: Folder to write; it belongs to this text alone.
        block_size: Tokens of a block.
        held_out_documents: Documents of each source to hold out; of a small source, half at most.
        add_bos: Begin each document with BOS.
        add_eos: End each document with EOS.
        bos_at_segments: Begin with BOS where a document continues in another block, too. Needs add_bos.
        max_bad_fraction: Stop when more than this share of a source's documents cannot be read.
        near_duplicate_threshold: Drop documents that share this part of their 13-grams with held-out ones.
        blocks_per_shard: Blocks of one file, the unit of resuming.
        limits: Limits by the name of the source.
        on_progress: Called after every batch of documents.
        on_notice: Called with a sentence where a text does not look like what it is read as.

    Returns:
        The prepared text, opened.

    Raises:
        BusyError: if another process is writing `directory`.
        DataError: if a source cannot be read, nothing is left of it, or `directory` holds other text, or is
            damaged.
        OSError: if the folder cannot be written; the same call resumes once that is fixed.
    """
    names = [source.name for source in sources]
    _check_names(names, limits or {})
    settings = PrepareSettings(
        block_size=block_size,
        held_out_documents=held_out_documents,
        add_bos=add_bos,
        add_eos=add_eos,
        bos_at_segments=bos_at_segments,
        max_bad_fraction=max_bad_fraction,
        near_duplicate_threshold=near_duplicate_threshold,
        blocks_per_shard=blocks_per_shard,
        limits={name: (limits or {}).get(name, SourceLimits()) for name in names},
    )
    _finish(sources, tokenizer, settings, directory, on_progress, on_notice)
    return PreparedText.load(directory)


def _finish(
    sources: Sequence[Source],
    tokenizer: PreTrainedTokenizerBase,
    settings: PrepareSettings,
    directory: Path,
    on_progress: Callable[[PrepareProgress], None] | None,
    on_notice: Callable[[str], None] | None,
) -> None:
    """Do what is left to do in `directory`, which may be nothing."""
    encoder = DocumentTokenizer(tokenizer, add_bos=settings.add_bos, add_eos=settings.add_eos)
    fingerprint = _fingerprint(sources, encoder, settings)
    journal = directory / JOURNAL_NAME

    def is_finished() -> bool:
        if not (directory / MANIFEST_NAME).exists():
            return False
        found = read_manifest(directory)["fingerprint"]
        if found != fingerprint:
            _require_earlier(directory, found, fingerprint, _fingerprint(sources, encoder, settings, earlier=True))
        return True

    if is_finished() and not journal.exists():
        return
    with folder_lock(directory):
        if not is_finished():
            Preparation(
                sources,
                encoder,
                settings,
                directory=directory,
                fingerprint=fingerprint,
                on_progress=on_progress,
                on_notice=on_notice,
            ).finish()
    # Last of all: a folder with a journal is not trusted yet.
    journal.unlink(missing_ok=True)


def _check_names(names: Sequence[str], limits: Mapping[str, SourceLimits]) -> None:
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise ValueError(f"source {name!r}: a name has letters, digits, '.', '_' and '-' only")
    if not names or len(set(names)) < len(names):
        raise ValueError(f"sources {list(names)}: give at least one, and each a name of its own")
    if unknown := sorted(set(limits) - set(names)):
        raise ValueError(f"limits name {unknown}, the sources are {list(names)}")


def _fingerprint(
    sources: Sequence[Source], encoder: DocumentTokenizer, settings: PrepareSettings, *, earlier: bool = False
) -> str:
    decisive = asdict(settings)
    if not settings.bos_at_segments:  # text that was prepared without it stays what it is
        del decisive["bos_at_segments"]
    content = {
        "schema": SCHEMA_VERSION,
        "sources": [[s.name, s.earlier_fingerprint if earlier else s.fingerprint] for s in sources],
        "tokenizer": encoder.identity,
        "settings": decisive,
    }
    return json_digest(content)


def _require_earlier(directory: Path, found: str, asked: str, earlier: str) -> None:
    """Take text of the same files as far as an earlier version looked at them, and say so; else refuse it."""
    if found != earlier:
        raise DataError(
            f"{directory}: holds text with fingerprint {found}, now {asked} is asked for "
            "(another source, tokenizer or setting): give another data.directory, or delete it"
        )
    _say_unknown(directory)


@cache
def _say_unknown(directory: Path) -> None:
    """Say it once, however often a command opens the text."""
    say(
        f"{directory}: is of an earlier version, which looked at three samples of each file above 8 MiB: that "
        "these files are as they were is not known; to be sure, delete it and run `collegium prepare` again"
    )

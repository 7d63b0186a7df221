"""One preparation of text: the work behind `prepare_text`.

A document's number follows from the text alone, so that preparations with different tokenizers agree:
first the held-out documents, source by source, then those for training, where sources take turns (of two,
one has the even numbers and one the odd). How far another source is read, which `max_tokens` decides in
tokens, and how many documents are of a single token therefore change no number.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from collegium.base.digests import sealed
from collegium.base.errors import DataError
from collegium.data.deduplicate import HeldOutIndex, words_key, words_of
from collegium.data.documents import Document
from collegium.data.filtering import EMPTY, KEPT, SKIPPED, TOO_SHORT, Tally, drop_reason
from collegium.data.held_out import choose_held_out
from collegium.data.journal import Journal
from collegium.data.packing import Block, Packer
from collegium.data.prepared import MANIFEST_NAME, SCHEMA_VERSION, held_out_file, held_out_text_file, train_file
from collegium.data.settings import PrepareProgress, PrepareSettings
from collegium.data.signs import TextSigns
from collegium.data.sources import Source
from collegium.data.storage import write_blocks, write_json, write_json_lines
from collegium.data.stored_blocks import read_recorded
from collegium.data.tokenization import DocumentTokenizer, TokenizedDocument


_BATCH_CHARACTERS = 2**20
_BATCH_DOCUMENTS = 512
_SHORTEST_DOCUMENT = 2  # tokens; one alone predicts nothing


@dataclass(frozen=True)
class _Item:
    """A document, the position it was read from, and why it is dropped, if it is."""

    state: dict[str, Any]
    document: Document
    reason: str | None


class Preparation:
    """Reads sources and writes the files of one folder, which the caller has locked.

    Args:
        sources: One for each domain.
        tokenizer: Makes tokens of them.
        settings: What is asked for.
        directory: The folder.
        fingerprint: Identity of all the above.
        on_progress: Called after every batch of documents.
        on_notice: Called with a sentence where a text does not look like what it is read as.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        tokenizer: DocumentTokenizer,
        settings: PrepareSettings,
        *,
        directory: Path,
        fingerprint: str,
        on_progress: Callable[[PrepareProgress], None] | None,
        on_notice: Callable[[str], None] | None = None,
    ) -> None:
        self._sources = sources
        self._tokenizer = tokenizer
        self._settings = settings
        self._directory = directory
        self._on_progress = on_progress
        self._on_notice = on_notice
        self._journal = Journal(fingerprint)
        self._pending: list[Block] = []
        self._started = time.monotonic()
        self._new_tokens = 0

    def finish(self) -> None:
        """Go from the last whole shard, or the beginning, to the manifest."""
        begun = Journal.load(self._directory, self._journal.fingerprint)
        if begun is None:
            self._hold_out()
        else:
            self._journal = begun
        texts = self._held_out_texts()
        index = HeldOutIndex(texts, threshold=self._settings.near_duplicate_threshold)
        self._started = time.monotonic()
        for source in self._sources[self._journal.source_index :]:
            self._pack_source(source, index)
        if self._pending:
            self._write_shard()
        self._write_manifest()

    def _hold_out(self) -> None:
        taken: frozenset[int] = frozenset()
        for source in self._sources:
            signs = TextSigns(f"source {source.name!r}", self._tokenizer.special_texts)
            documents = choose_held_out(
                source,
                wanted=self._settings.held_out_documents,
                taken=taken,
                limits=self._settings.limits[source.name],
                max_bad_fraction=self._settings.max_bad_fraction,
                on_document=signs.see,
            )
            taken |= {words_key(words_of(document.text)) for document in documents}
            self._write_held_out(source.name, documents)
            for sentence in signs.sentences(self._journal.files[held_out_file(source.name)].tokens[source.name]):
                if self._on_notice is not None:
                    self._on_notice(sentence)
        self._journal.save(self._directory)

    def _packer(self, domain: str) -> Packer:
        bos = self._tokenizer.bos if self._settings.bos_at_segments else None
        return Packer(block_size=self._settings.block_size, domain=domain, bos=bos)

    def _write_held_out(self, domain: str, documents: list[Document]) -> None:
        packer = self._packer(domain)
        blocks = []
        first = self._journal.next_document
        for number, tokens in enumerate(self._tokenizer.encode_documents(documents), first):
            blocks += [block for block, _ in packer.add(number, tokens)]
        blocks += packer.flush()
        if not blocks:
            raise DataError(
                f"source {domain!r}: the held-out documents have one token each, which leaves "
                "nothing to predict: raise min_characters"
            )
        numbered = [{"document": first + i, "text": document.text} for i, document in enumerate(documents)]
        files = self._journal.files
        directory = self._directory
        name = held_out_file(domain)
        text_name = held_out_text_file(domain)
        files[name] = write_blocks(directory / name, blocks)
        files[text_name] = write_json_lines(directory / text_name, numbered)
        self._journal.next_document += len(documents)

    def _held_out_texts(self) -> list[str]:
        return [text for source in self._sources for text in self._held_out_of(source.name)]

    def _held_out_of(self, domain: str) -> list[str]:
        name = held_out_text_file(domain)
        try:
            content = read_recorded(self._directory / name, asdict(self._journal.files[name]))
        except ValueError as error:
            raise DataError(
                f"{self._directory / name}: is damaged: {error}; delete {self._directory} and run "
                "`collegium prepare` again"
            ) from error
        return [json.loads(line)["text"] for line in content.splitlines()]

    def _pack_source(self, source: Source, index: HeldOutIndex) -> None:
        journal = self._journal
        name = source.name
        tally = Tally(name, journal.counts.setdefault(name, {}))
        journal.tokens.setdefault(name, 0)
        packer = self._packer(name)
        for batch in self._batches(source, index, tally):
            self._pack_batch(batch, packer, tally)
            self._report(tally)
            if self._tokens_left(name) == 0:
                break
        tally.check(self._settings.max_bad_fraction, at_end=True)
        if journal.tokens[name] < _SHORTEST_DOCUMENT:
            raise DataError(
                f"source {name!r}: nothing is left for training ({tally.summary}): "
                f"give more text, or lower held_out_documents or min_characters{tally.first_bad}"
            )
        journal.source_index += 1
        journal.source_state = {}
        journal.skip_tokens = 0
        journal.next_document = self._num_held_out() + journal.source_index
        for block in packer.flush():
            self._keep(block)

    def _batches(self, source: Source, index: HeldOutIndex, tally: Tally) -> Iterator[list[_Item]]:
        limits = self._settings.limits[source.name]
        source.load_state_dict(self._journal.source_state)
        state = source.state_dict()
        num_documents = tally.num_documents
        num_characters = 0
        batch: list[_Item] = []
        documents = iter(source)
        while num_documents != limits.max_documents and (document := next(documents, None)):
            reason = drop_reason(document, limits) or index.match(document.text)
            if reason is None and num_documents < limits.skip_documents:
                reason = SKIPPED
            batch.append(_Item(state, Document("", detail=document.detail) if reason else document, reason))
            state = source.state_dict()
            num_documents += reason != EMPTY
            num_characters += len(document.text)
            if num_characters >= _BATCH_CHARACTERS or len(batch) == _BATCH_DOCUMENTS:
                yield batch
                batch = []
                num_characters = 0
        if batch:
            yield batch

    def _pack_batch(self, batch: list[_Item], packer: Packer, tally: Tally) -> None:
        kept = iter(self._tokenizer.encode_documents([item.document for item in batch if item.reason is None]))
        for item in batch:
            reason = item.reason or self._pack(item.state, next(kept), packer, tally.source)
            tally.add(reason, item.document.detail)
            tally.check(self._settings.max_bad_fraction)
            if self._tokens_left(tally.source) == 0:
                break

    def _pack(self, state: dict[str, Any], document: TokenizedDocument, packer: Packer, name: str) -> str:
        """Pack one document; returns what became of it."""
        journal = self._journal
        number = journal.next_document
        skip = journal.skip_tokens
        journal.skip_tokens = 0
        if len(document) < max(_SHORTEST_DOCUMENT, document.prompt_tokens + 1):
            journal.next_document += len(self._sources)
            return TOO_SHORT
        document = document[: self._tokens_left(name)]
        for block, num_packed in packer.add(number, document[skip:]):
            # The journal still counts up to this document, as reading it again will count it.
            journal.source_state = state
            journal.skip_tokens = skip + num_packed
            self._keep(block)
        journal.skip_tokens = 0
        journal.next_document += len(self._sources)
        journal.tokens[name] += len(document)
        self._new_tokens += len(document) - skip
        return KEPT

    def _num_held_out(self) -> int:
        return sum(self._journal.files[held_out_text_file(source.name)].rows for source in self._sources)

    def _tokens_left(self, name: str) -> int | None:
        maximum = self._settings.limits[name].max_tokens
        return None if maximum is None else maximum - self._journal.tokens[name]

    def _keep(self, block: Block) -> None:
        self._pending.append(block)
        if len(self._pending) == self._settings.blocks_per_shard:
            self._write_shard()
            self._journal.save(self._directory)

    def _write_shard(self) -> None:
        files = self._journal.files
        name = train_file(sum(name.startswith("train/") for name in files))
        files[name] = write_blocks(self._directory / name, self._pending)
        self._pending = []

    def _report(self, tally: Tally) -> None:
        if self._on_progress is None:
            return
        seconds = max(time.monotonic() - self._started, 1e-9)
        self._on_progress(
            PrepareProgress(
                source=tally.source,
                documents=tally.num_documents,
                tokens=self._journal.tokens[tally.source],
                tokens_total=self._settings.limits[tally.source].max_tokens,
                seconds=seconds,
                tokens_per_second=self._new_tokens / seconds,
            )
        )

    def _write_manifest(self) -> None:
        manifest = {
            "schema": SCHEMA_VERSION,
            "fingerprint": self._journal.fingerprint,
            "block_size": self._settings.block_size,
            "tokenizer": self._tokenizer.identity,
            "text": self._describe_text(),
            "sources": {source.name: self._describe(source) for source in self._sources},
            "files": {name: asdict(record) for name, record in self._journal.files.items()},
        }
        write_json(self._directory / MANIFEST_NAME, sealed(manifest))

    def _describe_text(self) -> dict[str, Any]:
        """All that decides which documents there are and their numbers; nothing of the tokenizer."""
        limits = self._settings.limits
        held_out = {s.name: self._journal.files[held_out_text_file(s.name)].sha256 for s in self._sources}
        return {
            "sources": [[source.name, source.fingerprint] for source in self._sources],
            "max_documents": {name: limit.max_documents for name, limit in limits.items()},
            "skip_documents": {name: limit.skip_documents for name, limit in limits.items()},
            "min_characters": {name: limit.min_characters for name, limit in limits.items()},
            "near_duplicate_threshold": self._settings.near_duplicate_threshold,
            "held_out_documents": self._settings.held_out_documents,
            "held_out_text": held_out,
        }

    def _describe(self, source: Source) -> dict[str, Any]:
        name = source.name
        files = self._journal.files
        training = [record for file, record in files.items() if file.startswith("train/")]
        return {
            "fingerprint": source.fingerprint,
            "documents": self._journal.counts[name],
            "train_tokens": sum(record.tokens.get(name, 0) for record in training),
            "held_out_documents": files[held_out_text_file(name)].rows,
            "held_out_tokens": files[held_out_file(name)].tokens[name],
        }

"""A small byte-level tokenizer, sources in memory, and `prepare` with short defaults."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from collegium.data.documents import Document
from collegium.data.prepare import prepare_text
from collegium.data.prepared import PreparedText
from collegium.data.sources import Source


WORDS = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "you",
    "that",
    "it",
    "he",
    "was",
    "for",
    "on",
    "are",
    "as",
    "with",
    "his",
    "they",
    "at",
    "be",
    "this",
    "have",
    "from",
    "or",
    "one",
    "had",
    "by",
    "word",
    "but",
    "not",
    "what",
    "all",
    "were",
    "we",
    "when",
    "your",
    "can",
    "said",
    "there",
    "use",
    "an",
    "each",
    "which",
    "she",
    "do",
    "how",
    "their",
    "if",
    "will",
    "up",
    "other",
    "about",
    "out",
    "many",
    "then",
    "them",
    "these",
    "so",
    "some",
    "her",
    "would",
    "make",
    "like",
    "him",
    "into",
    "time",
    "has",
    "look",
    "two",
    "more",
    "write",
    "go",
    "see",
    "number",
    "no",
    "way",
    "could",
    "people",
    "my",
    "than",
    "first",
    "water",
    "been",
    "call",
    "who",
    "oil",
    "its",
    "now",
    "find",
    "long",
    "down",
    "day",
    "did",
    "get",
    "come",
    "made",
    "may",
    "part",
]


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="session")
def other_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level tokens across borders of words and characters: many begin or end inside a character."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<x>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    generator = random.Random(1)
    backend.train_from_iterator(["".join(generator.choices("é€漢字🙂🙃 aw1", k=40)) for _ in range(50)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<x>", eos_token="<x>")


class ListSource:
    """A source in memory that counts what is read from it."""

    def __init__(self, name: str, texts: Sequence[str | Document]) -> None:
        self.name = name
        self.fingerprint = self.earlier_fingerprint = str(hash(tuple(texts)))
        self.num_read = 0
        self._texts = texts
        self._next = 0

    def __iter__(self) -> Iterator[Document]:
        while self._next < len(self._texts):
            text = self._texts[self._next]
            self._next += 1
            self.num_read += 1
            yield text if isinstance(text, Document) else Document.checked(text)

    def state_dict(self) -> dict[str, Any]:
        return {"next": self._next}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._next = state.get("next", 0)


@pytest.fixture(scope="session")
def list_source() -> type[ListSource]:
    return ListSource


@pytest.fixture(scope="session")
def prose() -> Callable[[int], list[str]]:
    """Different documents of 5 to 60 words; a longer list begins with the shorter one."""

    def make(num_documents: int) -> list[str]:
        generator = random.Random(0)
        return [" ".join(generator.choices(WORDS, k=generator.randint(5, 60))) for _ in range(num_documents)]

    return make


@pytest.fixture
def prepare(tokenizer: PreTrainedTokenizerFast) -> Callable[..., PreparedText]:
    """`prepare_text` with small defaults."""
    usual = tokenizer

    def call(
        sources: Sequence[Source],
        directory: Path,
        *,
        tokenizer: PreTrainedTokenizerFast = usual,
        **changed: Any,
    ) -> PreparedText:
        settings = {
            "block_size": 16,
            "held_out_documents": 4,
            "add_bos": False,
            "add_eos": False,
            "max_bad_fraction": 0.01,
            "near_duplicate_threshold": 0.5,
            "blocks_per_shard": 8,
        }
        return prepare_text(sources, tokenizer, directory=directory, **(settings | changed))

    return call


@pytest.fixture(scope="session")
def folder_content() -> Callable[[Path], dict[str, bytes]]:
    """Every file below a folder, hidden ones included."""

    def read(directory: Path) -> dict[str, bytes]:
        files = (path for path in sorted(directory.rglob("*")) if path.is_file())
        return {str(path.relative_to(directory)): path.read_bytes() for path in files}

    return read


@pytest.fixture(scope="session")
def document_texts(
    tokenizer: PreTrainedTokenizerFast,
) -> Callable[[Sequence[Mapping[str, Any]]], dict[int, str]]:
    """Text of every document in rows of packed blocks, put together from its segments."""

    def read(rows: Sequence[Mapping[str, Any]]) -> dict[int, str]:
        tokens: dict[int, list[int]] = {}
        for row in rows:
            start = 0
            for length, document in zip(row["segment_lengths"], row["segment_documents"], strict=True):
                tokens.setdefault(document, []).extend(row["input_ids"][start : start + length])
                start += length
            assert start == len(row["input_ids"])
        return {document: tokenizer.decode(ids) for document, ids in tokens.items()}

    return read

"""Continuations of held-out documents by a model, and how they compare.

The beginning of a document is continued by the most probable token at each step. The text is compared with how
the document really goes on (`*_reference`), and with how the fused teachers continue it (`*_teacher`): what a
student was to learn. Many texts are good continuations, so on prose BLEU against the real one is in single
digits; what counts is its difference between students on the same documents.

References are made once and serve any number of students. All prompts have the same number of tokens, so
nothing is padded.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from collegium.data.blocks import PackedBlocks
from collegium.evaluation.greedy import Writing, continuations
from collegium.evaluation.resampling import CorpusFigure
from collegium.evaluation.statistics import bootstrap_figure, paired_figure_difference
from collegium.evaluation.text_overlap import bleu, chrf, distinct, mean_length, repetition
from collegium.report.interval import Difference
from collegium.report.samples import GeneratedDomain, Generation


OVERLAPS = {"bleu": bleu, "chrf": chrf}


@dataclass(frozen=True)
class Prompts:
    """Beginnings of documents of one domain.

    Attributes:
        documents: Their numbers.
        tokens: The first P tokens of each.
        truth: The T tokens that follow.
    """

    documents: tuple[int, ...]
    tokens: Int[Tensor, "R P"]
    truth: Int[Tensor, "R T"]


@dataclass(frozen=True)
class References:
    """Texts that continuations are compared with, by domain.

    Attributes:
        prompts: Of each domain that has documents long enough.
        truth: How the documents go on.
        teacher: How the teachers continue them; domains that they cannot are missing.
        teacher_is: Who wrote those, or why nobody did.
    """

    prompts: Mapping[str, Prompts]
    truth: Mapping[str, Sequence[str]]
    teacher: Mapping[str, Sequence[str]]
    teacher_is: str


def prompts_of(blocks: PackedBlocks, count: int, *, prompt_tokens: int, new_tokens: int) -> Prompts | None:
    """The first documents that are long enough to be cut into a prompt and what follows; None if none is."""
    needed = prompt_tokens + new_tokens
    chosen: list[tuple[int, list[int]]] = []
    for number, tokens in _documents(blocks):
        if len(tokens) >= needed:
            chosen.append((number, tokens[:needed]))
        if len(chosen) == count:
            break
    if not chosen:
        return None
    both = torch.tensor([tokens for _, tokens in chosen])
    return Prompts(tuple(number for number, _ in chosen), both[:, :prompt_tokens], both[:, prompt_tokens:])


def _documents(blocks: PackedBlocks) -> Iterator[tuple[int, list[int]]]:
    """Number and tokens of each document, its segments joined."""
    number = -1
    tokens: list[int] = []
    for index in range(len(blocks)):
        row = blocks[index]
        start = 0
        for document, length in zip(row["segment_documents"], row["segment_lengths"], strict=True):
            if document != number and tokens:
                yield number, tokens
                tokens = []
            number = document
            tokens += row["input_ids"][start : start + length]
            start += length
    if tokens:
        yield number, tokens


@dataclass(frozen=True)
class Continuations:
    """Texts that one model wrote.

    Attributes:
        tokens: Of each text, by domain.
        texts: The same, detokenised.
    """

    tokens: Mapping[str, Sequence[Sequence[int]]]
    texts: Mapping[str, Sequence[str]]


def continue_documents(
    model: PreTrainedModel, references: References, tokenizer: PreTrainedTokenizerBase, how: Writing
) -> Continuations:
    """Let a model continue the prompts of all domains."""
    tokens = {name: continuations(model, prompts.tokens, how) for name, prompts in references.prompts.items()}
    return Continuations(tokens, {name: detokenized(tokenizer, rows) for name, rows in tokens.items()})


def detokenized(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Sequence[int]] | Tensor) -> list[str]:
    """Tokens as text, without special tokens."""
    lists = rows.tolist() if isinstance(rows, Tensor) else [list(row) for row in rows]
    return [str(tokenizer.decode(row, skip_special_tokens=True)) for row in lists]


Figures = dict[str, CorpusFigure]


def continuation_figures(written: Continuations, references: References) -> dict[str, Figures]:
    """Figures of what one model wrote, by domain and over `all` of them; see `figures_of_texts`."""
    domains = list(references.prompts)
    figures = {name: _figures_of([name], written, references) for name in domains}
    return {**figures, "all": _figures_of(domains, written, references)} if domains else {}


def _figures_of(domains: Sequence[str], written: Continuations, references: References) -> Figures:
    tokens = [row for name in domains for row in written.tokens[name]]
    figures = {
        "repetition_4": repetition(tokens, 4),
        "distinct_2": distinct(tokens, 2),
        "length": mean_length(tokens),
    }
    for whose, texts in {"reference": references.truth, "teacher": references.teacher}.items():
        named = [name for name in domains if name in texts]
        ours = [text for name in named for text in written.texts[name]]
        theirs = [text for name in named for text in texts[name]]
        if named:
            figures |= {f"{name}_{whose}": overlap(ours, theirs) for name, overlap in OVERLAPS.items()}
    return figures


def summarize_continuations(
    written: Continuations, references: References, *, confidence: float, num_samples: int, seed: int
) -> Generation:
    """Figures with intervals over documents, by domain and over `all` of them, and how they were made."""
    options: dict[str, Any] = {"confidence": confidence, "num_samples": num_samples, "seed": seed}
    tables = continuation_figures(written, references)
    domains = {
        name: GeneratedDomain(
            documents=len(next(iter(figures.values())).statistics),
            figures={key: bootstrap_figure(figure, **options) for key, figure in figures.items()},
        )
        for name, figures in tables.items()
    }
    signatures = {key: figure.signature for table in tables.values() for key, figure in table.items()}
    prompts = next(iter(references.prompts.values()))
    return Generation(
        prompt_tokens=prompts.tokens.shape[1],
        new_tokens=prompts.truth.shape[1],
        teacher=references.teacher_is,
        signatures={key: signature for key, signature in signatures.items() if signature is not None},
        domains=domains,
    )


def compare_continuations(
    written: Continuations,
    baseline: Continuations,
    references: References,
    *,
    figure: str,
    confidence: float,
    num_samples: int,
    seed: int,
) -> dict[str, Difference]:
    """A figure of one model minus that of another on the same prompts, by domain and over all of them.

    Domains in which the figure is not there are left out.
    """
    options: dict[str, Any] = {"confidence": confidence, "num_samples": num_samples, "seed": seed}
    ours = continuation_figures(written, references)
    theirs = continuation_figures(baseline, references)
    return {
        name: paired_figure_difference(figures[figure], theirs[name][figure], **options)
        for name, figures in ours.items()
        if figure in figures
    }

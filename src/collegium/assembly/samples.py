"""Samples that people read in a report: held-out passages token by token, and continuations side by side.

One document a domain, always the same: the first that is long enough. Teachers write by themselves, each with
its own tokenizer, and together as the recipe fuses them; the student writes as it was before training and after.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from collegium.alignment.tokenizer_match import vocab_size_of
from collegium.assembly.generation import build_authors, writing_of
from collegium.assembly.tokenizers import teacher_tokenizer
from collegium.evaluation.generation import detokenized, prompts_of
from collegium.evaluation.greedy import Writing, continuations, fused_continuations
from collegium.evaluation.language_modeling import Rule
from collegium.evaluation.model_figures import trunk_and_head
from collegium.evaluation.passages import Reading, read_passages
from collegium.losses.weighting import Weighting
from collegium.recipe.sections.evaluation import SamplesSection
from collegium.report.samples import Continuation, Passage
from collegium.signals.contracts import Capability


if TYPE_CHECKING:
    from collegium.assembly.run import Run


class Samples(NamedTuple):
    """Passages and continuations by domain; empty where the recipe does not ask for them."""

    passages: Mapping[str, Passage]
    continuations: Mapping[str, Continuation]


def build_samples(run: "Run", student: PreTrainedModel, before: PreTrainedModel | None) -> Samples:
    """Read held-out passages with everybody, and let everybody continue held-out documents.

    Args:
        run: The run.
        student: The student.
        before: The same before training, if that is known.
    """
    section = run.recipe.evaluation.samples
    passages: Mapping[str, Passage] = {}
    continued: Mapping[str, Continuation] = {}
    if section is not None and section.passage_tokens:
        how = Reading(run.rule, partial(_decode, run.tokenizer), num_tokens=section.passage_tokens)
        passages = read_passages(run.held_out, *trunk_and_head(student, run.vocab_size), how)
    if section is not None and section.new_tokens:
        continued = _continuations(run, section, student, before)
    return Samples(passages, continued)


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


class _Prompt(NamedTuple):
    """The beginning of a held-out document of a domain, and when its continuations end."""

    domain: str
    tokens: Tensor
    text: str
    writing: Writing


def _continuations(
    run: "Run", section: SamplesSection, student: PreTrainedModel, before: PreTrainedModel | None
) -> dict[str, Continuation]:
    found = {}
    authors = build_authors(run)
    writing = writing_of(run.tokenizer, section.new_tokens, run.vocab_size)
    decoded = partial(detokenized, run.tokenizer)
    for domain, blocks in run.text.held_out.items():
        chosen = prompts_of(blocks, 1, prompt_tokens=section.prompt_tokens, new_tokens=section.new_tokens)
        if chosen is None:
            continue
        tokens = chosen.tokens.to(run.device)
        prompt = _Prompt(domain, tokens, decoded(tokens)[0], writing)
        fused = authors.write(tokens, writing, run.domains.index(domain))
        found[domain] = Continuation(
            prompt=prompt.text,
            document=decoded(chosen.truth)[0],
            student=decoded(continuations(student, tokens, writing))[0],
            before=None if before is None else decoded(continuations(before, tokens, writing))[0],
            fused=None if fused is None else decoded(fused)[0],
            teachers=dict(_teachers(run, prompt)),
        )
    return found


def _teachers(run: "Run", prompt: _Prompt) -> Iterator[tuple[str, str]]:
    """Continuations by each teacher that runs here and is asked about the domain."""
    alone = Rule(Weighting("uniform"))
    for section, teacher in zip(run.recipe.teachers, run.teachers, strict=True):
        if section.domains and prompt.domain not in section.domains:
            continue
        if Capability.GENERATE not in teacher.native.provides:
            continue
        if teacher.own_vocabulary is None:
            tokenizer = run.tokenizer
            written = fused_continuations([teacher.native], alone, prompt.tokens, prompt.writing)
        else:
            own_tokenizer = teacher_tokenizer(section)
            assert own_tokenizer is not None, "a model that runs here has one"
            tokenizer = own_tokenizer
            ids: Any = tokenizer(prompt.text, return_tensors="pt")["input_ids"]
            own = writing_of(tokenizer, prompt.writing.new_tokens, vocab_size_of(tokenizer))
            written = fused_continuations([teacher.native], alone, ids.to(prompt.tokens.device), own)
        yield section.name, detokenized(tokenizer, written)[0]

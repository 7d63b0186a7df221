"""Continuations of held-out documents: prompts, what the teachers make of them, and the student's."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from collegium.base.errors import DataError
from collegium.base.progress import Phase
from collegium.data.collate import padding_id
from collegium.evaluation.generation import (
    Continuations,
    Prompts,
    References,
    continue_documents,
    detokenized,
    prompts_of,
    summarize_continuations,
)
from collegium.evaluation.greedy import Writing, fused_continuations, writes_ahead
from collegium.evaluation.language_modeling import Rule
from collegium.evaluation.text_overlap import require_sacrebleu
from collegium.recipe.sections.evaluation import GenerationSection
from collegium.report.samples import Generation
from collegium.signals.contracts import Capability, Teacher


if TYPE_CHECKING:
    from collegium.assembly.run import Run


def measure_generation(run: "Run", model: PreTrainedModel) -> Generation | None:
    """Let a model write, and compare; None if the recipe does not ask for it."""
    references = run.references
    section = run.recipe.evaluation.generation
    if section is None or references is None:
        return None
    with Phase("continuing held-out documents"):
        written = continue_documents(model, references, run.tokenizer, build_writing(run, section))
    with Phase("computing intervals of what was written"):
        summary = summarize_continuations(
            written,
            references,
            confidence=run.recipe.evaluation.confidence,
            num_samples=run.recipe.evaluation.bootstrap_samples,
            seed=run.recipe.seed,
        )
    return replace(summary, samples=_samples(run.tokenizer, references, written))


def _samples(
    tokenizer: PreTrainedTokenizerBase, references: References, written: Continuations
) -> dict[str, dict[str, str]]:
    """The first document of each domain, for people to read."""
    samples = {}
    for name, prompts in references.prompts.items():
        texts = {
            "prompt": detokenized(tokenizer, prompts.tokens[:1]),
            "document": references.truth[name],
            "teachers": references.teacher.get(name, [None]),
            "student": written.texts[name],
        }
        samples[name] = {key: text[0] for key, text in texts.items() if text[0] is not None}
    return samples


def build_writing(run: "Run", section: GenerationSection) -> Writing:
    """Say when a continuation ends."""
    return writing_of(run.tokenizer, section.new_tokens, run.vocab_size)


def writing_of(tokenizer: PreTrainedTokenizerBase, new_tokens: int, vocab_size: int) -> Writing:
    """The same for any tokenizer."""
    eos: Any = tokenizer.eos_token_id
    return Writing(
        new_tokens=new_tokens, stop_token_id=eos, pad_token_id=padding_id(tokenizer), vocab_size=vocab_size
    )


def build_references(run: "Run") -> References | None:
    """Prompts of held-out documents, how these go on, and how the teachers continue them.

    They depend on no student, so they serve all that share text, teachers and rule.

    Returns:
        None if the recipe asks for no continuations.

    Raises:
        DataError: no domain has a document that is long enough.
        RecipeError: sacrebleu is not installed.
    """
    section = run.recipe.evaluation.generation
    if section is None:
        return None
    authors = build_authors(run)
    writing = build_writing(run, section)
    texts = {}
    for name, chosen in run.prompts.items():
        rows = authors.write(chosen.tokens.to(run.device), writing, run.domains.index(name))
        if rows is not None:
            texts[name] = detokenized(run.tokenizer, rows)
    truth = {name: detokenized(run.tokenizer, chosen.truth) for name, chosen in run.prompts.items()}
    return References(run.prompts, truth, texts, authors.in_words)


def build_prompts(run: "Run") -> dict[str, Prompts]:
    """Beginnings of held-out documents, by domain; none if the recipe does not ask for them.

    Raises:
        DataError: no domain has a document that is long enough.
        RecipeError: sacrebleu is not installed.
    """
    section = run.recipe.evaluation.generation
    if section is None:
        return {}
    require_sacrebleu()
    lengths = {"prompt_tokens": section.prompt_tokens, "new_tokens": section.new_tokens}
    found = {name: prompts_of(blocks, section.prompts, **lengths) for name, blocks in run.text.held_out.items()}
    prompts = {name: chosen for name, chosen in found.items() if chosen is not None}
    if not prompts:
        raise DataError(
            f"evaluation.generation: no held-out document has {sum(lengths.values())} tokens (prompt_tokens + "
            "new_tokens): make them fewer, or hold out longer documents"
        )
    return prompts


@dataclass(frozen=True)
class Authors:
    """Teachers that write together, each in its domains; none where they cannot."""

    teachers: Sequence[Teacher]
    rule: Rule | None
    in_words: str

    def write(self, prompts: Tensor, how: Writing, domain: int) -> list[list[int]] | None:
        """Their continuations; None in a domain that none of them is for."""
        absent = [
            teacher.name
            for teacher in self.teachers
            if teacher.domains is not None and domain not in teacher.domains
        ]
        if self.rule is None or len(absent) == len(self.teachers):
            return None
        return fused_continuations(self.teachers, self.rule, prompts, how, absent=absent, domain=domain)


def build_authors(run: "Run") -> Authors:
    """The teachers as those who write together by the recipe's rule."""
    rule = run.rule
    teachers = run.teachers
    if rule is None or not teachers:
        return _nobody("the recipe has no teachers, or no rule that fuses them without a student")
    if not writes_ahead(rule):
        return _nobody("the rule's weights follow the token that is to be written")
    silent = [teacher.name for teacher in teachers if Capability.GENERATE not in teacher.provides]
    if silent:
        return _nobody(
            f"teacher {silent[0]!r} knows stored text only, or has another tokenizer, so it does not write"
        )
    names = ", ".join(teacher.name for teacher in teachers)
    return Authors(teachers, rule, f"{names}, fused by the recipe's rule")


def _nobody(reason: str) -> Authors:
    return Authors((), None, f"left out: {reason}")

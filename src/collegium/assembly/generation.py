"""Continuations of held-out documents: prompts, what the teachers make of them, and the student's."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from collegium.assembly.ingredients import Ingredients
from collegium.assembly.objective import own_rule
from collegium.base.errors import DataError
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
from collegium.recipe.recipe import Recipe
from collegium.recipe.sections.evaluation import GenerationSection
from collegium.signals.contracts import Capability, Teacher


def measure_generation(
    recipe: Recipe,
    ingredients: Ingredients,
    teachers: Sequence[Teacher],
    model: PreTrainedModel,
    *,
    device: torch.device,
) -> dict[str, Any] | None:
    """Let a model write, and compare; None if the recipe does not ask for it."""
    section = recipe.evaluation.generation
    if section is None:
        return None
    references = build_references(recipe, ingredients, teachers, section, device=device)
    written = continue_documents(model, references, ingredients.tokenizer, build_writing(ingredients, section))
    summary = summarize_continuations(
        written,
        references,
        confidence=recipe.evaluation.confidence,
        num_samples=recipe.evaluation.bootstrap_samples,
        seed=recipe.seed,
    )
    lengths = {"prompt_tokens": section.prompt_tokens, "new_tokens": section.new_tokens}
    return {**lengths, **summary, "samples": _samples(ingredients, references, written)}


def _samples(ingredients: Ingredients, references: References, written: Continuations) -> dict[str, Any]:
    """The first document of each domain, for people to read."""
    samples = {}
    for name, prompts in references.prompts.items():
        texts = {
            "prompt": detokenized(ingredients.tokenizer, prompts.tokens[:1]),
            "document": references.truth[name],
            "teachers": references.teacher.get(name, [None]),
            "student": written.texts[name],
        }
        samples[name] = {key: text[0] for key, text in texts.items() if text[0] is not None}
    return samples


def build_writing(ingredients: Ingredients, section: GenerationSection) -> Writing:
    """When a continuation ends."""
    return writing_of(ingredients.tokenizer, section.new_tokens, ingredients.vocab_size)


def writing_of(tokenizer: PreTrainedTokenizerBase, new_tokens: int, vocab_size: int) -> Writing:
    """The same for any tokenizer."""
    eos: Any = tokenizer.eos_token_id
    return Writing(
        new_tokens=new_tokens, stop_token_id=eos, pad_token_id=padding_id(tokenizer), vocab_size=vocab_size
    )


def build_references(
    recipe: Recipe,
    ingredients: Ingredients,
    teachers: Sequence[Teacher],
    section: GenerationSection,
    *,
    device: torch.device,
) -> References:
    """Prompts of held-out documents, how these go on, and how the teachers continue them.

    They depend on no student, so they serve all that share text, teachers and rule.

    Raises:
        DataError: no domain has a document that is long enough.
        RecipeError: sacrebleu is not installed.
    """
    prompts = build_prompts(ingredients, section)
    authors = build_authors(recipe, teachers)
    writing = build_writing(ingredients, section)
    texts = {}
    for name, chosen in prompts.items():
        rows = authors.write(chosen.tokens.to(device), writing, ingredients.domains.index(name))
        if rows is not None:
            texts[name] = detokenized(ingredients.tokenizer, rows)
    truth = {name: detokenized(ingredients.tokenizer, chosen.truth) for name, chosen in prompts.items()}
    return References(prompts, truth, texts, authors.in_words)


def build_prompts(ingredients: Ingredients, section: GenerationSection | None) -> dict[str, Prompts]:
    """Beginnings of held-out documents, by domain; none if they are not asked for.

    Raises:
        DataError: no domain has a document that is long enough.
        RecipeError: sacrebleu is not installed.
    """
    if section is None:
        return {}
    require_sacrebleu()
    lengths = {"prompt_tokens": section.prompt_tokens, "new_tokens": section.new_tokens}
    found = {
        name: prompts_of(blocks, section.prompts, **lengths) for name, blocks in ingredients.text.held_out.items()
    }
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


def build_authors(recipe: Recipe, teachers: Sequence[Teacher]) -> Authors:
    """The teachers as those who write together by the recipe's rule."""
    rule = own_rule(recipe)
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

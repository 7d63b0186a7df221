"""What people read in a report: held-out passages token by token, and continuations side by side.

One document a domain, always the same: the first that is long enough. Teachers write by themselves, each with
its own tokenizer, and together as the recipe fuses them; the student writes as it was before training and after.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from collegium.alignment.tokenizer_match import vocab_size_of
from collegium.assembly.generation import build_authors, writing_of
from collegium.assembly.ingredients import Ingredients, teacher_tokenizer
from collegium.assembly.objective import own_rule
from collegium.evaluation.generation import detokenized, prompts_of
from collegium.evaluation.greedy import Writing, continuations, fused_continuations
from collegium.evaluation.language_modeling import HeldOut, Rule
from collegium.evaluation.model_figures import trunk_and_head
from collegium.evaluation.passages import read_passages
from collegium.losses.weighting import Weighting
from collegium.recipe.recipe import Recipe
from collegium.recipe.sections.evaluation import SamplesSection
from collegium.signals.contracts import Capability, Teacher


def build_samples(
    recipe: Recipe,
    ingredients: Ingredients,
    teachers: Sequence[Teacher],
    held_out: HeldOut,
    students: Mapping[str, PreTrainedModel],
    *,
    device: torch.device,
) -> dict[str, Any]:
    """`passages` and `continuations`, as far as the recipe asks for them.

    Args:
        recipe: The recipe.
        ingredients: Tokenizer and text.
        teachers: In the recipe's order.
        held_out: Text that they were asked about.
        students: By the name under which each writes; the last one is the student of the passages.
        device: Where models run.
    """
    section, samples = recipe.evaluation.samples, dict[str, Any]()
    if section is None:
        return samples
    *_, student = students.values()
    if section.passage_tokens:
        samples["passages"] = read_passages(
            held_out,
            *trunk_and_head(student, ingredients.vocab_size),
            own_rule(recipe),
            partial(_decode, ingredients.tokenizer),
            num_tokens=section.passage_tokens,
        )
    if section.new_tokens:
        samples["continuations"] = _continuations(recipe, ingredients, teachers, section, students, device)
    return samples


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


def _continuations(
    recipe: Recipe,
    ingredients: Ingredients,
    teachers: Sequence[Teacher],
    section: SamplesSection,
    students: Mapping[str, PreTrainedModel],
    device: torch.device,
) -> dict[str, dict[str, Any]]:
    """By domain: the prompt, how the document goes on, and what each makes of it."""
    found, authors = {}, build_authors(recipe, teachers)
    how = writing_of(ingredients.tokenizer, section.new_tokens, ingredients.vocab_size)
    lengths = {"prompt_tokens": section.prompt_tokens, "new_tokens": section.new_tokens}
    for domain, blocks in ingredients.text.held_out.items():
        prompts = prompts_of(blocks, 1, **lengths)
        if prompts is None:
            continue
        tokens, decoded = prompts.tokens.to(device), partial(detokenized, ingredients.tokenizer)
        prompt = decoded(tokens)[0]
        written = dict(_teachers(recipe, ingredients, teachers, domain, tokens, prompt, how))
        fused = authors.write(tokens, how, ingredients.domains.index(domain))
        if fused is not None:
            written["teachers, fused"] = decoded(fused)[0]
        written |= {name: decoded(continuations(model, tokens, how))[0] for name, model in students.items()}
        found[domain] = {"prompt": prompt, "document": decoded(prompts.truth)[0], "written": written}
    return found


def _teachers(
    recipe: Recipe,
    ingredients: Ingredients,
    teachers: Sequence[Teacher],
    domain: str,
    tokens: Tensor,
    prompt: str,
    how: Writing,
) -> Iterator[tuple[str, str]]:
    """What each teacher writes that runs here and is asked about the domain."""
    alone = Rule(Weighting("uniform"))
    for section, teacher in zip(recipe.teachers, teachers, strict=True):
        if section.domains and domain not in section.domains:
            continue
        if Capability.GENERATE not in teacher.native.provides:
            continue
        if teacher.own_vocabulary is None:
            tokenizer = ingredients.tokenizer
            written = fused_continuations([teacher.native], alone, tokens, how)
        else:
            own_tokenizer = teacher_tokenizer(section)
            assert own_tokenizer is not None, "a model that runs here has one"
            tokenizer = own_tokenizer
            ids: Any = tokenizer(prompt, return_tensors="pt")["input_ids"]
            own = writing_of(tokenizer, how.new_tokens, vocab_size_of(tokenizer))
            written = fused_continuations([teacher.native], alone, ids.to(tokens.device), own)
        yield f"teacher {section.name}", detokenized(tokenizer, written)[0]

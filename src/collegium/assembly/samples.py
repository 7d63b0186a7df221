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
from collegium.evaluation.passages import read_passages
from collegium.losses.weighting import Weighting
from collegium.recipe.sections.evaluation import SamplesSection
from collegium.signals.contracts import Capability


if TYPE_CHECKING:
    from collegium.assembly.run import Run


def build_samples(run: "Run", students: Mapping[str, PreTrainedModel]) -> dict[str, Any]:
    """`passages` and `continuations`, as far as the recipe asks for them.

    Args:
        run: The run.
        students: By the name under which each writes; the last one is the student of the passages.
    """
    section = run.recipe.evaluation.samples
    samples = dict[str, Any]()
    if section is None:
        return samples
    *_, student = students.values()
    if section.passage_tokens:
        samples["passages"] = read_passages(
            run.held_out,
            *trunk_and_head(student, run.vocab_size),
            run.rule,
            partial(_decode, run.tokenizer),
            num_tokens=section.passage_tokens,
        )
    if section.new_tokens:
        samples["continuations"] = _continuations(run, section, students)
    return samples


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


class _Prompt(NamedTuple):
    """The beginning of a held-out document of a domain, and when its continuations end."""

    domain: str
    tokens: Tensor
    text: str
    writing: Writing


def _continuations(
    run: "Run", section: SamplesSection, students: Mapping[str, PreTrainedModel]
) -> dict[str, dict[str, Any]]:
    """By domain: the prompt, how the document goes on, and what each makes of it."""
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
        written = dict(_teachers(run, prompt))
        fused = authors.write(tokens, writing, run.domains.index(domain))
        if fused is not None:
            written["teachers, fused"] = decoded(fused)[0]
        written |= {name: decoded(continuations(model, tokens, writing))[0] for name, model in students.items()}
        found[domain] = {"prompt": prompt.text, "document": decoded(chosen.truth)[0], "written": written}
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
        yield f"teacher {section.name}", detokenized(tokenizer, written)[0]

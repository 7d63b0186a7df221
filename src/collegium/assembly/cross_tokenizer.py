"""Terms that compare vocabularies as they are: where the kind of a section meets its class."""

from collections.abc import Sequence
from typing import cast

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from collegium.base.errors import TeacherError
from collegium.models.pretrained import causal_lm_of
from collegium.recipe.sections.cross_tokenizer import (
    AlmSection,
    CrossTokenizerSection,
    DskdSection,
    GoldSection,
    UldSection,
)
from collegium.recipe.sections.objective import ObjectiveSection
from collegium.recipe.sections.schedule import schedule_of
from collegium.signals.contracts import Teacher
from collegium.signals.inner_states import Embedding
from collegium.training.terms.cross_tokenizer import CrossTokenizerLoss, CrossTokenizerTerm, GoldTerm, UldTerm
from collegium.training.terms.dual_space import DualSpaceTerm
from collegium.training.terms.likelihood import AlmTerm


Student = PreTrainedModel | PeftModel


def build_cross_tokenizer(
    section: ObjectiveSection, student: Student, teachers: Sequence[Teacher]
) -> CrossTokenizerLoss | None:
    """Build the terms, with projections that fit these models; None if they have no weight.

    Raises:
        TeacherError: a teacher does not give what a term reads.
    """
    if not section.compares_vocabularies:
        return None
    for teacher in teachers:
        if teacher.own_vocabulary is not None and teacher.domains is not None:
            raise TeacherError(
                f"teacher {teacher.name!r} has another tokenizer and is asked about some domains only, so it does "
                "not show its own vocabulary: leave out its domains, or objective.cross_tokenizer"
            )
    terms = [_term(term, key, student, teachers) for key, term in section.named_cross_tokenizer.items()]
    return CrossTokenizerLoss(schedule_of(section.cross_tokenizer_weight), terms)


def _term(
    section: CrossTokenizerSection, key: str, student: Student, teachers: Sequence[Teacher]
) -> CrossTokenizerTerm:
    names = [teacher.name for teacher in teachers]
    weight = schedule_of(section.weight)
    importance = None if section.importance is None else [section.importance[name] for name in names]
    match section:
        case UldSection():
            return UldTerm(names, temperature=section.temperature, importance=importance, weight=weight)
        case GoldSection(matched_weight=matched, unmatched_weight=unmatched):
            return GoldTerm(
                names,
                beta=section.beta,
                merge=section.merge,
                part_weights=None if matched is None or unmatched is None else (matched, unmatched),
                temperature=section.temperature,
                importance=importance,
                weight=weight,
            )
        case AlmSection():
            return AlmTerm(
                names,
                tau=section.tau,
                threshold=section.threshold,
                boundaries=_boundaries(teachers) if section.debias else None,
                importance=importance,
                weight=weight,
            )
        case DskdSection():
            embedding = causal_lm_of(student).get_input_embeddings()
            assert embedding is not None, "a language model reads tokens"
            running = [_running(key, teacher) for teacher in teachers]
            return DualSpaceTerm(
                names,
                (
                    cast(Tensor, embedding.weight).shape[-1],
                    causal_lm_of(student).config.get_text_config().hidden_size,
                ),
                [width for width, _ in running],
                embeds=[embed for _, embed in running],
                temperature=section.temperature,
                importance=importance,
                weight=weight,
            )


def _boundaries(teachers: Sequence[Teacher]) -> tuple[Tensor, list[Tensor | None]] | None:
    """Tokens that begin with white space or end a text: of the student, and of teachers with another tokenizer."""
    own = [teacher.own_vocabulary for teacher in teachers]
    student = next((vocabulary.student for vocabulary in own if vocabulary is not None), None)
    if student is None:
        return None
    theirs = [None if vocabulary is None else boundary_tokens(vocabulary.teacher) for vocabulary in own]
    return boundary_tokens(student), theirs


def boundary_tokens(pieces: Sequence[bytes | None]) -> Tensor:
    """Ids of tokens that begin with a space, tab or newline, or stand for no text, such as the end of one."""
    ids = [token_id for token_id, piece in enumerate(pieces) if piece is None or piece[:1] in (b" ", b"\t", b"\n")]
    return torch.tensor(ids, dtype=torch.int64)


def _running(key: str, teacher: Teacher) -> tuple[int, Embedding]:
    """Width and input embeddings of a teacher that runs here.

    Raises:
        TeacherError: it does not, or its embeddings are of another width than its hidden states.
    """
    model = teacher.native.underlying_model
    if model is None or model.embed is None:
        raise TeacherError(
            f"teacher {teacher.name!r}: {key} (kind: dskd) reads hidden states and input embeddings of a teacher "
            "that runs here: set kind: local and cached: false, or use kind: uld, gold or alm"
        )
    width = model.embed(torch.zeros(1, dtype=torch.int64)).shape[-1]
    if width != model.hidden_size:
        raise TeacherError(
            f"teacher {teacher.name!r}: {key} (kind: dskd) adds its input embeddings, of width {width}, to its "
            f"hidden states, of width {model.hidden_size}: use kind: uld, gold or alm"
        )
    return model.hidden_size, model.embed

"""Tokenizers of a recipe: the student's, the teachers' own, and what they do by custom."""

import contextlib
from functools import cache
from typing import Literal

from transformers import PreTrainedTokenizerBase

from collegium.alignment.tokenizer_match import leave_out_above
from collegium.base.errors import DataError, TeacherError
from collegium.models.pretrained import load_config, load_tokenizer
from collegium.recipe.recipe import Recipe
from collegium.recipe.sections.models import (
    CachedTeacherSection,
    ConfigStudentSection,
    LocalTeacherSection,
    TeachingSection,
)


def student_tokenizer(recipe: Recipe) -> PreTrainedTokenizerBase:
    """Load the tokenizer that the text is prepared with."""
    student = recipe.student
    if student.tokenizer:  # another repository: neither the pinned commit nor the trust is meant for it
        tokenizer = load_tokenizer(student.tokenizer)
        with contextlib.suppress(DataError):  # of a model that is not there, as its loading will say
            num_rows = student_rows(recipe)
            if num_rows is not None:
                leave_out_above(tokenizer, num_rows)
        return tokenizer
    return load_tokenizer(student.model, revision=student.revision, trust_remote_code=student.trust_remote_code)


def student_rows(recipe: Recipe) -> int | None:
    """Rows of the embedding of the model that the student begins as; None if only its weights say."""
    student = recipe.student
    overrides = student.overrides if isinstance(student, ConfigStudentSection) else {}
    size = overrides.get("vocab_size")
    if isinstance(size, int):
        return size
    return rows_of(student.model, student.revision, student.trust_remote_code)


def rows_of(model: str, revision: str | None, trust_remote_code: bool) -> int | None:
    """Rows of a model's vocabulary; a GGUF file lists a token for each, so that its tokenizer knows."""
    if model.endswith(".gguf"):
        return None
    config = load_config(model, revision=revision, trust_remote_code=trust_remote_code)
    return int(config.get_text_config().vocab_size)


def teacher_tokenizer(section: TeachingSection) -> PreTrainedTokenizerBase | None:
    """A teacher's own tokenizer; None for one in a cache that does not say which it is.

    Raises:
        TeacherError: it cannot be found.
    """
    if not isinstance(section, LocalTeacherSection | CachedTeacherSection):
        return None
    try:
        if isinstance(section, LocalTeacherSection):
            return _tokenizer_of(section.model, section.revision, section.trust_remote_code)
        return None if section.tokenizer is None else _tokenizer_of(section.tokenizer, None, False)
    except DataError as error:
        raise TeacherError(f"teacher {section.name!r}: {error}") from error


@cache
def _tokenizer_of(reference: str, revision: str | None, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """Kept, since some take ten seconds to load."""
    return load_tokenizer(reference, revision=revision, trust_remote_code=trust_remote_code)


def begins_with_bos(asked: bool | Literal["auto"], tokenizer: PreTrainedTokenizerBase) -> bool:
    """Say whether documents begin with BOS, by `data.add_bos`: as asked, or as the tokenizer does by itself."""
    return adds_bos(tokenizer) if asked == "auto" else asked


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Say whether the tokenizer begins a text with BOS by itself."""
    bos: int | None = tokenizer.bos_token_id
    return bos is not None and tokenizer.encode("a")[:1] == [bos]

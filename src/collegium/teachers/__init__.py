"""Teachers: whatever can score tokens. Callers need not know of what kind one is."""

import re

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from collegium.contracts import Teacher
from collegium.pretrained import check_model, load_model, load_tokenizer, place, reference_fingerprint
from collegium.teachers.local import LocalTeacher
from collegium.tokenizer_match import require_same_tokenizer, vocab_size_of


def as_teacher(
    teacher: Teacher | PreTrainedModel | str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    device: torch.device,
) -> Teacher:
    """A teacher as it is, or a local one from a model or its name.

    Args:
        teacher: A teacher, a causal language model, or a hub id or folder.
        tokenizer: The student's, which the teacher's must equal where it is known.
        device: Where a model that is loaded or given goes.

    Raises:
        DataError: the model cannot be loaded, or has another tokenizer.
    """
    if not isinstance(teacher, str | PreTrainedModel):
        return teacher
    reference = teacher if isinstance(teacher, str) else str(teacher.config.name_or_path or "teacher")
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", reference.rstrip("/").rsplit("/", 1)[-1]) or "teacher"
    if isinstance(teacher, str):
        require_same_tokenizer(tokenizer, load_tokenizer(teacher), name=name)
        model = load_model(teacher, dtype=torch.float32)
        fingerprint = reference_fingerprint(teacher, model)
    else:
        model, fingerprint = teacher, f"object:{name}"
    vocab_size = vocab_size_of(tokenizer)
    check_model(model, vocab_size, name=name)
    return LocalTeacher(name, place(model, device), vocab_size=vocab_size, fingerprint=fingerprint)

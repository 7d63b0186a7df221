"""Teachers from whatever users of the Python interface give, and what a trainer does with all of them at once."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from collegium.alignment.tokenizer_match import tokenizer_difference, vocab_size_of
from collegium.models.identity import module_fingerprint, reference_fingerprint, with_settings
from collegium.models.pretrained import load_model, load_tokenizer, place
from collegium.models.probe import FEW, BlockShape, check_model
from collegium.models.settings import model_settings
from collegium.signals.contracts import Teacher
from collegium.signals.inner_states import InnerLayers
from collegium.teachers.aligned import align
from collegium.teachers.cached import ReadAhead
from collegium.teachers.local import LocalTeacher


def as_teachers(
    teachers: Sequence[Teacher | PreTrainedModel | str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    names: Sequence[str] = (),
    device: torch.device,
    shape: BlockShape = FEW,
) -> list[Teacher]:
    """Make local teachers from models and their names, and leave teachers as they are.

    Args:
        teachers: Teachers, causal language models, hub ids or folders.
        tokenizer: The student's; a teacher that is loaded with another one is aligned to it.
        names: Their names; by default those of the models, numbered if two are alike.
        device: Device of models that are loaded or given.
        shape: The largest batch that they will read.

    Raises:
        DataError: a model cannot be loaded, or its tokens do not keep all of the text.
        ValueError: the names do not fit the teachers.
    """
    if names and len(names) != len(teachers):
        raise ValueError(f"the objective names {len(names)} teachers {list(names)}, but {len(teachers)} are given")
    chosen = list(names) or _different([_name_of(teacher) for teacher in teachers])
    found = [
        teacher
        if not isinstance(teacher, str | PreTrainedModel)
        else _local_teacher(name, teacher, tokenizer, device, shape)
        for name, teacher in zip(chosen, teachers, strict=True)
    ]
    actual = [teacher.name for teacher in found]
    if (names and actual != list(names)) or len(set(actual)) != len(actual):
        raise ValueError(f"the teachers are called {actual}, the objective names {list(names)}; make them fit")
    return found


def reading_ahead(
    collate: Callable[[Sequence[Any]], dict[str, Any]], teachers: Sequence[Teacher]
) -> Callable[[Sequence[Any]], dict[str, Any]]:
    """Make a collator that lets these teachers read ahead: look into a cache, align tokens."""
    ready = [teacher for teacher in teachers if teacher.reads_ahead]
    return ReadAhead(collate, ready) if ready else collate


def _name_of(teacher: Teacher | PreTrainedModel | str) -> str:
    if not isinstance(teacher, str | PreTrainedModel):
        return teacher.name
    reference = teacher if isinstance(teacher, str) else str(teacher.config.name_or_path)
    return re.sub(r"[^A-Za-z0-9._-]+", "-", reference.rstrip("/").rsplit("/", 1)[-1]) or "teacher"


def limit_inner_states(teachers: Sequence[Teacher], layers: Sequence[InnerLayers]) -> None:
    """Let each teacher give inner states of these layers only; all layers if nothing is said."""
    for teacher, asked in zip(teachers, layers, strict=False):
        teacher.limit_inner_states(asked)


def _different(names: Sequence[str]) -> list[str]:
    """Return the same names, numbered where several are alike."""
    counts = Counter(names)
    seen: Counter[str] = Counter()
    result = []
    for name in names:
        seen[name] += 1
        result.append(f"{name}-{seen[name]}" if counts[name] > 1 else name)
    return result


def _local_teacher(
    name: str,
    teacher: PreTrainedModel | str,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
    shape: BlockShape,
) -> Teacher:
    own = tokenizer
    if isinstance(teacher, str):
        own = load_tokenizer(teacher)
        model = load_model(teacher, dtype=torch.float32)
        fingerprint = with_settings(reference_fingerprint(teacher, model.config), model_settings(teacher))
    else:
        model = teacher
        fingerprint = module_fingerprint(model)
    is_same = tokenizer_difference(tokenizer, own) is None
    vocab_size = vocab_size_of(tokenizer if is_same else own)
    check_model(place(model, device), vocab_size, name=name, shape=shape)
    local = LocalTeacher(name, model, vocab_size=vocab_size, fingerprint=fingerprint)
    return local if is_same else align(local, tokenizer, own)

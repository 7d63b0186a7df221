"""Teachers from whatever users of the Python interface give, and what a trainer does with all of them at once."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from collegium.alignment.tokenizer_match import tokenizer_difference, vocab_size_of
from collegium.base.errors import RecipeError
from collegium.models.identity import module_fingerprint, reference_fingerprint, with_settings
from collegium.models.pretrained import causal_lm_of, load_model, load_tokenizer, place
from collegium.models.probe import FEW, BlockShape, check_model
from collegium.models.settings import model_settings
from collegium.signals.contracts import Teacher
from collegium.signals.inner_states import InnerLayers
from collegium.teachers.aligned import align
from collegium.teachers.cached import ReadAhead
from collegium.teachers.local import LocalTeacher, SharedBase


Given = Teacher | PreTrainedModel | PeftModel | str
"""A teacher, a causal language model, or the hub id or folder of one."""


def named(teachers: Mapping[str, Given] | Sequence[Given], names: Sequence[str]) -> dict[str, Given]:
    """Teachers by name.

    Args:
        teachers: By name, or in a row.
        names: Their names, if they are chosen elsewhere; else those of the models, numbered if two are alike.

    Raises:
        RecipeError: they are no collection, one is no teacher, or names and teachers do not fit.
    """
    if isinstance(teachers, str) or not isinstance(teachers, Mapping | Sequence):
        raise RecipeError(f"teachers is a {type(teachers).__name__}: give a list, or a dict of names and teachers")
    given = list(teachers.values() if isinstance(teachers, Mapping) else teachers)
    for number, teacher in enumerate(given):
        if not isinstance(teacher, str | PreTrainedModel | PeftModel) and not hasattr(teacher, "score"):
            raise RecipeError(
                f"teacher {number} is a {type(teacher).__name__}: give a causal language model, a folder or hub "
                "id, or a teacher such as LocalTeacher"
            )
    if names and len(names) != len(given):
        raise RecipeError(f"the objective names {len(names)} teachers {list(names)}, but {len(given)} are given")
    own = list(teachers) if isinstance(teachers, Mapping) else []
    if own and names and own != list(names):
        raise RecipeError(f"the teachers are called {own}, the objective names {list(names)}: name them once")
    chosen = own or list(names) or _different([_name_of(teacher) for teacher in given])
    if len(set(chosen)) != len(chosen):
        raise RecipeError(f"the teachers are called {chosen}: give each a name of its own")
    return dict(zip(chosen, given, strict=True))


def models_of(teachers: Mapping[str, Given]) -> dict[str, nn.Module]:
    """The models of those teachers that have one in memory already."""
    natives = {name: getattr(teacher, "native", teacher) for name, teacher in teachers.items()}
    models = {name: getattr(native, "model", native) for name, native in natives.items()}
    models |= {name: teacher for name, teacher in teachers.items() if isinstance(teacher, nn.Module)}
    return {name: model for name, model in models.items() if isinstance(model, nn.Module)}


def as_teachers(
    teachers: Mapping[str, Given],
    tokenizer: PreTrainedTokenizerBase,
    *,
    device: torch.device,
    shape: BlockShape = FEW,
) -> list[Teacher]:
    """Make local teachers from models and their names, and leave teachers as they are.

    Args:
        teachers: By name.
        tokenizer: The student's; a teacher that is loaded with another one is aligned to it.
        device: Device of models that are loaded or given.
        shape: The largest batch that they will read.

    Raises:
        DataError: a model cannot be loaded, or its tokens do not keep all of the text.
        RecipeError: the names do not fit the teachers.
    """
    found = [
        _local_teacher(name, teacher, tokenizer, device, shape)
        if isinstance(teacher, str | PreTrainedModel | PeftModel)
        else teacher
        for name, teacher in teachers.items()
    ]
    actual = [teacher.name for teacher in found]
    if actual != list(teachers):
        raise RecipeError(f"the teachers are called {actual}, and named {list(teachers)}: make them fit")
    return found


def reading_ahead(
    collate: Callable[[Sequence[Any]], dict[str, Any]], teachers: Sequence[Teacher]
) -> Callable[[Sequence[Any]], dict[str, Any]]:
    """Make a collator that lets these teachers read ahead: look into a cache, align tokens."""
    ready = [teacher for teacher in teachers if teacher.reads_ahead]
    return ReadAhead(collate, ready) if ready else collate


def _name_of(teacher: Given) -> str:
    if not isinstance(teacher, str | PreTrainedModel | PeftModel):
        return teacher.name
    reference = teacher if isinstance(teacher, str) else str(causal_lm_of(teacher).config.name_or_path)
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
    teacher: PreTrainedModel | PeftModel | str,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
    shape: BlockShape,
) -> Teacher:
    own = tokenizer
    if isinstance(teacher, str):
        own = load_tokenizer(teacher)
        model: PreTrainedModel | PeftModel = load_model(teacher, dtype=torch.float32)
        fingerprint = with_settings(
            reference_fingerprint(teacher, causal_lm_of(model).config), model_settings(teacher)
        )
    else:
        model = teacher
        fingerprint = module_fingerprint(causal_lm_of(model))
    is_same = tokenizer_difference(tokenizer, own) is None
    vocab_size = vocab_size_of(tokenizer if is_same else own)
    adapter = _adapter(model, name) if isinstance(model, PeftModel) else None
    if not getattr(causal_lm_of(model), "is_quantized", False):  # some kinds cannot be moved once they are loaded
        model = place(model, device)
    check_model(causal_lm_of(model), vocab_size, name=name, shape=shape)
    base = SharedBase(model)
    local = LocalTeacher(name, base, vocab_size=vocab_size, fingerprint=fingerprint, adapter=adapter)
    return local if is_same else align(local, tokenizer, own)


def _adapter(model: PeftModel, name: str) -> str:
    """The adapter that is active."""
    active = model.active_adapters
    config = model.peft_config[active[0]]
    if config.is_prompt_learning or config.is_adaption_prompt:
        raise RecipeError(
            f"teacher {name!r}: adapters of type {getattr(config.peft_type, 'value', config.peft_type)} lie in "
            "front of the text and not on weights: give a model with LoRA adapters, or without any"
        )
    if len(active) != 1:
        raise RecipeError(f"teacher {name!r}: the adapters {active} are active: activate one, or merge them")
    return active[0]

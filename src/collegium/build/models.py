"""Teachers and the student."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from collegium.build.ingredients import Ingredients
from collegium.contracts import Batch, Teacher
from collegium.durable import file_digest
from collegium.errors import DataError, TeacherError
from collegium.pretrained import (
    check_model,
    load_model,
    load_tokenizer,
    model_from_config,
    place,
    reference_fingerprint,
    resolve_dtype,
    resolve_reference,
)
from collegium.recipe import ConfigStudentSection, LayerDropStudentSection, LocalTeacherSection, Recipe
from collegium.student import choose_layers, keep_layers, with_lora
from collegium.teachers.local import LocalTeacher, SharedBase
from collegium.tokenizer_match import require_same_tokenizer, tokenizer_fingerprint, vocab_size_of


logger = logging.getLogger(__name__)


def build_teachers(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, *, device: torch.device) -> list[Teacher]:
    """Load the teachers; adapters over one base share it.

    Raises:
        TeacherError: one cannot be loaded, or has another tokenizer.
    """
    bases: dict[str, SharedBase] = {}
    for section in recipe.teachers:
        try:
            base = bases.get(_base_key(section)) or _load_base(section, tokenizer, device)
            if section.adapter is not None:
                base.add_adapter(
                    resolve_reference(section.adapter),
                    section.name,
                    revision=section.adapter_revision,
                )
        except (DataError, OSError, ValueError) as error:
            raise TeacherError(f"teacher {section.name!r}: {error}") from error
        bases[_base_key(section)] = base
    # Only now: putting an adapter on a base replaces modules that a teacher would have kept.
    return [_local_teacher(section, bases[_base_key(section)], tokenizer) for section in recipe.teachers]


def _base_key(section: LocalTeacherSection) -> str:
    fields = {"model", "revision", "dtype", "device_map", "trust_remote_code"}
    return section.model_dump_json(include=fields)


def _load_base(
    section: LocalTeacherSection, tokenizer: PreTrainedTokenizerBase, device: torch.device
) -> SharedBase:
    revision, trust = section.revision, section.trust_remote_code
    own = load_tokenizer(section.model, revision=revision, trust_remote_code=trust)
    require_same_tokenizer(tokenizer, own, name=section.name)
    model = load_model(
        section.model,
        dtype=resolve_dtype(section.dtype, device),
        revision=revision,
        trust_remote_code=trust,
        device_map=section.device_map,
    )
    check_model(model, vocab_size_of(tokenizer), name=section.name)
    return SharedBase(model if section.device_map is not None else place(model, device))


def _local_teacher(
    section: LocalTeacherSection, base: SharedBase, tokenizer: PreTrainedTokenizerBase
) -> LocalTeacher:
    fingerprint = reference_fingerprint(section.model, base.causal_lm)
    if section.adapter is not None:
        fingerprint += f"+{adapter_fingerprint(resolve_reference(section.adapter))}"
    return LocalTeacher(
        section.name,
        base,
        vocab_size=vocab_size_of(tokenizer),
        fingerprint=f"{fingerprint}/{section.dtype}/{tokenizer_fingerprint(tokenizer)}",
        adapter=section.name if section.adapter is not None else None,
        weight_temperature=section.weight_temperature,
        target_temperature=section.target_temperature,
    )


def adapter_fingerprint(folder: str) -> str:
    """Hash of a local adapter's weights; its id if it is on the hub."""
    path = Path(folder) / "adapter_model.safetensors"
    return file_digest(path)[:16] if path.exists() else folder


def build_student(recipe: Recipe, ingredients: Ingredients) -> PreTrainedModel | PeftModel:
    """The student before training, its adapters on it if it has some.

    Raises:
        DataError: the model cannot be loaded.
    """
    section = recipe.student
    dtype = resolve_dtype(section.dtype)
    if isinstance(section, ConfigStudentSection):
        model = model_from_config(section.model, overrides=section.overrides, dtype=dtype, seed=recipe.seed)
    else:
        model = load_model(
            section.model,
            dtype=dtype,
            revision=section.revision,
            trust_remote_code=section.trust_remote_code,
            device_map=section.device_map,
        )
    if isinstance(section, LayerDropStudentSection):
        model = keep_layers(model, layers_to_keep(section, model, ingredients))
    check_model(model, ingredients.vocab_size, name="student")
    if section.lora is None:
        return model
    torch.manual_seed(recipe.seed)
    lora = section.lora
    return with_lora(
        model,
        rank=lora.rank,
        alpha=lora.alpha,
        dropout=lora.dropout,
        target_modules=lora.target_modules,
        reference=section.model,
    )


def layers_to_keep(
    section: LayerDropStudentSection, model: PreTrainedModel, ingredients: Ingredients
) -> Sequence[int]:
    """As given, or chosen by loss on training blocks."""
    if section.keep_layers is not None:
        return section.keep_layers
    assert section.num_layers is not None, "validated: one of the two is given"
    blocks = ingredients.text.train.take(section.calibration_blocks)
    rows = [blocks[i] for i in range(len(blocks))]
    batch = Batch.from_inputs(ingredients.collator(rows))
    kept = choose_layers(model, section.num_layers, [batch])
    logger.info("keep_layers: %s", kept)
    return kept

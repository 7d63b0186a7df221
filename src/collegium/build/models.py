"""Teachers and the student."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from peft import PeftModel
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from collegium.build.ingredients import Ingredients
from collegium.contracts import Batch, Teacher
from collegium.durable import file_digest, write_text
from collegium.errors import DataError, TeacherError, one_line, pass_on_full_disk
from collegium.model_sections import ConfigStudentSection, LayerDropStudentSection, LocalTeacherSection
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
from collegium.recipe import Recipe
from collegium.student import check_num_layers, choose_layers, keep_layers, with_lora
from collegium.teachers.local import LocalTeacher, SharedBase
from collegium.tokenizer_match import require_same_tokenizer, tokenizer_fingerprint, vocab_size_of


logger = logging.getLogger(__name__)


def load_teachers(
    sections: Sequence[LocalTeacherSection], tokenizer: PreTrainedTokenizerBase, *, device: torch.device
) -> list[Teacher]:
    """Load models to teach; adapters over one base share it.

    Raises:
        TeacherError: one cannot be loaded, or has another tokenizer.
    """
    bases: dict[str, SharedBase] = {}
    # PEFT allows no dots in the name of an adapter, teachers may have some.
    adapters = [None if section.adapter is None else f"adapter_{i}" for i, section in enumerate(sections)]
    for section, adapter in zip(sections, adapters, strict=True):
        try:
            base = bases.get(_base_key(section)) or _load_base(section, tokenizer, device)
            if adapter is not None:
                _add_adapter(base, section, adapter)
        except (DataError, OSError, ValueError) as error:
            pass_on_full_disk(error)
            raise TeacherError(f"teacher {section.name!r}: {error}") from error
        bases[_base_key(section)] = base
    # Only now: putting an adapter on a base replaces modules that a teacher would have kept.
    return [
        _local_teacher(section, bases[_base_key(section)], tokenizer, adapter)
        for section, adapter in zip(sections, adapters, strict=True)
    ]


def _add_adapter(base: SharedBase, section: LocalTeacherSection, name: str) -> None:
    assert section.adapter is not None, "called for these only"
    path = resolve_reference(section.adapter)
    try:
        base.add_adapter(path, name, revision=section.adapter_revision)
    except Exception as error:  # of PEFT, safetensors or torch: absent, damaged, or made for another model
        pass_on_full_disk(error)
        reason = one_line(error)
        raise DataError(
            f"adapter {section.adapter} cannot be put on {section.model} ({type(error).__name__}: {reason}); "
            "check the path, and that it was made for this model"
        ) from error


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
    section: LocalTeacherSection, base: SharedBase, tokenizer: PreTrainedTokenizerBase, adapter: str | None
) -> LocalTeacher:
    weight_temperature, target_temperature = section.temperatures
    return LocalTeacher(
        section.name,
        base,
        vocab_size=vocab_size_of(tokenizer),
        fingerprint=teacher_fingerprint(section, base.causal_lm.config, tokenizer),
        adapter=adapter,
        weight_temperature=weight_temperature,
        target_temperature=target_temperature,
    )


def teacher_fingerprint(
    section: LocalTeacherSection, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> str:
    """Identity of a teacher's weights, their type, and the tokenizer."""
    fingerprint = reference_fingerprint(section.model, config)
    if section.adapter is not None:
        fingerprint += f"+{adapter_fingerprint(resolve_reference(section.adapter))}"
    return f"{fingerprint}/{section.dtype}/{tokenizer_fingerprint(tokenizer)}"


def adapter_fingerprint(folder: str) -> str:
    """Hash of a local adapter's weights; its id if it is on the hub."""
    path = Path(folder) / "adapter_model.safetensors"
    return file_digest(path)[:16] if path.exists() else folder


def build_student(
    recipe: Recipe, ingredients: Ingredients, *, run_dir: Path | None = None
) -> PreTrainedModel | PeftModel:
    """The student before training, its adapters on it if it has some.

    Args:
        recipe: The recipe.
        ingredients: Tokenizer and text.
        run_dir: Where a choice of layers is read from, or kept: a run that goes on must not choose again.

    Raises:
        DataError: the model cannot be loaded.
        RecipeError: it has no such layers or modules.
    """
    section = recipe.student
    dtype = resolve_dtype(section.dtype)
    if isinstance(section, ConfigStudentSection):
        model = model_from_config(
            section.model,
            overrides=section.overrides,
            dtype=dtype,
            seed=recipe.seed,
            revision=section.revision,
        )
    else:
        model = load_model(
            section.model,
            dtype=dtype,
            revision=section.revision,
            trust_remote_code=section.trust_remote_code,
        )
    if isinstance(section, LayerDropStudentSection):
        kept = section.keep_layers
        model = keep_layers(model, chosen_layers(section, model, ingredients, run_dir) if kept is None else kept)
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


def chosen_layers(
    section: LayerDropStudentSection, model: PreTrainedModel, ingredients: Ingredients, run_dir: Path | None
) -> list[int]:
    """The layers whose absence costs most, chosen once by the first rank and kept in `run_dir`."""
    assert section.num_layers is not None, "validated: one of the two is given"
    state, path = PartialState(), None if run_dir is None else run_dir / "kept_layers.json"
    check_num_layers(model, section.num_layers)  # on all ranks, so that none waits for one that stopped
    choice: list[Any] = [None]
    if state.is_main_process:
        choice = [_read_layers(path) or _choose_layers(section, model, ingredients)]
        if path is not None:
            write_text(path, json.dumps(choice[0]))
    broadcast_object_list(choice)
    return list(choice[0])


def _read_layers(path: Path | None) -> list[int] | None:
    if path is None or not path.exists():
        return None
    try:
        return [int(index) for index in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: holds no list of layers; delete the run folder and begin anew") from error


def _choose_layers(
    section: LayerDropStudentSection, model: PreTrainedModel, ingredients: Ingredients
) -> list[int]:
    assert section.num_layers is not None, "validated: one of the two is given"
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else model.device
    blocks = ingredients.text.train.take(section.calibration_blocks)
    inputs = ingredients.collator([blocks[i] for i in range(len(blocks))])
    batch = Batch.from_inputs({name: value.to(device) for name, value in inputs.items()})
    kept = choose_layers(place(model, device), section.num_layers, [batch])
    place(model, torch.device("cpu"))
    logger.info("keep_layers: %s", kept)
    return kept

"""Teachers that run in this process: models, and adapters over one base."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from collegium.alignment.tokenizer_match import tokenizer_difference, tokenizer_fingerprint, vocab_size_of
from collegium.assembly.tokenizers import teacher_tokenizer
from collegium.assembly.weights import report_other_base
from collegium.base.errors import DataError, TeacherError, pass_on_full_disk
from collegium.base.references import resolve_reference
from collegium.models.identity import adapter_fingerprint, reference_fingerprint, with_settings
from collegium.models.pretrained import load_model, place, resolve_dtype
from collegium.models.probe import FEW, BlockShape, check_model
from collegium.models.settings import Settings, teacher_settings
from collegium.recipe.sections.models import LocalTeacherSection, TeachingSection
from collegium.signals.contracts import Teacher
from collegium.teachers.aligned import AlignmentPolicy, align
from collegium.teachers.local import LocalTeacher, SharedBase


logger = logging.getLogger(__name__)


def load_teachers(
    sections: Sequence[LocalTeacherSection],
    tokenizer: PreTrainedTokenizerBase,
    *,
    device: torch.device,
    shape: BlockShape = FEW,
) -> list[Teacher]:
    """Load models to teach; adapters over one base share it.

    One with another tokenizer than the student's is aligned to it.

    Args:
        sections: The teachers.
        tokenizer: The student's.
        device: Where models run.
        shape: The largest batch that they will read.

    Raises:
        TeacherError: one cannot be loaded.
    """
    bases: dict[str, _Base] = {}
    # PEFT allows no dots in the name of an adapter, teachers may have some.
    adapters = [None if section.adapter is None else f"adapter_{i}" for i, section in enumerate(sections)]
    for section, adapter in zip(sections, adapters, strict=True):
        try:
            base = bases.get(_base_key(section)) or _load_base(section, device)
            if adapter is not None:
                _add_adapter(base.shared, section, adapter)
        except (DataError, OSError, ValueError) as error:
            pass_on_full_disk(error)
            raise TeacherError(f"teacher {section.name!r}: {error}") from error
        bases[_base_key(section)] = base
    # Only now: putting an adapter on a base replaces modules that a teacher would have kept.
    return [
        _teacher(section, bases[_base_key(section)], tokenizer, adapter, shape)
        for section, adapter in zip(sections, adapters, strict=True)
    ]


def _add_adapter(base: SharedBase, section: LocalTeacherSection, name: str) -> None:
    assert section.adapter is not None, "called for these only"
    report_other_base(section)
    base.add_adapter(resolve_reference(section.adapter), name, revision=section.adapter_revision)


def _base_key(section: LocalTeacherSection) -> str:
    fields = {"model", "revision", "dtype", "device_map", "trust_remote_code"}
    return section.model_dump_json(include=fields)


@dataclass(frozen=True)
class _Base:
    """A model and its tokenizer."""

    shared: SharedBase
    tokenizer: PreTrainedTokenizerBase


def _load_base(section: LocalTeacherSection, device: torch.device) -> _Base:
    own = teacher_tokenizer(section)
    assert own is not None, "a model has one"
    model = load_model(
        section.model,
        dtype=resolve_dtype(section.dtype, device),
        revision=section.revision,
        trust_remote_code=section.trust_remote_code,
        device_map=section.device_map,
    )
    return _Base(SharedBase(model if section.device_map is not None else place(model, device)), own)


def _teacher(
    section: LocalTeacherSection,
    base: _Base,
    tokenizer: PreTrainedTokenizerBase,
    adapter: str | None,
    shape: BlockShape,
) -> Teacher:
    """A local teacher, aligned if it has another tokenizer than the student."""
    is_same = tokenizer_difference(tokenizer, base.tokenizer) is None
    read = tokenizer if is_same else base.tokenizer
    check_model(base.shared.causal_lm, vocab_size_of(read), name=section.name, shape=shape)
    if is_same:
        return _local_teacher(section, base, tokenizer, adapter)
    try:
        aligned = align(
            _local_teacher(section.at_one, base, base.tokenizer, adapter),
            tokenizer,
            base.tokenizer,
            policy=alignment_policy(section),
            temperatures=section.temperatures,
        )
    except DataError as error:
        raise TeacherError(f"teacher {section.name!r}: {error}") from error
    shared = len(aligned.aligner.student.ids.keys() & aligned.aligner.teacher.ids.keys())
    _report_alignment(section.name, shared, len(aligned.aligner.teacher.ids))
    return aligned


@cache
def _report_alignment(name: str, shared: int, size: int) -> None:
    """Log it once, however often a command builds the teacher."""
    logger.info(
        "teacher %r has another tokenizer, of whose %s tokens %s are the student's too: it is aligned, and exact "
        "wherever both cut the text at the same place; `collegium doctor` says for how much of the text",
        name,
        f"{size:,}",
        f"{shared:,}",
    )


def alignment_policy(section: TeachingSection) -> AlignmentPolicy:
    """Say what is carried of a teacher with another tokenizer."""
    keys = section.alignment
    return AlignmentPolicy(keys.carry, keys.approximate, keys.max_unknown, keys.entropy)


def _local_teacher(
    section: LocalTeacherSection, base: _Base, tokenizer: PreTrainedTokenizerBase, adapter: str | None
) -> LocalTeacher:
    """A teacher over the vocabulary of `tokenizer`."""
    weight_temperature, target_temperature = section.temperatures
    return LocalTeacher(
        section.name,
        base.shared,
        vocab_size=vocab_size_of(tokenizer),
        fingerprint=with_settings(
            teacher_fingerprint(section, base.shared.causal_lm.config, tokenizer), settings_of(section)
        ),
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


def settings_of(section: LocalTeacherSection) -> Settings:
    """What else decides a teacher's numbers: the settings of its model and of its adapter."""
    return teacher_settings(
        section.model,
        adapter=section.adapter,
        adapter_revision=section.adapter_revision,
        runs_code=section.trust_remote_code,
    )

"""The proof that a model was read whole: nothing in it is random, and nothing in its files was left out.

`transformers` fills what it finds in no file with random numbers, leaves out what the model has no place for, and
says so in a warning. Here both are errors. Its report is believed only as far as it goes: weights that a class
lets be absent, and heads that should be one matrix with the embedding, are looked at in memory.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from collegium.base.errors import DataError, one_line
from collegium.models.weight_files import some


WRAPPERS: Mapping[str, str] = {
    "_orig_mod.": "torch.compile adds it; save `model._orig_mod`",
    "_fsdp_wrapped_module.": "FSDP adds it; save a gathered state dict",
    "_checkpoint_wrapped_module.": "activation checkpointing adds it; save the model inside it",
    "module.": "DistributedDataParallel and DeepSpeed add it; save `model.module`",
    "base_model.model.": "PEFT adds it; save the model after `merge_and_unload`",
    "lora_": "LoRA adds such weights; merge them with PEFT's `merge_and_unload` before saving",
}
"""Pieces of names that a wrapper around the model leaves in its files, and what to do about them."""


@dataclass(frozen=True)
class Report:
    """Differences between a model and the files that it was read from.

    Attributes:
        missing: Tensors of the model that no file holds.
        unexpected: Tensors of the files that the model has no place for.
        mismatched: Tensors of another shape: name, shape in the files, shape in the model.
        errors: Sentences of transformers.
    """

    missing: Sequence[str]
    unexpected: Sequence[str]
    mismatched: Sequence[tuple[str, tuple[int, ...], tuple[int, ...]]] = ()
    errors: Sequence[str] = ()

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> "Report":
        """Read transformers' own, as `output_loading_info=True` gives it."""
        mismatched = [(name, tuple(found), tuple(wanted)) for name, found, wanted in info["mismatched_keys"]]
        return cls(
            missing=in_order(info["missing_keys"]),
            unexpected=in_order(info["unexpected_keys"]),
            mismatched=sorted(mismatched),
            errors=[str(message) for message in info["error_msgs"]],
        )


def in_order(names: Iterable[str]) -> list[str]:
    """Names of tensors, those of layer 2 before those of layer 10."""
    return sorted(
        names, key=lambda name: [(not p.isdigit(), int(p) if p.isdigit() else 0, p) for p in name.split(".")]
    )


def require_whole(model: PreTrainedModel, report: Report, reference: str) -> None:
    """Require that a model and its files agree on every tensor.

    Args:
        model: As it was loaded; it may be on the meta device.
        report: What was found.
        reference: The model's name in errors.

    Raises:
        DataError: they do not; it names some tensors and the likely reason.
    """
    faults = []
    kind = type(model).__name__
    if report.missing:
        faults.append(
            f"{_tensors(report.missing)} of {kind} {_be(report.missing)} in no file and would start from random "
            f"numbers ({some(list(report.missing))})"
        )
    if report.unexpected:
        faults.append(
            f"{_tensors(report.unexpected)} of the files {_have(report.unexpected)} no place in {kind} and would "
            f"be left out ({some(list(report.unexpected))})"
        )
    if report.mismatched:
        name, found, wanted = report.mismatched[0]
        names = [name for name, _, _ in report.mismatched]
        faults.append(
            f"{_tensors(names)} {_have(names)} another shape in the files than config.json gives "
            f"({name}: {list(found)} in the files, {list(wanted)} by config.json)"
        )
    if faults:
        raise DataError(f"{reference}: {', and '.join(faults)}; {_reason(model, report)}")
    if report.errors:
        raise DataError(f"{reference}: its weights cannot be read ({one_line(RuntimeError(report.errors[0]))})")


def require_nothing_random(model: PreTrainedModel, stored: Collection[str] | None, reference: str) -> None:
    """Look in memory at what transformers' report leaves out.

    Args:
        model: As it was loaded.
        stored: Names of tensors in its files; None if they are not known.
        reference: The model's name in errors.

    Raises:
        DataError: a weight that its class lets be absent is random, or its head is neither read nor tied.
    """
    if stored is None:
        return
    left_out = "|".join(f"({pattern})" for pattern in model._keys_to_ignore_on_load_missing or ())
    embedding = _weight(model.get_input_embeddings())
    head = head_name(model) if model.config.get_text_config().tie_word_embeddings else None
    suspects = [
        name
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if (left_out and re.search(left_out, name)) or name == head
        if not _is_stored(name, stored, model.base_model_prefix)
        if parameter.device.type != "meta" and not _is_constant(parameter)
        if embedding is None or parameter.data_ptr() != embedding.data_ptr()
    ]
    if suspects:
        require_whole(model, Report(missing=suspects, unexpected=()), reference)


def _is_stored(name: str, stored: Collection[str], prefix: str) -> bool:
    """See whether a file holds a weight, under its name or behind a longer prefix, as in models of images too."""
    end = name.removeprefix(f"{prefix}.")
    return end in stored or any(other.endswith(f".{end}") for other in stored)


def _is_constant(parameter: Tensor) -> bool:
    """See whether all values are the same, as those of a bias that is only made by training."""
    return bool((parameter == parameter.flatten()[:1]).all())


def head_name(model: PreTrainedModel) -> str | None:
    """Name of the head's weight; None if the model has no head."""
    head = model.get_output_embeddings()
    names = (name for name, module in model.named_modules() if module is head and head is not None)
    name = next(names, None)
    return None if name is None else f"{name}.weight"


def untie_in_config(model: PreTrainedModel) -> bool:
    """Let the configuration say that embedding and head differ where the files hold both; True if it did not.

    Everything that is made from the configuration later, such as a pruned student, would tie them.
    """
    embedding = _weight(model.get_input_embeddings())
    head = _weight(model.get_output_embeddings())
    config = model.config.get_text_config()
    if embedding is None or head is None or "meta" in (embedding.device.type, head.device.type):
        return False
    if not config.tie_word_embeddings or embedding.data_ptr() == head.data_ptr():
        return False
    if embedding.device != head.device or embedding.shape != head.shape or torch.equal(embedding, head):
        return False
    config.tie_word_embeddings = False
    model.config.tie_word_embeddings = False
    return True


def _weight(module: Any) -> Tensor | None:
    return cast("Tensor | None", getattr(module, "weight", None))


def _tensors(names: Sequence[str]) -> str:
    return f"{len(names):,} tensor{'s' * (len(names) != 1)}"


def _be(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _have(names: Sequence[str]) -> str:
    return "has" if len(names) == 1 else "have"


def _reason(model: PreTrainedModel, report: Report) -> str:
    """The likely reason, and what to do."""
    num_layers = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    return (
        _wrapper_of(report)
        or _prefix_of(report)
        or _head_of(model, report)
        or _layers_of(report, num_layers)
        or _otherwise(report)
    )


def _wrapper_of(report: Report) -> str | None:
    for piece, advice in WRAPPERS.items():
        inside = [name for name in report.unexpected if name.startswith(piece) or f".{piece}" in name]
        if 2 * len(inside) > len(report.unexpected):
            return f"their names hold `{piece}`: {advice} and give that folder"
    return None


def _prefix_of(report: Report) -> str | None:
    """The text that stands before every name in the files, or lacks there."""
    for longer, shorter, whose in (
        (report.unexpected, report.missing, "files put"),
        (report.missing, report.unexpected, "model puts"),
    ):
        names = set(shorter)
        prefix = next((n.removesuffix(s) for n in longer[:1] for s in shorter if n.endswith(f".{s}")), "")
        if prefix and all(name.startswith(prefix) and name.removeprefix(prefix) in names for name in longer):
            return f"the {whose} `{prefix}` before each name: rename the tensors, or save the model again"
    return None


def _head_of(model: PreTrainedModel, report: Report) -> str | None:
    if list(report.missing) != [head_name(model)]:
        return None
    return (
        "the files hold no head: save the causal language model, not its trunk alone, or set "
        "`tie_word_embeddings` to true in config.json if its head is the embedding"
    )


def _layers_of(report: Report, num_layers: int | None) -> str | None:
    """Say so if whole layers are too few or too many."""
    if num_layers is None:
        return None
    missing = _layer_numbers(report.missing)
    unexpected = _layer_numbers(report.unexpected)
    if unexpected and min(unexpected) >= num_layers and not report.missing:
        return (
            f"config.json counts {num_layers} layers, the files hold {max(unexpected) + 1}: give the config.json "
            f"that belongs to these weights, or set `num_hidden_layers` to {max(unexpected) + 1} in it"
        )
    first = min(missing, default=0)
    if first and missing == set(range(first, num_layers)):
        return (
            f"config.json counts {num_layers} layers, of which the files hold the first {first} whole: a "
            "file is missing, or config.json is another model's"
        )
    return None


def _layer_numbers(names: Sequence[str]) -> set[int]:
    found = (re.search(r"\.(?:layers|h|blocks|block)\.(\d+)\.", f".{name}") for name in names)
    return {int(match[1]) for match in found if match}


def _otherwise(report: Report) -> str:
    if report.missing and not report.unexpected:
        return "a file of the model is missing or was written in part: fetch or save it again"
    if report.mismatched:
        return "config.json is not that of these weights: give both of the same model"
    return "config.json is not that of these weights, or lacks a setting: give the one that was saved with them"

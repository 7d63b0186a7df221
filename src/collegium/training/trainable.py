"""The check that there is something to train, and that training it leaves the teachers as they are.

Teachers are frozen when they are taken in. A teacher that shares weights with the student would freeze these, or
would move with it; both show in step 1 at best, in a message of autograd, and never at worst.
"""

import logging
from collections.abc import Iterator, Mapping

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from collegium.base.errors import RecipeError


logger = logging.getLogger(__name__)


def require_trainable(student: PreTrainedModel | PeftModel, teachers: Mapping[str, nn.Module]) -> None:
    """See that the student can be trained, before any teacher is frozen.

    Args:
        student: With its adapters, if it is to have some.
        teachers: The models of the teachers that are at hand, by name.

    Raises:
        RecipeError: none of its parameters is trained, it is quantised, or a teacher shares those that are.
    """
    if getattr(student, "is_quantized", False):
        raise RecipeError(
            "student: its weights are quantised, and a student is published as plain weights: load it without "
            "quantization_config"
        )
    trained = {name: weight for name, weight in student.named_parameters() if weight.requires_grad}
    shared = {name: _storages(model) for name, model in teachers.items()}
    if not trained:
        raise RecipeError(f"student: none of its parameters is trained: {_reason(student, shared)}")
    for name, storages in shared.items():
        common = [weight for weight, tensor in trained.items() if _storage(tensor) in storages]
        if common:
            raise RecipeError(
                f"student and teacher {name!r} share {len(common)} of the {len(trained)} weights that are "
                f"trained, such as {common[0]}; a teacher is frozen: load one of the two again (from_pretrained "
                "or copy.deepcopy), before adapters are put on the student"
            )
    _warn_of_rounding(trained)


def _reason(student: nn.Module, teachers: Mapping[str, set[int]]) -> str:
    if isinstance(student, PeftModel):
        return (
            "its adapters were loaded for inference; load them by "
            "PeftModel.from_pretrained(model, adapter, is_trainable=True)"
        )
    own = _storages(student)
    for name, storages in teachers.items():
        if own & storages:
            return f"it shares its weights with teacher {name!r}, which is frozen; load the student again"
    return "all have requires_grad=False; call student.requires_grad_(True), or give a peft_config"


def _storages(model: nn.Module) -> set[int]:
    return set(filter(None, map(_storage, _tensors(model))))


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def _storage(tensor: Tensor) -> int | None:
    """Address of what holds a tensor; None of what has none, such as an empty or a wrapped one."""
    try:
        return tensor.untyped_storage().data_ptr() or None
    except (RuntimeError, NotImplementedError):
        return None


def _warn_of_rounding(trained: Mapping[str, Tensor]) -> None:
    """Weights of half precision are left as they are, which is said: float32 takes twice their memory."""
    half = {name: weight for name, weight in trained.items() if weight.dtype in (torch.bfloat16, torch.float16)}
    if half:
        name, weight = next(iter(half.items()))
        kind = str(weight.dtype).removeprefix("torch.")
        logger.warning(
            "%d of the student's %d trained weights are %s, such as %s: an update below about %s of a weight is "
            "lost in rounding. Load the student with dtype=torch.float32, and set bf16=True for quick products",
            len(half),
            len(trained),
            kind,
            name,
            "1/256" if weight.dtype == torch.bfloat16 else "1/2048",
        )

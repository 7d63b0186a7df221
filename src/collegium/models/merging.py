"""A student with adapters as plain weights.

PEFT adds an adapter's product to the weight that it lies on. Where embeddings and head are one tensor, an adapter
on one of them would be added to both. So they are separated before anything is merged, and tied again only if they
are still equal afterwards; else the configuration says that they are two. That costs one more matrix of the
vocabulary.
"""

import copy
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from collegium.base.errors import RecipeError


def require_mergeable(student: PeftModel) -> None:
    """See that the adapters can become weights, before they are trained.

    Raises:
        RecipeError: they are prompts, or of another kind without weights of the model's own.
    """
    for config in student.peft_config.values():
        lacks_merge = not hasattr(student.base_model, "merge_and_unload")
        if config.is_prompt_learning or config.is_adaption_prompt or lacks_merge:
            kind = getattr(config.peft_type, "value", config.peft_type)
            raise RecipeError(
                f"peft_config: adapters of type {kind} cannot be merged into the student's weights, "
                "and a student is published as plain weights: use LoraConfig"
            )


def merged(student: PeftModel) -> PreTrainedModel:
    """A copy of the student with its adapters merged in; embeddings and head are untied if adapters made them two.

    It is a copy since merging and unmerging in place leaves rounding errors in the base.
    """
    copied = copy.deepcopy(student, {id(view): view.detach().clone() for view in _views(student)})
    are_separated = _separate(cast(PreTrainedModel, copied.get_base_model()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of embeddings that are no longer tied, which is on purpose
        model = cast(PreTrainedModel, cast(Any, copied).merge_and_unload())
    if are_separated:
        _settle_tie(model)
    return model


def is_untied(config: Any, base: Any) -> bool:
    """Whether a model's embeddings and head are two where they were one in its base, by their configurations."""
    return _says_tied(base) and not _says_tied(config)


def _views(student: PeftModel) -> Iterator[Tensor]:
    """Tensors of tied adapters that are views of others, which Python cannot copy."""
    for module in student.modules():
        yield from _views_in(vars(module))


def _views_in(values: Mapping[str, Any]) -> Iterator[Tensor]:
    for value in values.values():
        if isinstance(value, Tensor) and not value.is_leaf:
            yield value
        elif isinstance(value, dict):
            yield from _views_in(value)


def _separate(model: PreTrainedModel) -> bool:
    """Give the head a weight of its own if it shares that of the embeddings and one of both has adapters."""
    outer = (model.get_input_embeddings(), model.get_output_embeddings())
    embedding, head = map(_base_of, outer)
    if embedding is None or head is None or _weight(embedding) is not _weight(head):
        return False
    if outer == (embedding, head):
        return False
    cast(Any, head).weight = nn.Parameter(_weight(head).detach().clone(), requires_grad=False)
    return True


def _settle_tie(model: PreTrainedModel) -> None:
    """Say in the configuration whether embeddings and head are still one."""
    embedding = model.get_input_embeddings()
    head = cast(nn.Module, model.get_output_embeddings())
    are_equal = torch.equal(_weight(embedding), _weight(head))
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = are_equal
    if are_equal:
        cast(Any, head).weight = embedding.weight
    else:
        cast(Any, model).all_tied_weights_keys = {}


def _base_of(module: Any) -> nn.Module | None:
    """The module that adapters lie on, or of which PEFT trains a copy."""
    while module is not None:
        inner = getattr(module, "original_module", None) or getattr(module, "base_layer", None)
        if inner is None:
            return cast(nn.Module, module)
        module = inner
    return None


def _weight(module: nn.Module) -> Tensor:
    return cast(Tensor, module.weight)


def _says_tied(config: Any) -> bool:
    return bool(config.get_text_config().tie_word_embeddings)

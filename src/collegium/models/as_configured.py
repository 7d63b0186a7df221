"""A model that was cut is the one that its configuration makes, or reading it back gives another.

Each layer is compared in its parameters and in every plain attribute, so a setting of layers that no table has is
found too.
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from collegium.base.errors import RecipeError
from collegium.models.inner_states import decoder_layers
from collegium.models.rotary import follow_each_document


_ABSENT = "absent"


def require_as_configured(model: PreTrainedModel) -> None:
    """Require that a cut model is the one that its configuration makes, so that it is the same when it is read.

    A model is made on the meta device (0.1 s) and each layer compared: names and shapes of parameters, and all
    attributes that are numbers or text, such as `sliding_window`, but for the layer's own number.

    Raises:
        RecipeError: some layer differs; it names the first.
    """
    with torch.device("meta"):
        made = type(model)(copy.deepcopy(model.config))
    follow_each_document(made)
    ours = decoder_layers(model)[2]
    theirs = decoder_layers(made)[2]
    if len(ours) != len(theirs):
        raise _differs(model, f"it has {len(ours)} layers, config.json makes {len(theirs)}")
    for i, (our, their) in enumerate(zip(ours, theirs, strict=True)):
        for described in (_parameters, _attributes):
            difference = _first_difference(described(our), described(their))
            if difference is not None:
                raise _differs(model, f"layer {i}: {difference}")
    difference = _first_difference(
        _parameters(model), _parameters(made)
    )  # an embedding may hold all layers' parts
    if difference is not None:
        raise _differs(model, difference)


def _differs(model: PreTrainedModel, what: str) -> RecipeError:
    return RecipeError(
        f"student.kind: without these layers {type(model).__name__} cannot be described by its configuration "
        f"({what}); keep other layers, or start from another model"
    )


Described = Mapping[str, Any]


def layer_kind(layer: nn.Module) -> tuple[Any, ...]:
    """Describe a layer so that layers of one kind are equal: by class, parameters and settings."""
    return type(layer), tuple(_parameters(layer).items()), tuple(_attributes(layer).items())


def _parameters(layer: nn.Module) -> Described:
    return {name: tuple(parameter.shape) for name, parameter in layer.named_parameters()}


def _attributes(layer: nn.Module) -> Described:
    return dict(_plain(layer))


def _plain(layer: nn.Module) -> Iterator[tuple[str, Any]]:
    for path, module in layer.named_modules():
        for name, value in vars(module).items():
            if name.startswith("_") or name in ("layer_idx", "layer_id", "training", "gradient_checkpointing"):
                continue
            if value is None or isinstance(value, bool | int | float | str):
                yield f"{path}.{name}".lstrip("."), value


def _first_difference(ours: Described, theirs: Described) -> str | None:
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name, _ABSENT) != theirs.get(name, _ABSENT):
            return f"{name} is {ours.get(name, _ABSENT)} here, {theirs.get(name, _ABSENT)} by config.json"
    return None

"""PEFT adapters put on a model: read whole, made for it, and changing nothing that other teachers share.

PEFT leaves the weights of an adapter at their start when no name in its file fits, with a warning for the first
adapter of a base and without one for the next. Here every name has to fit, in both directions, and the base has
to be untouched afterwards, down to the version counter of each of its weights. That costs nothing to speak of.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft import PeftConfig, PeftModel, PeftModelForCausalLM
from peft.utils.save_and_load import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping

from collegium.base.errors import DataError, one_line, pass_on_full_disk
from collegium.models.adapter_config import MERGE, read_adapter_config
from collegium.models.weight_files import some
from collegium.models.whole import in_order


_PREFIX = "base_model.model."


@torch.no_grad()
def put_adapter(
    model: PreTrainedModel | PeftModel, path: str, name: str, *, revision: str | None = None
) -> PeftModel:
    """Put an adapter on a model, beside those that are there.

    Args:
        model: The base, or the base with other adapters; on the meta device names and shapes are compared only.
        path: Folder or hub id of the adapter.
        name: What PEFT is to call it; no dots.
        revision: Commit, branch or tag of a hub id.

    Raises:
        DataError: it cannot be read, does not fit, or changes the base.
    """
    read_adapter_config(path, revision=revision)
    base = causal_lm(model)
    before = _Untouched(base)
    weights = _weights(path, revision)
    try:
        config: Any = PeftConfig.from_pretrained(path, revision=revision)
        config.inference_mode = True
        if isinstance(model, PeftModel):
            model.add_adapter(name, config)
            adapted = model
        else:
            adapted = PeftModelForCausalLM(model, config, adapter_name=name)
    except Exception as error:  # of PEFT: no such modules, or another kind than the adapters that are there
        raise DataError(_unfit(path, error)) from error
    _fill(adapted, weights, path, name)
    if before.differs:
        raise DataError(
            f"adapter {path}: putting it on changes weights of the base, which other teachers share; {MERGE}"
        )
    return adapted


def causal_lm(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The model below any adapter."""
    return cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)


def _unfit(path: str, error: Exception) -> str:
    return (
        f"adapter {path}: does not fit the model ({type(error).__name__}: {one_line(error)}); give the model that "
        "it was made for"
    )


def _weights(path: str, revision: str | None) -> dict[str, Tensor]:
    try:
        weights: dict[str, Tensor] = load_peft_weights(path, device="cpu", use_safetensors=True, revision=revision)
    except Exception as error:
        pass_on_full_disk(error)
        raise DataError(
            f"adapter {path}: its weights cannot be read ({type(error).__name__}: {one_line(error)}); only "
            "safetensors are read (adapter_model.safetensors)"
        ) from error
    return weights


def _fill(adapted: PeftModel, weights: dict[str, Tensor], path: str, name: str) -> None:
    """Give the adapter its weights; all of them."""
    wanted = get_peft_model_state_dict(adapted, adapter_name=name, save_embedding_layers=False)
    copies = _copies_of_base(causal_lm(adapted), in_order(set(weights) - set(wanted)), weights, path)
    weights = {key: tensor for key, tensor in weights.items() if key not in copies}
    odd = [key for key in in_order(set(weights) & set(wanted)) if weights[key].shape != wanted[key].shape]
    if odd:
        raise DataError(
            f"adapter {path}: {odd[0]} has the shape {list(weights[odd[0]].shape)}, but the model takes "
            f"{list(wanted[odd[0]].shape)} ({len(odd)} such); give the model that it was made for"
        )
    if not get_model_conversion_mapping(
        causal_lm(adapted), add_legacy=False
    ):  # else names change as they are read
        _require_none_left(_unread(wanted, set(weights)), set(weights) - set(wanted), path)
    if any(tensor.device.type == "meta" for tensor in wanted.values()):
        return
    try:
        result: Any = set_peft_model_state_dict(adapted, weights, adapter_name=name)
    except (KeyError, RuntimeError, ValueError) as error:
        raise DataError(_unfit(path, error)) from error
    left = {key for key in result.missing_keys if f".{name}." in key or key.endswith(f".{name}")}
    state = {key: tensor for key, tensor in adapted.state_dict().items() if f".{name}." in f"{key}."}
    _require_none_left(_unread(state, set(state) - left), set(result.unexpected_keys), path)


def _unread(state: Mapping[str, Tensor], read: set[str]) -> set[str]:
    """Names that were not read, but those of a tensor that was read under another name, as of tied embeddings."""
    if any(tensor.device.type == "meta" for tensor in state.values()):  # where nothing has a place
        return {name for name in set(state) - read if ".token_adapter." not in name}
    places = {tensor.data_ptr() for name, tensor in state.items() if name in read}
    return {name for name, tensor in state.items() if name not in read and tensor.data_ptr() not in places}


def _require_none_left(missing: set[str], unexpected: set[str], path: str) -> None:
    """Require that model and file have the same names."""
    parts = []
    if missing:
        parts.append(
            f"{len(missing):,} of its weights on this model are not in its file and would stay at their start "
            f"({some(in_order(missing))})"
        )
    if unexpected:
        parts.append(
            f"{len(unexpected):,} weights in its file have no place on this model ({some(in_order(unexpected))})"
        )
    if parts:
        raise DataError(
            f"adapter {path}: {', and '.join(parts)}; give the model that it was made for, or save the adapter "
            "again"
        )


def _copies_of_base(base: nn.Module, keys: Sequence[str], weights: dict[str, Tensor], path: str) -> set[str]:
    """Keys of an adapter's file that are weights of the base, which PEFT adds when embeddings are adapted.

    Raises:
        DataError: one has another value than the base.
    """
    own = {key.replace(".base_layer.", "."): tensor for key, tensor in base.state_dict().items()}
    names = {key: key.removeprefix(_PREFIX).replace(".base_layer.", ".") for key in keys}
    copies = {key for key in keys if names[key] in own}
    for key in in_order(copies):
        tensor = own[names[key]]
        if tensor.shape == weights[key].shape and (tensor.device.type == "meta" or _equal(tensor, weights[key])):
            continue
        raise DataError(
            f"adapter {path}: its file holds other values for {names[key]}, a weight of the base, which other "
            f"teachers share; {MERGE}"
        )
    return copies


def _equal(tensor: Tensor, other: Tensor) -> bool:
    """Compare in the type of fewer bits, since one of both may have been rounded."""
    smaller = min(tensor.dtype, other.dtype, key=lambda dtype: dtype.itemsize)
    return torch.equal(tensor.to("cpu", smaller), other.to(smaller))


@dataclass(frozen=True)
class _Place:
    """Where a weight lies, and how often it was written to."""

    weight: nn.Parameter
    address: int
    version: int


class _Untouched:
    """The weights of a base as they are now."""

    def __init__(self, base: nn.Module) -> None:
        self._base = base
        self._places = [_Place(p, p.data_ptr(), p._version) for p in base.parameters()]

    @property
    def differs(self) -> bool:
        """True if since then a weight was written to, moved or replaced."""
        there = {id(parameter) for parameter in self._base.parameters()}
        return any(
            id(place.weight) not in there
            or place.weight.data_ptr() != place.address
            or place.weight._version != place.version
            for place in self._places
        )

"""State of an optimizer as safetensors and JSON, by the names of parameters.

Each tensor is loaded as it was written, in its own type: `Optimizer.load_state_dict` would round a state of
float32 to the type of a bfloat16 weight. A parameter without a state, as all of SGD's and those that no gradient
has reached yet, has none in the checkpoint either.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from transformers.training_args import OptimizerNames

from collegium.base.errors import DataError


RESUMABLE = ("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop")
"""Values of `TrainingArguments.optim` whose runs go on bit for bit, each by a test."""

_WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.")
"""What compiling and recomputing put into the names of parameters."""

Document = dict[str, Any]


def require_resumable(optim: str) -> None:
    """Refuse an optimizer of transformers before the first step rather than at its first checkpoint.

    Raises:
        ValueError: it is none of those that are known to be resumed exactly.
    """
    if optim not in RESUMABLE:
        raise ValueError(
            f"optim={OptimizerNames(optim).value!r} is not an optimizer that a checkpoint is known to resume "
            f"exactly: take one of {', '.join(RESUMABLE)}, or save_strategy='no' to train without checkpoints"
        )


def kind_of(optimizer: Optimizer) -> str:
    """Name of an optimizer's class."""
    return f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"


def parameter_names(model: nn.Module) -> dict[Tensor, str]:
    """The first name of each parameter, whatever the model is wrapped in."""
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    return {parameter: plain_name(name) for name, parameter in inner.named_parameters()}


def plain_name(name: str) -> str:
    """Name of a parameter without what wrappers add."""
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def optimizer_state(model: nn.Module, optimizer: Optimizer) -> tuple[dict[str, Tensor], Document]:
    """Tensors by `PARAMETER.STATE`, and all else as JSON; tensors on the first rank only.

    Raises:
        ValueError: it holds what neither safetensors nor JSON can, or state that is nobody's.
    """
    if type(optimizer).state_dict is not Optimizer.state_dict:
        raise ValueError(f"{kind_of(optimizer)} has a state_dict of its own, which a checkpoint does not keep")
    names = parameter_names(model)
    groups = [_group(optimizer, group, names) for group in optimizer.param_groups]
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for parameter, state in optimizer.state.items():
        name = names[parameter]
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors |= _gathered(f"{name}.{key}", value, optimizer)
            else:
                _require_plain(value, key, optimizer)
                numbers.setdefault(name, {})[key] = value
    return tensors, {"kind": kind_of(optimizer), "groups": groups, "numbers": numbers}


def _group(optimizer: Optimizer, group: Mapping[str, Any], names: Mapping[Tensor, str]) -> Document:
    unknown = [tuple(parameter.shape) for parameter in group["params"] if parameter not in names]
    if unknown:
        raise ValueError(
            f"{kind_of(optimizer)} trains parameters that are not the model's, of shapes {unknown[:3]}"
        )
    settings = {key: value for key, value in group.items() if key != "params"}
    for key, value in settings.items():
        _require_plain(value, key, optimizer)
    return {**settings, "params": [names[parameter] for parameter in group["params"]]}


def _require_plain(value: object, key: str, optimizer: Optimizer) -> None:
    parts = value if isinstance(value, list | tuple) else [value]
    if not all(part is None or isinstance(part, bool | int | float | str) for part in parts):
        raise ValueError(
            f"{kind_of(optimizer)} keeps {key!r} as {type(value).__name__}, which a checkpoint cannot hold: take "
            f"another optimizer, such as optim={RESUMABLE[0]!r}, or save_strategy='no'"
        )


def _gathered(name: str, value: Tensor, optimizer: Optimizer) -> dict[str, Tensor]:
    """The whole tensor on the host of the first rank; nothing elsewhere."""
    whole = value.full_tensor() if isinstance(value, DTensor) else value  # every rank must call it
    if type(whole) not in (Tensor, nn.Parameter):
        key = name.rpartition(".")[2]
        raise ValueError(
            f"{kind_of(optimizer)} keeps {key!r} as {type(whole).__name__}, which safetensors cannot hold: take "
            f"another optimizer, such as optim={RESUMABLE[0]!r}, or save_strategy='no'"
        )
    is_first = not dist.is_initialized() or dist.get_rank() == 0
    return {name: whole.detach().cpu().contiguous()} if is_first else {}


def load_optimizer_state(
    model: nn.Module, optimizer: Optimizer, tensors: Mapping[str, Tensor], document: Any, *, where: str
) -> None:
    """Load what `optimizer_state` gave, into sharded optimizers too.

    Args:
        model: Whose parameters are trained.
        optimizer: Fresh, over the same parameters.
        tensors: As `optimizer_state` gave them.
        document: Likewise; a list of groups is of the first format.
        where: Begins the message of an error.

    Raises:
        DataError: it is the state of another optimizer, or of other groups of parameters.
    """
    stored = document if isinstance(document, dict) else {"groups": document, "numbers": {}}
    names = parameter_names(model)
    _require_same_kind(optimizer, stored, where)
    _require_same_groups(optimizer, stored["groups"], names, where)
    states: dict[str, dict[str, Any]] = {name: dict(values) for name, values in stored["numbers"].items()}
    for key, tensor in tensors.items():
        # Names of parameters have dots of their own, those of optimizer state (`exp_avg`) have none.
        parameter, _, name = key.rpartition(".")
        states.setdefault(parameter, {})[name] = tensor
    optimizer.state.clear()
    for group, settings in zip(optimizer.param_groups, stored["groups"], strict=True):
        for key in settings.keys() - {"params"}:
            value = settings[key]
            group[key] = tuple(value) if isinstance(group.get(key), tuple) else value
        on_device = bool(group.get("capturable") or group.get("fused"))
        for parameter in group["params"]:
            found = states.get(names[parameter], {})
            if found:
                optimizer.state[parameter] = {
                    key: _placed(value, parameter, stays=key == "step" and not on_device)
                    for key, value in found.items()
                }


def _placed(value: Any, parameter: Tensor, *, stays: bool) -> Any:
    """A part of a parameter's state where the optimizer would have made it; counts of steps stay on the host."""
    if not isinstance(value, Tensor) or stays:
        return value
    if isinstance(parameter, DTensor) and value.shape == parameter.shape:
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    return value.to(parameter.device)


def _require_same_kind(optimizer: Optimizer, stored: Mapping[str, Any], where: str) -> None:
    now = kind_of(optimizer)
    then = stored.get("kind")
    if then is None:  # of the first format, in which only the settings tell
        unknown = {key for group in stored["groups"] for key in group} - set(optimizer.param_groups[0])
        then = now if not unknown - {"initial_lr"} else f"an optimizer with {', '.join(sorted(unknown))}"
    if then != now:
        raise DataError(
            f"{where}: the optimizer was {then}, it is {now} now (optim): put it back, or start again in another "
            "output_dir"
        )


def _require_same_groups(
    optimizer: Optimizer, stored: Sequence[Mapping[str, Any]], names: Mapping[Tensor, str], where: str
) -> None:
    then = [set(group["params"]) for group in stored]
    now = [{names[parameter] for parameter in group["params"]} for group in optimizer.param_groups]
    if then == now:
        return
    sizes = (
        f"{len(then)} parameter groups of {[*map(len, then)]} parameters then, {len(now)} of {[*map(len, now)]}"
    )
    moved = sorted(name for before, after in zip(then, now, strict=False) for name in after - before)
    example = f", and {moved[0]} for example is in another one" if moved else ""
    raise DataError(
        f"{where}: the optimizer had {sizes} now{example}: group them as before, or start again in another "
        "output_dir"
    )

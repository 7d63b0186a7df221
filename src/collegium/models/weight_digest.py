"""A digest of a student before it is trained, which is a model in memory, whatever files it was made from.

What decides its training counts, dropout included, which a teacher's identity leaves out (`identity`). Adapters do
not, whose settings are compared by themselves; nor do the device and the way attention is computed. Each weight is
read: XXH3 takes 0.2 s for 1 GB on a CPU; from a GPU, copying takes longer than that.
"""

import json
from collections.abc import Iterator

import torch
import xxhash
from torch import Tensor, nn
from transformers import PretrainedConfig


_NO_IDENTITY = frozenset({"transformers_version", "name_or_path", "use_cache", "architectures"})
"""Keys of a configuration that decide no number, beside those with an underscore."""

_BELOW_ADAPTER = ".base_layer"
"""What PEFT adds to the name of a weight that has an adapter."""


def student_digest(model: nn.Module, *, without: str | None = None) -> str:
    """XXH3 (128 bits) of a model's class, configuration, weights and kept buffers, in hexadecimal.

    Args:
        model: On any device.
        without: Weights with this in their names are left out.
    """
    state = xxhash.xxh3_128()
    identity = [type(model).__name__, _configuration(model)]
    state.update(json.dumps(identity, sort_keys=True, default=str).encode())
    for name, tensor in sorted(_weights(model)):
        if without is None or without not in name:
            state.update(name.replace(_BELOW_ADAPTER, "").encode())
            add_tensor(state, tensor.detach())
    return state.hexdigest()


def _configuration(model: nn.Module) -> dict[str, object]:
    config = getattr(model, "config", None)
    content: dict[str, object] = config.to_dict() if isinstance(config, PretrainedConfig) else {}
    return {key: value for key, value in content.items() if not key.startswith("_") and key not in _NO_IDENTITY}


def _weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, tied ones once, and the buffers that a checkpoint of the model would keep."""
    yield from model.named_parameters()
    kept = model.state_dict(keep_vars=True)
    yield from ((name, buffer) for name, buffer in model.named_buffers() if name in kept)


def add_tensor(state: xxhash.xxh3_128, tensor: Tensor) -> None:
    """Add type, shape and content of a tensor, of a quantised one too."""
    state.update(f"{tensor.dtype}{list(tensor.shape)}".encode())
    if tensor.is_meta:  # its weights are elsewhere, as where a device map leaves some on disk
        return
    if hasattr(tensor, "__tensor_flatten__"):  # quantised: several plain tensors in one
        for name in tensor.__tensor_flatten__()[0]:
            add_tensor(state, getattr(tensor, name))
        return
    content = tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    state.update(content.data)

"""Identity of a model: its weights, and everything else that decides its numbers.

The fingerprint of weights is that of earlier versions, which names caches that users have; what it leaves out, the
settings, stands beside it (`settings`).
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from collegium.base.digest import json_digest
from collegium.base.known_digests import content_digest
from collegium.base.references import resolve_reference
from collegium.models.gguf import gguf_parts
from collegium.models.settings import Settings, decisive
from collegium.models.weight_digest import add_tensor


def reference_fingerprint(reference: str, config: PretrainedConfig) -> str:
    """Identity of a model's weights: the hub commit, or a hash of the files it was read from."""
    path = Path(resolve_reference(reference))
    commit = getattr(config, "_commit_hash", None)
    if commit and not path.is_dir():  # which may be a copy of what the hub's cache holds, and changed
        return f"{reference}@{commit}"
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else gguf_parts(path)
    digest = hashlib.sha256("".join(content_digest(file) for file in files).encode())
    return f"{path.name}@{digest.hexdigest()[:32]}"


def adapter_fingerprint(folder: str) -> str:
    """Hash of a local adapter's weights; its id if it is on the hub."""
    path = Path(folder) / "adapter_model.safetensors"
    return content_digest(path)[:16] if path.exists() else folder


def with_settings(fingerprint: str, settings: Settings) -> str:
    """A fingerprint of weights and settings together."""
    return f"{fingerprint}/{json_digest(settings)[:16]}" if settings else fingerprint


@torch.no_grad()
def module_fingerprint(model: PreTrainedModel) -> str:
    """Identity of a model that has no files: its configuration, every tensor and every number in its modules.

    0.1 s for 1 GB in the memory of the CPU. A field of the configuration that was read when the model was made,
    and changed afterwards, counts too.
    """
    config = decisive(_plain(model.config.to_dict()))
    config.pop("dtype", None)  # a note of how it was loaded; tensors say their own below
    state = xxhash.xxh3_128(json_digest(config).encode())
    for name, module in model.named_modules():
        own = {key: _plain(value) for key, value in vars(module).items() if key[:1] != "_" and key != "training"}
        state.update(f"{name}/{type(module).__name__}/{json_digest(decisive(own))}".encode())
    for name, tensor in _tensors(model):
        state.update(f"{name}/".encode())
        add_tensor(state, tensor.detach())
    return f"object:{state.hexdigest()}"


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, and buffers that are in no file too, such as the frequencies of rotary embeddings."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        # Quantised weights are tensors of classes of their own, whose bytes are in several.
        yield name, tensor if type(tensor.data) is Tensor else tensor.detach().dequantize()


def _plain(value: Any) -> Any:
    """The part of a value that JSON can hold; of other objects nothing."""
    if isinstance(value, str | int | float | bool | None):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, torch.dtype) else None

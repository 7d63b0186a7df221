"""The description of a PEFT adapter: its kind, and the settings that would let it change more than itself.

Only JSON is read, so `collegium check` says the same as a run. Without torch.
"""

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download

from collegium.base.digests import verify_folder
from collegium.base.errors import DataError, one_line, pass_on_full_disk
from collegium.base.references import resolve_reference


CONFIG_NAME = "adapter_config.json"

ACCEPTED = ("LORA", "LOHA", "LOKR", "IA3", "OFT", "BOFT")
"""Kinds of adapters that live in layers of the base, can be switched off, and keep all of their weights there."""

MERGE = (
    "merge it into a copy of its base with PEFT's `merge_and_unload` and give that folder as the teacher's `model`"
)

CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Values of `init_lora_weights` that rewrite the weights of the base whenever the adapter is loaded."""


@dataclass(frozen=True)
class AdapterConfig:
    """The part of adapter_config.json that decides whether an adapter can be used.

    Attributes:
        path: Folder or hub id.
        kind: Its `peft_type`.
        base: The model that it says it was made for, if it does.
    """

    path: str
    kind: str
    base: str | None


def read_adapter_config(path: str, *, revision: str | None = None) -> AdapterConfig:
    """Read what kind of adapter a folder or hub id holds.

    Raises:
        DataError: it cannot be read, is not as it was written, or is of a kind that cannot share a base.
    """
    verify_folder(Path(resolve_reference(path)))
    content = _read(path, revision)
    kind = str(content.get("peft_type"))
    if kind not in ACCEPTED:
        raise DataError(
            f"adapter {path}: is of kind {kind} (`peft_type` in {CONFIG_NAME}), which cannot be used here; "
            f"accepted are {', '.join(ACCEPTED)}: they live in the base's layers and can be switched off. An "
            f"adapter of another kind is used so, if PEFT can do that: {MERGE}"
        )
    for setting, meaning in _faults(content):
        raise DataError(f"adapter {path}: {CONFIG_NAME} says `{setting}`, which {meaning}; {MERGE}")
    return AdapterConfig(path, kind, content.get("base_model_name_or_path") or None)


def _read(path: str, revision: str | None) -> Mapping[str, Any]:
    try:
        folder = Path(path)
        file = (
            folder / CONFIG_NAME
            if folder.is_dir()
            else Path(hf_hub_download(path, CONFIG_NAME, revision=revision))
        )
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or "peft_type" not in content:
            raise ValueError("it has no `peft_type`")
    except Exception as error:  # of the hub, or JSON
        pass_on_full_disk(error)
        raise DataError(
            f"adapter {path}: {CONFIG_NAME} cannot be read ({type(error).__name__}: {one_line(error)}); give the "
            "folder or hub id of a PEFT adapter"
        ) from error
    return content


def _faults(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Settings that change the base for others, and what they do."""
    faults = []
    bias = content.get("bias") or "none"
    start = content.get("init_lora_weights")
    if bias != "none":
        faults.append((f"bias: {bias}", "puts its own biases in place of the base's, which other teachers share"))
    if isinstance(start, str) and start.startswith(CHANGES_BASE):
        faults.append((f"init_lora_weights: {start}", "rewrites weights of the base, which other teachers share"))
    if content.get("layer_replication"):
        faults.append(("layer_replication", "repeats layers of the base, which other teachers share"))
    if content.get("alora_invocation_tokens"):
        faults.append(("alora_invocation_tokens", "switches it on by tokens of the text, which is not done here"))
    return faults


def other_base(config: AdapterConfig, base: str) -> str | None:
    """A sentence if an adapter says that it was made for another model than `base`; None if not.

    Names are compared by their last part, since models are moved: `Llama-3-8B` of a hub id or of a path. Two
    folders that are both there are compared as folders.
    """
    if config.base is None:
        return None
    named = _path(config.base)
    given = _path(base)
    is_same = named == given if named.exists() and given.exists() else named.name.lower() == given.name.lower()
    if is_same:
        return None
    return (
        f"adapter {config.path} says in {CONFIG_NAME} that it was made for {config.base}, but is put on {base}; "
        "if these are not the same weights, it is not the teacher that was trained"
    )


def _path(reference: str) -> Path:
    with contextlib.suppress(DataError):  # of a package that is not here
        reference = resolve_reference(reference)
    return Path(reference).expanduser().resolve()

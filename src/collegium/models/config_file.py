"""config.json of a model as it lies on disk, read without torch and without the network."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from collegium.base.errors import DataError
from collegium.base.references import is_local, resolve_reference


def read_config_file(reference: str, *, revision: str | None = None) -> Mapping[str, Any] | None:
    """Read config.json of a folder, or of a hub id that was fetched; None if it is not there or cannot be read."""
    try:
        if is_local(reference):
            path = Path(resolve_reference(reference)) / "config.json"
        else:
            found = try_to_load_from_cache(reference, "config.json", revision=revision)
            if not isinstance(found, str):
                return None
            path = Path(found)
        content = json.loads(path.read_bytes())
    except (DataError, OSError, ValueError):  # loading the model says what is wrong with it
        return None
    return content if isinstance(content, dict) else None

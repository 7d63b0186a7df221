"""GGUF files made of others: with more keys, without some tensors, or split into parts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def rewritten(
    path: Path,
    target: Path,
    *,
    keys: Mapping[str, Any] | None = None,
    tensors: Sequence[str] | None = None,
    extra: Mapping[str, np.ndarray] | None = None,
    with_fields: bool = True,
) -> Path:
    """A copy of a GGUF file with other keys (None drops one), some of its tensors, or more of them."""
    import gguf

    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(
        target, "llama" if not with_fields else reader.fields["general.architecture"].contents()
    )
    changed = dict(keys or {})
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture" or name in changed or not with_fields:
            continue
        inner = field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(name, field.contents(), field.types[0], inner)
    for name, value in changed.items():
        if value is not None:
            kinds = {
                str: gguf.GGUFValueType.STRING,
                float: gguf.GGUFValueType.FLOAT32,
                int: gguf.GGUFValueType.UINT32,
            }
            kind = gguf.GGUFValueType.UINT16 if name.startswith("split.no") else kinds[type(value)]
            writer.add_key_value(name, value, kind)
    for tensor in reader.tensors:
        if tensors is None or tensor.name in tensors:
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    for name, array in (extra or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def split(path: Path, folder: Path, *, parts: int) -> list[Path]:
    """The file as llama.cpp splits it: all keys in the first part, tensors over all."""
    import gguf

    names = [tensor.name for tensor in gguf.GGUFReader(path).tensors]
    files = []
    for i in range(parts):
        target = folder / f"model-{i + 1:05}-of-{parts:05}.gguf"
        keys = {"split.no": i, "split.count": parts, "split.tensors.count": len(names)}
        files.append(rewritten(path, target, keys=keys, tensors=names[i::parts], with_fields=i == 0))
    return files

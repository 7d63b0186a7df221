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


def gemma_file(model: Any, architecture: str, path: Path, keys: Mapping[str, Any]) -> Path:
    """A Gemma as llama.cpp's converter writes it: gains of norms are stored plus one."""
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_sliding_window(config.sliding_window)
    for name, value in keys.items():
        (writer.add_string if isinstance(value, str) else writer.add_float32)(f"{architecture}.{name}", value)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"t{i}" for i in range(config.vocab_size)])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], config.num_hidden_layers)
    for key, tensor in model.state_dict().items():
        if key != "lm_head.weight":
            name = names.get_name(key, try_suffixes=(".weight",))
            writer.add_tensor(name, (tensor + 1 if "norm" in key else tensor).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path

"""A model of the Llama kind as a GGUF file, by the writer and the tables of llama.cpp's own package `gguf`.

Matrices are float16, vectors float32, as llama.cpp's converter writes them. Four architectures are known; any
other one is refused by name, since a file with a detail missing (a scale, a soft-cap) is read without complaint.
llama.cpp's converter itself is in no package that can be required: the one that brings it replaces the files of
`gguf`, and takes them away when it is removed.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from collegium.base.errors import DataError
from collegium.export.gguf_vocabulary import GgufVocabulary, gguf_vocabulary
from collegium.export.packages import require


if TYPE_CHECKING:
    from gguf import GGUFWriter


FORMAT = "gguf"


@dataclass(frozen=True)
class _Architecture:
    """Name in GGUF; whether its rotary pairs lie side by side there, not in halves."""

    name: str
    pairs: bool


_ARCHITECTURES = {
    "llama": _Architecture("LLAMA", pairs=True),
    "mistral": _Architecture("LLAMA", pairs=True),
    "qwen2": _Architecture("QWEN2", pairs=False),
    "qwen3": _Architecture("QWEN3", pairs=False),
}


def write_gguf(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path, *, folder: Path, name: str
) -> None:
    """Write a model with its tokenizer.

    Args:
        model: In float32.
        tokenizer: Its own.
        path: File to write.
        folder: Where both were read from; special tokens and chat template are taken from its files.
        name: What the model is called in the file.

    Raises:
        DataError: llama.cpp would not read it as the same model.
    """
    gguf = require("gguf", FORMAT)
    architecture = _architecture(model.config)
    arch = gguf.MODEL_ARCH[architecture.name]
    num_rows = len(cast(Tensor, model.get_input_embeddings().weight))
    vocabulary = gguf_vocabulary(tokenizer, num_rows)
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
    writer.add_name(name)
    _add_sizes(writer, model.config, num_rows)
    _add_vocabulary(writer, vocabulary, folder)
    names = gguf.get_tensor_name_map(arch, model.config.num_hidden_layers)
    for key, tensor in _tensors(model, architecture):
        found = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise DataError(f"--to gguf: llama.cpp has no place for the model's tensor {key}")
        writer.add_tensor(found, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _architecture(config: PretrainedConfig) -> _Architecture:
    known = _ARCHITECTURES.get(config.model_type)
    if known is None:
        raise DataError(
            f"--to gguf: a model of type {config.model_type!r} is not known here ({', '.join(_ARCHITECTURES)} "
            "are); convert the run's `student` folder with llama.cpp's own convert_hf_to_gguf.py"
        )
    layer_types = set(getattr(config, "layer_types", None) or ["full_attention"])
    slides = config.model_type == "mistral" and getattr(config, "sliding_window", None) is not None
    if slides or layer_types != {"full_attention"} or config.hidden_act != "silu":
        raise DataError(
            "--to gguf: the model has sliding windows or an activation other than silu, of which the file would "
            "say nothing; convert the run's `student` folder with llama.cpp's own convert_hf_to_gguf.py"
        )
    return known


def head_size(config: PretrainedConfig) -> int:
    """Width of an attention head."""
    size: int | None = getattr(config, "head_dim", None)
    return size or config.hidden_size // config.num_attention_heads


def _add_sizes(writer: "GGUFWriter", config: PretrainedConfig, num_rows: int) -> None:
    import gguf

    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_size(config))
    writer.add_value_length(head_size(config))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(num_rows)
    writer.add_rope_dimension_count(head_size(config))
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if config.rope_parameters["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_parameters["factor"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _add_vocabulary(writer: "GGUFWriter", vocabulary: GgufVocabulary, folder: Path) -> None:
    import gguf

    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.kinds)
    writer.add_token_merges(vocabulary.merges)
    special = gguf.SpecialVocab(folder, load_merges=False, n_vocab=len(vocabulary.tokens))
    special.add_special_token["bos"] = vocabulary.adds_bos
    special.add_to_gguf(writer, quiet=True)


def _tensors(model: PreTrainedModel, architecture: _Architecture) -> Iterator[tuple[str, Tensor]]:
    config = model.config
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    for key, tensor in model.state_dict().items():
        if tied and key == "lm_head.weight":
            continue  # llama.cpp reads the embedding where there is no head
        projection = key.rsplit(".", 2)[-2]
        if architecture.pairs and projection in heads:
            tensor = _side_by_side(tensor, heads[projection])
        yield key, tensor.half() if tensor.ndim > 1 else tensor.float()
    yield from _rotary_factors(config)


def _side_by_side(tensor: Tensor, num_heads: int) -> Tensor:
    """Rows of each head from halves (0 2 4 .. 1 3 5 ..) to the pairs that are turned together."""
    pairs: Tensor = tensor.unflatten(0, (num_heads, 2, -1)).transpose(1, 2)
    return pairs.flatten(0, 2).contiguous()


def _rotary_factors(config: PretrainedConfig) -> Iterator[tuple[str, Tensor]]:
    """Llama 3's stretching of slow rotations, a tensor in GGUF: by how much each frequency is divided."""
    rope: dict[str, Any] = config.rope_parameters
    if rope["rope_type"] in ("default", "linear"):
        return
    if rope["rope_type"] != "llama3":
        raise DataError(
            f"--to gguf: rotary positions of type {rope['rope_type']!r} are not known here (default, linear and "
            "llama3 are); convert the run's `student` folder with llama.cpp's own convert_hf_to_gguf.py"
        )
    exponents = torch.arange(0, head_size(config), 2, dtype=torch.float64) / head_size(config)
    wavelengths = 2 * math.pi * rope["rope_theta"] ** exponents
    low = rope["low_freq_factor"]
    high = rope["high_freq_factor"]
    share = (rope["original_max_position_embeddings"] / wavelengths - low) / (high - low)
    share = share.clamp(0, 1)  # 1: as it was; 0: divided by the whole factor
    yield "rope_freqs.weight", (1 / ((1 - share) / rope["factor"] + share)).float()

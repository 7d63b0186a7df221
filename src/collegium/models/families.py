"""What a configuration alone says of a model: whether its family can be used, and how long its texts may be.

By `model_type`, as transformers knows it; docs/families.md has the same as a table. A family that is in no list is
not refused: `probe` tries every model when it is loaded. No torch here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from collegium.base.errors import DataError


def _named(names: str) -> frozenset[str]:
    return frozenset(names.split())


ACCEPTED = _named("""
    apertus arcee aria_text axk1 axk2 beam bitnet codegen cohere cohere2 cohere2_moe ctrl cwm deepseek_v2
    deepseek_v3 deepseek_v32 diffllama doge dots1 dots3_note_text emu3 ernie4_5 ernie4_5_moe exaone4 exaone_moe
    flex_olmo flint fuyu gemma gemma2 gemma3 gemma3_text gemma3n_text gemma4 gemma4_text gemma4_unified
    gemma4_unified_text git glm glm4 glm4_moe glm4_moe_lite glm_moe_dsa got_ocr2 gpt-sw3 gpt2 gpt_bigcode gpt_neo
    gpt_neox gpt_neox_japanese gptj granite granite_swa granitemoe granitemoe_swa granitemoeshared helium
    hrm_text hunyuan_v1_dense hunyuan_v1_moe hy_v3 hy_v4 hyperclovax internlm3 iquestcoder jais2 jetmoe kolibri1
    laguna llama llama4 llama4_text longcat_flash mellum mimo_v2_flash minicpm3 minimax_m2 minimax_m3_vl_text
    ministral ministral3 mistral mixtral mllama moshi moss_transcribe_diarize nanochat nemotron olmo olmo2 olmo3
    olmoe persimmon phi phi3 phi4_multimodal phimoe qwen2 qwen2_moe qwen3 qwen3_moe seed_oss smollm3 solar_open
    stablelm starcoder2 vaultgemma whisper youtu
""")
"""Families that keep the documents of a packed block apart."""

ONE_BY_ONE = _named("""
    afmoe bamba bart bert-generation bigbird_pegasus biogpt blenderbot blenderbot-small bloom deepseek_v4 falcon
    falcon_h1 falcon_mamba gpt_oss granitemoehybrid inkling2_text jamba kimi_linear lfm2 lfm2_moe lfm3 mamba
    mamba2 marian mbart minimax mpt mvp nemotron_h olmo_hybrid openai-gpt opt pegasus plbart qwen3_5 qwen3_5_moe
    qwen3_5_moe_text qwen3_5_text qwen3_next recurrent_gemma rwkv trocr xglm xlstm zamba2 zaya
""")
"""Families that read each document of a block in a row of its own: right, but slower."""

_HEADS = _named("""
    bert big_bird camembert data2vec-text electra ernie inkling_text megatron-bert modernbert-decoder prophetnet
    rembert roberta roberta-prelayernorm roc_bert roformer xlm-roberta xlm-roberta-xl
""")

REFUSED: Mapping[str, str] = {
    **dict.fromkeys(_HEADS, "its logits pass through layers of its head that are not known here"),
    **dict.fromkeys(("musicgen", "musicgen_melody"), "it speaks codes of sound, not text"),
    **dict.fromkeys(("xlm", "xlnet"), "its tokens see those after them, so it is no causal language model"),
    **dict.fromkeys(
        ("gemma4_assistant", "gemma4_unified_assistant"),
        "it drafts tokens for another model, whose states it reads",
    ),
    "blt": "it reads bytes, in patches that another model cuts",
    "cpmant": "it puts a prompt of its own before each text",
    "reformer": "it sorts the tokens of the whole text into buckets",
    "xmod": "it needs the language of each text",
}
"""Families that cannot be used, and why."""

_SIZES: Mapping[str, frozenset[str]] = {
    "n_positions": _named("codegen ctrl gpt-sw3 gpt2 gpt_bigcode gptj openai-gpt"),
    "max_position_embeddings": _named("""
        bart bert-generation bigbird_pegasus biogpt blenderbot blenderbot-small git gpt_neo marian mbart mvp opt
        pegasus plbart trocr
    """),
    "max_seq_len": _named("mpt"),
    "max_target_positions": _named("whisper"),
}

POSITIONS: Mapping[str, str] = {family: field for field, families in _SIZES.items() for family in families}
"""Families with a table of positions, beyond which they cannot read, and the field with its size."""

_PARTS = ("vision_config", "audio_config", "speech_config", "vit_config", "vision_tower", "image_config")


@dataclass(frozen=True)
class Positions:
    """How many positions a model has.

    Attributes:
        number: Tokens of the longest text that it can read, or was made for.
        field: The field of config.json that says so.
        is_table: Whether it cannot read beyond them at all; if not, it does so badly.
    """

    number: int
    field: str
    is_table: bool

    def too_few(self, reference: str, block_size: int) -> str | None:
        """Say so if blocks are longer, and what to do; None if they are not."""
        if block_size <= self.number:
            return None
        beyond = "it cannot read beyond" if self.is_table else "it was not made for more"
        return (
            f"{reference} has {self.number:,} positions (`{self.field}` in config.json, {beyond}), but blocks "
            f"have {block_size:,} tokens; set data.block_size to {self.number:,} at most"
        )


def require_usable(config: Mapping[str, Any], reference: str) -> None:
    """Refuse families that cannot be used.

    Args:
        config: What config.json holds.
        reference: The model's name in errors.

    Raises:
        DataError: it is of one of them, or reads pictures or sound and is not known to work with text alone.
    """
    kind = str(config.get("model_type", ""))
    if kind in REFUSED:
        raise DataError(
            f"{reference}: models of the family {kind!r} cannot be used, since {REFUSED[kind]}; give another "
            "model (docs/families.md lists the families)"
        )
    if config.get("transformers_weights"):
        raise DataError(
            f"{reference}: config.json names a file of weights of its own (`transformers_weights: "
            f"{config['transformers_weights']}`), which is not looked at here; rename that file to "
            "model.safetensors and take the key out"
        )
    parts = [name for name in _PARTS if config.get(name)]
    if parts and kind not in ACCEPTED | ONE_BY_ONE:
        raise DataError(
            f"{reference}: models of the family {kind!r} read more than text (`{parts[0]}` in config.json) and "
            "transformers makes no causal language model of them; give the language model alone, such as one of "
            "the text-only models of that family (docs/families.md lists the families)"
        )


def positions_of(config: Mapping[str, Any]) -> Positions | None:
    """Find how many positions a model has; None if its configuration sets no limit.

    Args:
        config: What config.json holds.
    """
    inner = config.get("text_config")
    text = inner if isinstance(inner, Mapping) else config
    kind = str(text.get("model_type", config.get("model_type", "")))
    table = POSITIONS.get(kind)
    field = table or "max_position_embeddings"
    number = text.get(field)
    if not isinstance(number, int) or isinstance(number, bool) or number < 1 or kind in _WITHOUT:
        return None
    if table is not None:
        return Positions(number, field, is_table=True)
    return Positions(max(number, *(_stretched(number, rope) for rope in _ropes(text))), field, is_table=False)


_WITHOUT = _named("bloom falcon_mamba inkling2_text inkling_text jamba mamba nemotron_h rwkv xglm")
"""Families whose field of that name limits nothing."""


def _ropes(text: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Parameters of rotary embeddings, of which some families have several by the kind of layer."""
    found: list[Mapping[str, Any]] = [{}]
    for name in ("rope_parameters", "rope_scaling"):
        rope = text.get(name)
        if isinstance(rope, Mapping):
            found += [rope, *(part for part in rope.values() if isinstance(part, Mapping))]
    return found


def _stretched(number: int, rope: Mapping[str, Any]) -> int:
    """Positions that a scaling makes of those that the model had before; none if it makes no more."""
    factor = rope.get("factor")
    if not isinstance(factor, int | float) or isinstance(factor, bool):
        return 0
    kind = rope.get("rope_type", rope.get("type"))
    before = rope.get("original_max_position_embeddings")
    if isinstance(before, int):
        return int(before * factor)
    return int(number * factor) if kind in ("linear", "dynamic", "yarn") else 0

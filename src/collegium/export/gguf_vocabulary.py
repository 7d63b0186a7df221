"""A byte-level BPE tokenizer as GGUF holds it: tokens, their kinds, merges, and the name of its first cut.

llama.cpp knows regular expressions by a name (`tokenizer.ggml.pre`) and has them compiled in. The name is
found by what the tokenizer does (its own expressions), not by the model that it came with, so a tokenizer
that was trained by its user is known too. An expression that is not in the table is refused: another one
would cut text otherwise, and no figure on ready-made tokens would show it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from collegium.base.errors import DataError


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_DIGIT = r"\p{N}"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

_NAMES: dict[tuple[str, ...], str] = {
    (_GPT2,): "gpt-2",
    (_DIGIT, _GPT2): "smollm",
    (_LLAMA3,): "llama-bpe",
    (_QWEN2,): "qwen2",
}
"""What text is cut by, one expression after the other -> the name in llama.cpp."""

_FIX = (
    "convert the run's `student` folder with llama.cpp's own convert_hf_to_gguf.py, or export to onnx or "
    "safetensors-int8"
)


@dataclass(frozen=True)
class GgufVocabulary:
    """A tokenizer as GGUF describes it.

    Attributes:
        tokens: Spelling of every row of the embedding.
        kinds: `gguf.TokenType` of each.
        merges: Pairs in the order of their rank, with a space between them.
        pre: Name of the first cut.
        adds_bos: True if a text begins with BOS by itself.
    """

    tokens: Sequence[str]
    kinds: Sequence[int]
    merges: Sequence[str]
    pre: str
    adds_bos: bool


def gguf_vocabulary(tokenizer: PreTrainedTokenizerBase, num_rows: int) -> GgufVocabulary:
    """Read a fast tokenizer.

    Args:
        tokenizer: A byte-level BPE tokenizer.
        num_rows: Rows of the model's embedding; those without a token are filled up with unused ones.

    Raises:
        DataError: llama.cpp cannot cut text as this tokenizer does.
    """
    tree = json.loads(tokenizer.backend_tokenizer.to_str())
    pre = first_cut(tree)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in tree["model"]["merges"]]
    if not merges:
        raise DataError(f"--to gguf: the tokenizer has no merges, which llama.cpp refuses to read; {_FIX}")
    tokens, kinds = _tokens(tokenizer, num_rows)
    bos = tokenizer.bos_token_id
    adds_bos = bos is not None and tokenizer.encode("a")[:1] == [bos]
    return GgufVocabulary(tokens, kinds, merges, pre, adds_bos)


def first_cut(tree: dict[str, Any]) -> str:
    """The name in llama.cpp of how a tokenizer cuts text before merging.

    Args:
        tree: Its `tokenizer.json`.

    Raises:
        DataError: it has none.
    """
    model = tree["model"]
    normalizer = tree["normalizer"]
    kind = "byte-fallback BPE" if model.get("byte_fallback") else model["type"]
    if kind != "BPE":
        raise DataError(f"--to gguf: the tokenizer is {kind}; byte-level BPE is needed; {_FIX}")
    if normalizer is not None and normalizer["type"] != "NFC":
        raise DataError(f"--to gguf: llama.cpp does not know the tokenizer's normalizer {normalizer}; {_FIX}")
    expressions = tuple(_expressions(tree["pre_tokenizer"]))
    name = _NAMES.get(expressions)
    if name is None:
        raise DataError(
            f"--to gguf: llama.cpp's name of the tokenizer's first cut {list(expressions)} is not known here "
            f"(known: {', '.join(_NAMES.values())}); {_FIX}"
        )
    return name


def _expressions(pre: dict[str, Any] | None) -> list[str]:
    if pre is None:
        return []
    if pre["type"] == "Sequence":
        return [expression for part in pre["pretokenizers"] for expression in _expressions(part)]
    if pre["type"] == "ByteLevel" and not pre["add_prefix_space"]:
        return [_GPT2] if pre.get("use_regex", True) else []
    if pre["type"] == "Digits" and pre["individual_digits"]:
        return [_DIGIT]
    if pre["type"] == "Split" and pre["behavior"] == "Isolated" and not pre.get("invert"):
        return list(pre["pattern"].values())
    return [json.dumps(pre)]


def _tokens(tokenizer: PreTrainedTokenizerBase, num_rows: int) -> tuple[list[str], list[int]]:
    from gguf import TokenType

    added = tokenizer.added_tokens_decoder
    spelt = {index: token for token, index in tokenizer.get_vocab().items()}
    kinds: list[int] = []
    for index in range(num_rows):
        if index not in spelt:
            kinds.append(TokenType.UNUSED)
        elif index in added:
            kinds.append(TokenType.CONTROL if added[index].special else TokenType.USER_DEFINED)
        else:
            kinds.append(TokenType.NORMAL)
    return [spelt.get(index, f"[PAD{index}]") for index in range(num_rows)], kinds

"""Tokenizers for the rest of a text whose beginning is tokenised already.

Some tokenizers put a blank before whatever they are given, as those of Llama 2 do. In the middle of a text there
is none, and tokens with it would spell another text.
"""

import json
from typing import Any

import tokenizers


def continuing(backend: tokenizers.Tokenizer, rest: str) -> tokenizers.Tokenizer:
    """A tokenizer for what follows a text: the same one, unless it would put a blank in between.

    Args:
        backend: A tokenizer.
        rest: Something that begins like the text in question; it is tried after a letter.
    """
    whole = backend.decode(backend.encode("a" + rest, add_special_tokens=False).ids)
    for candidate in (backend, _without_blank(backend)):
        ids = [
            *backend.encode("a", add_special_tokens=False).ids,
            *candidate.encode(rest, add_special_tokens=False).ids,
        ]
        if backend.decode(ids) == whole:
            return candidate
    return backend


def _without_blank(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    content = json.loads(backend.to_str())
    content["normalizer"] = _changed(content["normalizer"])
    content["pre_tokenizer"] = _changed(content["pre_tokenizer"])
    changed = tokenizers.Tokenizer.from_str(json.dumps(content))
    changed.encode_special_tokens = backend.encode_special_tokens
    return changed


def _changed(step: Any) -> Any:
    """A step of a tokenizer without the blank that it puts before a text; None if that is all it does."""
    match step:
        case {"type": "Prepend"}:
            return None
        case {"type": "Metaspace"}:
            return {**step, "prepend_scheme": "never"}
        case {"type": "ByteLevel"}:
            return {**step, "add_prefix_space": False}
        case {"type": "Sequence", "normalizers": steps}:
            return {**step, "normalizers": [kept for inner in steps if (kept := _changed(inner))]}
        case {"type": "Sequence", "pretokenizers": steps}:
            return {**step, "pretokenizers": [kept for inner in steps if (kept := _changed(inner))]}
    return step

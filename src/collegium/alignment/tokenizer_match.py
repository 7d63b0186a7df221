"""Decides whether two tokenizers are the same, token by token.

Equal sizes say nothing (Qwen2.5's 151,936 and 152,064 are one tokenizer with other padding, and two
tokenizers of 32,000 rarely agree), so the maps themselves are compared, and a few lines of text.
"""

from transformers import PreTrainedTokenizerBase

from collegium.base.digest import json_digest
from collegium.base.errors import DataError


PROBES = (
    "The quick brown fox jumps over the lazy dog.",
    "  def f(x):\n\treturn x**2  # naïve",
    "Größe 12,345.67 € 漢字 🙂 \r\n",
)


_NUM_ROWS = "_collegium_num_rows"
"""Attribute of a tokenizer that has special tokens above the rows of its model's embedding: the number of rows."""


def vocab_size_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """Number of logits that mean something: the largest token id with a row in the embedding, plus one."""
    return max(vocabulary_of(tokenizer).values()) + 1


def vocabulary_of(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """All tokens and their ids, but special ones above the rows of the embedding."""
    num_rows = getattr(tokenizer, _NUM_ROWS, None)
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    return vocabulary if num_rows is None else {t: i for t, i in vocabulary.items() if i < num_rows}


def vocabulary_above(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Special tokens above the rows of the embedding."""
    return set(tokenizer.get_vocab()) - set(vocabulary_of(tokenizer))


def leave_out_above(tokenizer: PreTrainedTokenizerBase, num_rows: int) -> None:
    """Let special tokens above the rows of a model's embedding not count, if there are no others above them.

    Gemma 3's tokenizer lists a token of images for which the models without images have no row; Llama 2's was
    often given a padding token. Text is cut into tokens without special ones, so they occur in none. A token that
    does, or that a document begins or ends with, still counts, and the model is refused.
    """
    added = tokenizer.added_tokens_decoder
    above = [i for i in tokenizer.get_vocab().values() if i >= num_rows]
    used = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    if above and all(i in added and added[i].special and i not in used for i in above):
        setattr(tokenizer, _NUM_ROWS, num_rows)


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Identity of the token-to-id map and of how probes are cut."""
    content = [sorted(tokenizer.get_vocab().items()), _encode_probes(tokenizer)]
    return json_digest(content)[:32]


def require_same_tokenizer(
    tokenizer: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, *, name: str
) -> None:
    """Compare token by token.

    Raises:
        DataError: they differ; shows the first differences.
    """
    if difference := tokenizer_difference(tokenizer, other):
        raise DataError(f"{name}: another tokenizer than the student's: {difference}")


def tokenizer_difference(tokenizer: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> str | None:
    """In words, what the second does otherwise than the first, the student's; None if nothing."""
    ours = _without_filling(tokenizer)
    theirs = _without_filling(other)
    for one, another in ((ours, other), (theirs, tokenizer)):  # special tokens for which one of both has no row
        for token in vocabulary_above(another):
            one.pop(token, None)
    differing = [token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token)]
    if differing:
        first = sorted(differing, key=lambda token: min(ours.get(token, 1 << 60), theirs.get(token, 1 << 60)))[:3]
        shown = "; ".join(
            f"{t!r} is {_id(ours, t)} for the student, {_id(theirs, t)} for the teacher" for t in first
        )
        both = len(ours.keys() | theirs.keys())
        return f"{len(differing):,} of {both:,} tokens have another id or are in one of them only: {shown}"
    for probe, ours_ids, theirs_ids in zip(PROBES, _encode_probes(tokenizer), _encode_probes(other), strict=True):
        if ours_ids != theirs_ids:
            return (
                f"same tokens, but {probe!r} is cut into {len(ours_ids)} tokens by the student's and "
                f"{len(theirs_ids)} by the teacher's: the merges differ"
            )
    return None


def _without_filling(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The map but for the entries `[PADn]` that fill up the vocabulary of a GGUF file: they are in no text."""
    return {token: i for token, i in vocabulary_of(tokenizer).items() if token != f"[PAD{i}]"}


def _encode_probes(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    return [tokenizer.encode(probe, add_special_tokens=False) for probe in PROBES]


def _id(vocab: dict[str, int], token: str) -> str:
    return str(vocab[token]) if token in vocab else "absent"

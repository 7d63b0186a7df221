"""Small tokenizers of several kinds, trained here on a few lines: nothing is downloaded."""

import json
from collections.abc import Callable, Mapping
from functools import cache

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast


LINES = [
    "the cat sat on the mat and looked at the dog, walking home",
    "def walk(self, value):\n    return self.walking[value] + 1\n\n\n",
    "Größe und Übermut, naïve café, 漢字 and かな, emoji 🙂🙃",
    "numbers 12,345.67 and 2024; unbelievable, believe, unbelief",
    "the walker walked with walkers while the talker talked and talks",
] * 4


@cache
def byte_level(vocab_size: int = 420, *, special: str = "s") -> PreTrainedTokenizerFast:
    """Byte-level BPE, as of GPT-2, Llama 3 and Qwen, with the normalizer of Qwen."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[f"<{special}>", f"</{special}>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(LINES, trainer)
    return _fast(tokenizer, special)


@cache
def sentencepiece_bpe(vocab_size: int = 520, *, prepend: bool = True) -> PreTrainedTokenizerFast:
    """BPE over characters with a mark for spaces and bytes to fall back on, as of Llama 2 and Gemma."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    parts: list[normalizers.Normalizer] = [normalizers.Prepend("▁")] if prepend else []
    tokenizer.normalizer = normalizers.Sequence([*parts, normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    spelt = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=["<unk>", "<b>", "</b>", *spelt], show_progress=False
    )
    tokenizer.train_from_iterator(LINES, trainer)
    tree = Tokenizer.from_str(tokenizer.to_str())
    tree.post_processor = processors.TemplateProcessing(single="<b> $A", special_tokens=[("<b>", 1)])
    return _without_special_bytes(tree)


@cache
def unigram() -> PreTrainedTokenizerFast:
    """Unigram with a mark for spaces and no bytes to fall back on, as of T5: rare characters are unknown."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<unk>", "<u>", "</u>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(LINES, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<u>", eos_token="</u>", unk_token="<unk>"
    )


@cache
def word_piece() -> PreTrainedTokenizerFast:
    """WordPiece, which loses blanks."""
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "the": 1, "##s": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


LOSSLESS: Mapping[str, Callable[[], PreTrainedTokenizerFast]] = {
    "byte_level": byte_level,
    "larger_byte_level": lambda: byte_level(520, special="t"),
    "sentencepiece": sentencepiece_bpe,
    "sentencepiece_without_prefix": lambda: sentencepiece_bpe(480, prepend=False),
}


def _fast(tokenizer: Tokenizer, special: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=f"<{special}>", eos_token=f"</{special}>", pad_token=f"</{special}>"
    )


def _without_special_bytes(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """Byte tokens are ordinary ones, which the trainer can only be told as special ones."""
    tree = json.loads(tokenizer.to_str())
    tree["added_tokens"] = [token for token in tree["added_tokens"] if not token["content"].startswith("<0x")]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(tree)),
        bos_token="<b>",
        eos_token="</b>",
        unk_token="<unk>",
        pad_token="</b>",
    )

"""What is said of text that is not what it is read as: once, and not of text that is fine."""

import logging

import pytest

from collegium.data.blocks import pack_documents
from collegium.data.documents import Document
from collegium.data.signs import TextSigns
from collegium.data.sources import FileSource


PROSE = (
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of folly. "
    "We had everything before us, we had nothing before us, we were all going direct the other way, in short. "
) * 8


def wrapped(width: int = 72) -> list[str]:
    lines, line = [], ""
    for word in PROSE.split():
        if len(line) + len(word) > width:
            lines.append(line)
            line = ""
        line = f"{line} {word}".strip()
    return [*lines, line]


def said(texts, special=("<s>", "<|im_start|>", "<|im_end|>")):
    signs = TextSigns("source 'a'", special)
    for text in texts:
        signs.see(Document(text))
    return list(signs.sentences(1234))


def test_wrapped_prose_is_said_and_whole_documents_are_not():
    (sentence,) = said(wrapped())
    assert "look like the lines of wrapped prose" in sentence and r'`separator: "\n\s*\n"`' in sentence
    assert said([PROSE] * 20) == said(["A sentence of its own that is long enough."] * 20) == []
    assert said(wrapped()[:5]) == []
    assert said([f"def function_{i}(value, other): return value" for i in range(50)]) == []


def test_spelt_control_tokens_are_said_with_figures():
    chats = ["<|im_start|>user\nHi<|im_end|>"] * 30
    (sentence,) = said(chats + ["plain text"] * 10)
    assert (
        "30 of the first 40 documents spell special tokens of the tokenizer (<|im_start|>, <|im_end|>)" in sentence
    )
    assert "0 control tokens among 1,234 tokens" in sentence and "docs/text.md" in sentence
    assert said(["plain text"] * 99 + ["an <s>old</s> page"]) == []
    assert said(["the end of things"] * 9, special=("the",)) == said(["any text"] * 9, special=()) == []


def test_preparation_says_it_once(tmp_path, prepare, tokenizer):
    words = ["they", "were", "not", "what", "all", "of", "them", "said", "when", "we", "had", "been", "there"]
    texts = [f"<s> turn {i} of the way </s> {' '.join(words[i % 7 :])}" for i in range(60)]
    (tmp_path / "a.txt").write_text("\n".join(texts))
    heard = []
    for _ in range(2):
        prepare([FileSource("a", str(tmp_path / "a.txt"))], tmp_path / "p", on_notice=heard.append)
    assert len(heard) == 1 and "documents spell special tokens of the tokenizer (<s>, </s>)" in heard[0]


def test_packing_rows_says_it_too(tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        pack_documents([{"text": f"<s> turn {i}"} for i in range(9)], tokenizer, block_size=8)
    assert "the data set: 9 of the first 9 documents spell special tokens" in caplog.text


@pytest.mark.parametrize("text", ["a b\nc d", "abcd" * 40, "word " * 60])
def test_pieces_of_a_long_text_spell_it(text, monkeypatch):
    """Tokenizers that put a blank before a text put none in the middle of it."""
    from collegium.data.tokenization import DocumentTokenizer
    from tests.support.small_tokenizers import LOSSLESS

    monkeypatch.setattr("collegium.data.tokenization.PIECE_SIZE", 7)
    for make in LOSSLESS.values():
        tokenizer = make()
        encoder = DocumentTokenizer(tokenizer, add_bos=False, add_eos=False)
        (document,) = encoder.encode([text])
        whole = tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids)
        assert tokenizer.decode(document.tokens.tolist()) == whole
        assert document.byte_ends[-1] == document.boundaries[-1] == len(text.encode())

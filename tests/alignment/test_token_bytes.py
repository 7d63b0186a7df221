"""Bytes of tokens: nothing is lost on the way to tokens and back."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collegium.alignment.token_bytes import TokenBytes
from collegium.base.errors import DataError
from tests.support.random_text import random_text
from tests.support.small_tokenizers import LOSSLESS, byte_level, sentencepiece_bpe, unigram, word_piece


@pytest.fixture(params=LOSSLESS)
def table(request: pytest.FixtureRequest) -> TokenBytes:
    return TokenBytes(LOSSLESS[request.param]())


def test_ten_thousand_random_texts_lose_no_byte(table: TokenBytes) -> None:
    source = random.Random(0)
    contents = [random_text(source).encode() for _ in range(10_000)]
    for content, tokenized in zip(contents, table.encode(contents), strict=True):
        assert table.decode(tokenized.tokens) == content
        assert len(content) == (tokenized.ends[-1] if len(tokenized) else 0)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=24))
def test_any_bytes_lose_none(content: bytes) -> None:
    for make in LOSSLESS.values():
        table = TokenBytes(make())
        (tokenized,) = table.encode([content])
        assert table.decode(tokenized.tokens) == content


def test_each_token_ends_where_its_bytes_end(table: TokenBytes) -> None:
    content = "naïve café 漢字🙂 walking".encode()
    (tokenized,) = table.encode([content])
    starts = [0, *tokenized.ends[:-1]]
    for token, start, end in zip(tokenized.tokens, starts, tokenized.ends, strict=True):
        assert table.pieces[token] == content[start:end]


def test_a_space_before_a_text_is_not_counted() -> None:
    table = TokenBytes(sentencepiece_bpe())
    begun, within = (table.encode([b"the cat"], begins=[begins])[0] for begins in (True, False))
    assert str(table.pieces[begun.tokens[0]], "utf-8").startswith(" ")
    assert not str(table.pieces[within.tokens[0]], "utf-8").startswith(" ")
    assert begun.ends[-1] == within.ends[-1] == 7
    assert table.encode([b" the"], begins=[True])[0].ends[-1] == 4


def test_special_tokens_in_a_text_stay_text() -> None:
    table = TokenBytes(byte_level())
    (tokenized,) = table.encode([b"a</s>"])
    assert byte_level().eos_token_id not in tokenized.tokens
    assert table.decode(tokenized.tokens) == b"a</s>"


def test_bos_only_where_the_tokenizer_begins_with_it() -> None:
    assert TokenBytes(byte_level()).bos is None
    assert TokenBytes(sentencepiece_bpe()).bos == sentencepiece_bpe().bos_token_id
    table = TokenBytes(byte_level())
    assert table.pieces[byte_level().bos_token_id] is None
    assert table.lengths[byte_level().bos_token_id] == 0
    assert table.eos == byte_level().eos_token_id


def test_text_that_a_tokenizer_would_normalize_is_read_as_it_is() -> None:
    table, decomposed = TokenBytes(byte_level()), "e\u0301".encode()
    assert table.decode(table.encode([decomposed])[0].tokens) == decomposed
    assert byte_level().decode(byte_level().encode("e\u0301")).encode() != decomposed


def test_unknown_characters_lie_between_their_neighbours() -> None:
    (tokenized,) = TokenBytes(unigram()).encode(["the \u0416 cat".encode()])
    assert tokenized.ends[-1] == len("the \u0416 cat".encode())
    assert np.all(np.diff(tokenized.ends) >= 0)


@pytest.mark.parametrize("content", [b"\x98the cat", b"the \xff cat", "the \u0416".encode() + b"\xffcat"])
def test_bytes_without_a_token_move_nothing_behind_them(content: bytes) -> None:
    """As where a block begins inside a character and the teacher has no bytes to fall back on."""
    table = TokenBytes(unigram())
    (tokenized,) = table.encode([content])
    last = table.pieces[tokenized.tokens[-1]] or b""
    assert tokenized.ends[-1] == len(content) and content.endswith(last)
    assert tokenized.ends[-2] == len(content) - len(last)


def test_of_two_tokens_with_the_same_bytes_the_ordinary_one_is_meant() -> None:
    tokenizer = sentencepiece_bpe()
    assert TokenBytes(tokenizer).ids[b"a"] == tokenizer.get_vocab()["a"]
    assert TokenBytes(tokenizer).ids[b"\xff"] == tokenizer.get_vocab()["<0xFF>"]


def test_a_tokenizer_that_loses_text_is_refused() -> None:
    with pytest.raises(DataError, match=r"WordPiece.*do not keep all of it.*BPE or Unigram"):
        TokenBytes(word_piece())


def test_bytes_without_a_token_move_no_other_token() -> None:
    """As in vocabularies that know some bytes only: what comes behind is found where it is."""
    table = TokenBytes(unigram())
    content = b"the \xff\xfe cat"
    (tokenized,) = table.encode([content])
    spelt = [(table.pieces[token], int(end)) for token, end in zip(tokenized.tokens, tokenized.ends, strict=True)]
    for piece, end in spelt:
        if piece is not None:
            assert content[:end].endswith(piece) or content[:end].endswith(piece.lstrip())
    assert spelt[-1][1] == len(content)

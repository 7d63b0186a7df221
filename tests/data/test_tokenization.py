"""Tokens of documents, and the bytes they stand for."""

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from collegium.base.errors import DataError
from collegium.data.tokenization import DocumentTokenizer
from tests.support.byte_level import bytes_of


def encoder(tokenizer, add_bos=False, add_eos=False):
    return DocumentTokenizer(tokenizer, add_bos=add_bos, add_eos=add_eos)


@settings(deadline=None)
@given(st.lists(st.text(max_size=60), max_size=5), st.booleans(), st.booleans())
def test_round_trip_with_every_byte_counted_once(tokenizer, texts, add_bos, add_eos):
    documents = encoder(tokenizer, add_bos, add_eos).encode(texts)
    assert len(documents) == len(texts)
    for text, document in zip(texts, documents, strict=True):
        tokens = document.tokens.tolist()
        assert tokens[:1] == [tokenizer.bos_token_id] or not add_bos
        assert tokens[-1:] == [tokenizer.eos_token_id] or not add_eos
        body = tokens[add_bos : len(tokens) - add_eos]
        assert tokenizer.decode(body) == text
        assert (np.diff(document.byte_ends) >= 0).all()
        if body:
            assert document.byte_ends[-1] == len(text.encode())


def test_bytes_of_single_tokens(tokenizer):
    [document] = encoder(tokenizer, add_bos=True, add_eos=True).encode(["the €"])
    # BOS, "the", " ", three tokens that share the euro sign, EOS
    assert document.byte_ends.tolist() == [0, 3, 4, 7, 7, 7, 7]


def test_dropped_blanks_count_for_the_token_after_them():
    backend = Tokenizer(models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.normalizer = normalizers.Lowercase()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    [document] = encoder(tokenizer).encode(["a   B é  "])
    assert document.tokens.tolist() == [0, 1, 2]
    assert document.byte_ends.tolist() == [1, 5, 10]


@pytest.mark.parametrize("text", ["a <s> b</s>", "<s>", "</s></s>"])
def test_special_tokens_in_text_stay_text(tokenizer, text):
    [document] = encoder(tokenizer).encode([text])
    assert not set(document.tokens.tolist()) & {tokenizer.bos_token_id, tokenizer.eos_token_id}
    assert tokenizer.decode(document.tokens) == text
    # The caller's tokenizer is as it was.
    assert tokenizer.bos_token_id in tokenizer("<s>", add_special_tokens=False).input_ids


def test_padding_and_truncation_of_the_tokenizer_do_not_matter(tokenizer):
    texts = ["the people", "the " * 50]
    plain = encoder(tokenizer)
    expected = plain.encode(texts)
    used = copy.deepcopy(tokenizer)
    used.backend_tokenizer.enable_padding(length=9)
    used.backend_tokenizer.enable_truncation(4)
    changed = encoder(used)
    assert changed.identity == plain.identity
    for one, other in zip(expected, changed.encode(texts), strict=True):
        assert one.tokens.tolist() == other.tokens.tolist()


def test_long_documents_have_the_tokens_of_the_whole(tokenizer, monkeypatch):
    text = " ".join(f"the people, {i}:  and\n\nwater" for i in range(3000))
    [whole] = encoder(tokenizer).encode([text])
    monkeypatch.setattr("collegium.data.tokenization.PIECE_SIZE", 1000)
    monkeypatch.setattr("collegium.data.tokenization._BATCH_CHARACTERS", 5000)
    [pieces] = encoder(tokenizer).encode([text])
    assert pieces.tokens.tolist() == whole.tokens.tolist()
    assert pieces.byte_ends.tolist() == whole.byte_ends.tolist()


def test_identity_is_of_vocabulary_and_marks(tokenizer):
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), bos_token="<s>", eos_token="</s>")
    identities = {
        encoder(tokenizer).identity,
        encoder(tokenizer, add_bos=True).identity,
        encoder(tokenizer, add_eos=True).identity,
        encoder(other).identity,
    }
    assert len(identities) == 4
    assert encoder(tokenizer).identity == encoder(tokenizer).identity


def test_what_cannot_be_used_is_refused(tokenizer):
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    bare.bos_token = None
    with pytest.raises(ValueError, match="no BOS token"):
        encoder(bare, add_bos=True)
    with pytest.raises(ValueError, match="no fast tokenizer"):
        encoder(object())
    with pytest.raises(DataError, match="lone surrogates"):
        encoder(tokenizer).encode(["\ud800"])


@settings(deadline=None)
@given(st.lists(st.text("aé€漢🙂🙃 \n1", max_size=60), max_size=4), st.booleans(), st.booleans())
def test_boundaries_are_exact_inside_characters(other_tokenizer, texts, add_bos, add_eos):
    for text, document in zip(texts, encoder(other_tokenizer, add_bos, add_eos).encode(texts), strict=True):
        sizes = [len(bytes_of(other_tokenizer, [token])) for token in document.tokens.tolist()]
        assert document.boundaries.tolist() == np.cumsum([0, *sizes]).tolist()
        assert document.boundaries[-1] == len(text.encode())


def test_boundaries_where_tokens_share_characters(tokenizer):
    [document] = encoder(tokenizer, add_bos=True, add_eos=True).encode(["the €"])
    assert document.byte_ends.tolist() == [0, 3, 4, 7, 7, 7, 7]
    assert document.boundaries.tolist() == [0, 0, 3, 4, 5, 6, 7, 7]
    part = document[2:5]
    assert (len(part), part.boundaries.tolist(), part[1:].boundaries.tolist()) == (3, [3, 4, 5, 6], [4, 5, 6])
    assert document[4:][:2].boundaries.tolist() == [5, 6, 7]


def test_boundaries_of_pieces_and_of_a_space_put_before_the_text(tokenizer, monkeypatch):
    monkeypatch.setattr("collegium.data.tokenization.PIECE_SIZE", 8)
    text = "€ water and 🙂🙂 of the people"
    spaced = copy.deepcopy(tokenizer)
    spaced.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    for used in (tokenizer, spaced):
        [document] = encoder(used).encode([text])
        spelt = [bytes_of(used, [token]) for token in document.tokens.tolist()]
        places = document.boundaries.tolist()
        for piece, start, end in zip(spelt, places, places[1:], strict=False):
            assert text.encode()[start:end] in (piece, piece.removeprefix(b" "))
        assert (places[0], places[-1]) == (0, len(text.encode()))


def test_boundaries_are_ends_of_characters_where_tokens_do_not_spell_the_text():
    backend = Tokenizer(models.WordLevel({"a": 0, "é": 1, "[UNK]": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.normalizer = normalizers.Lowercase()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    [document] = encoder(tokenizer).encode(["  A   É xyz "])
    assert document.boundaries.tolist() == [0, 3, 8, 13]
    assert document.byte_ends.tolist() == [3, 8, 13]


def test_boundaries_are_ends_of_characters_where_a_normalizer_changes_the_text(other_tokenizer):
    composed = copy.deepcopy(other_tokenizer)
    composed.backend_tokenizer.normalizer = normalizers.NFC()
    [document] = encoder(composed).encode(["€e\u0301b"])
    assert bytes_of(composed, document.tokens.tolist()) == "€éb".encode()
    assert document.boundaries.tolist() == [0, *document.byte_ends.tolist()]
    assert (np.diff(document.boundaries) >= 0).all() and document.boundaries[-1] == 7

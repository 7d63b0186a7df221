"""The choice of held-out documents, and recognising copies of them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collegium.data.deduplicate import HeldOutIndex, words_key, words_of
from collegium.data.documents import Document
from collegium.data.held_out import HeldOutChooser


def choose(texts, wanted, taken=frozenset()):
    chooser = HeldOutChooser(wanted, taken)
    for num_read, text in enumerate(texts, 1):
        chooser.offer(Document(text))
        if chooser.is_done:
            return [document.text for document in chooser.chosen()], num_read
    return [document.text for document in chooser.chosen()], len(texts)


def key(text):
    return words_key(words_of(text))


def test_one_in_ten_of_a_large_source(prose):
    texts = prose(1000)
    chosen, num_read = choose(texts, 20)
    assert len(chosen) == 20
    assert 100 < num_read < 400
    assert [text for text in texts if text in set(chosen)] == chosen
    assert {key(text) for text in chosen} == set(sorted(key(t) for t in texts[:num_read])[:20])


@settings(deadline=None)
@given(st.lists(st.text("abc d", min_size=1), max_size=30), st.integers(1, 10))
def test_never_more_than_half_of_a_small_source(texts, wanted):
    chosen, _ = choose(texts, wanted)
    num_different = len({key(text) for text in texts})
    assert len(chosen) <= max(wanted, num_different // 2)
    assert len({key(text) for text in chosen}) == len(chosen)
    if num_different >= 2:
        assert chosen


def test_small_source_gives_half_and_order_does_not_matter(prose):
    texts = prose(9)
    chosen, _ = choose(texts, 100)
    assert len(chosen) == 4
    assert set(choose(texts[::-1], 100)[0]) == set(chosen)


def test_copies_and_taken_documents_are_not_chosen(prose):
    texts = prose(10)
    assert choose([texts[0]] * 50, 5)[0] == []
    first, _ = choose(texts, 2)
    second, _ = choose(texts, 2, frozenset(key(text) for text in first))
    assert not set(first) & set(second)


@pytest.mark.parametrize("copy", ["The water, of the PEOPLE!", "the  water\nof the people", "???"])
def test_short_texts_match_but_for_case_blanks_and_punctuation(copy):
    index = HeldOutIndex(["The water of the people.", " ??? "], threshold=0.5)
    assert index.match(copy) == "held_out"
    assert index.match(copy + " again") is None


@settings(deadline=None)
@given(st.integers(0, 12), st.integers(0, 40), st.integers(0, 40))
def test_near_duplicates_by_the_share_of_13_grams(num_changed, num_before, num_after):
    held_out = [f"w{i}" for i in range(40)]
    index = HeldOutIndex([" ".join(held_out), "short text"], threshold=0.5)
    kept = held_out[: 40 - num_changed]
    before = [f"b{i}" for i in range(num_before)]
    after = [f"a{i}" for i in range(num_after)]
    words = before + kept + after
    num_shared = len(kept) - 12
    share = num_shared / (len(words) - 12)
    expected = "near_duplicate_of_held_out" if share >= 0.5 else None
    if words == held_out:
        expected = "held_out"
    assert index.match(" ".join(words).upper()) == expected


def test_texts_below_13_words_match_as_a_whole_only():
    index = HeldOutIndex([" ".join(f"w{i}" for i in range(100))], threshold=0.01)
    assert index.match("w0 w1 w2 w3 w4 w5 w6 w7 w8 w9 w10 w11") is None
    assert index.match("w0 w1 w2 w3 w4 w5 w6 w7 w8 w9 w10 w11 w12") is not None

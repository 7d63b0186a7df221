"""Finding the bytes of one preparation in another one of the same text, made with another tokenizer."""

import json
from collections import defaultdict

import datasets
import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from collegium.base.errors import DataError
from collegium.data.document_index import DocumentIndex
from collegium.data.prepared import PreparedText
from collegium.data.settings import SourceLimits
from tests.support.byte_level import bytes_of


WORDS = ["the", "of ", "é", "€5", "漢字", "🙂", "🙃!", " ", "\n", "a1", "water", "e\u0301", "Ω"]
documents = st.lists(st.sampled_from(WORDS), min_size=1, max_size=25).map("".join)
texts = st.lists(documents, min_size=2, max_size=25)


def parts_of(text):
    return {"train": text.train, **{f"held_out/{name}": blocks for name, blocks in text.held_out.items()}}


def segments_of(text):
    """(part, row, index, document, start, end, tokens) of every segment, read one by one."""
    for part, blocks in parts_of(text).items():
        for number, row in enumerate(blocks):
            first = 0
            columns = ("segment_lengths", "segment_documents", "segment_starts", "segment_ends")
            for index, (length, *place) in enumerate(zip(*(row[name] for name in columns), strict=True)):
                yield part, number, index, *place, row["input_ids"][first : first + length]
                first += length
            assert first == len(row["input_ids"])


def contents_of(text, tokenizer):
    """Bytes of the segments, and the bytes of each document that the text has, by their place in it."""
    by_place, by_document = {}, defaultdict(dict)
    for part, row, index, document, start, end, tokens in segments_of(text):
        content = bytes_of(tokenizer, tokens)
        assert len(content) == end - start
        by_place[part, row, index] = content
        for place, byte in enumerate(content, start):
            assert place not in by_document[part, document]
            by_document[part, document][place] = byte
    return by_place, by_document


def check_that_all_is_found(text, other, tokenizer, other_tokenizer):
    """Every byte of `text` that `other` has is found there, in order, and nothing else; how many are missing."""
    index = DocumentIndex.of_text(other)
    contents, there = contents_of(other, other_tokenizer)
    missing = defaultdict(int)
    for part, _, _, document, start, end, tokens in segments_of(text):
        expected = bytes_of(tokenizer, tokens)
        found = {}
        for place in index.find(document, start, end):
            assert place.part == part
            content = contents[place.part, place.row, place.index]
            assert len(content) == place.end - place.start
            overlap = range(max(start, place.start), min(end, place.end))
            assert overlap
            assert not found or overlap.start > max(found)
            found |= {at: content[at - place.start] for at in overlap}
        assert (
            found.items()
            == {at: byte for at, byte in enumerate(expected, start) if at in there[part, document]}.items()
        )
        missing[part, document] += end - start - len(found)
    return {key: number for key, number in missing.items() if number}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    a=texts,
    b=texts,
    sizes=st.tuples(st.integers(2, 40), st.integers(2, 40)),
    marks=st.tuples(st.booleans(), st.booleans()),
    max_tokens=st.tuples(*[st.none() | st.integers(2, 60)] * 2),
)
def test_every_byte_is_found(
    tmp_path_factory, prepare, list_source, tokenizer, other_tokenizer, a, b, sizes, marks, max_tokens
):
    sources = [list_source("a", a), list_source("b", b)]
    prepared = []
    try:
        for number, made_with in enumerate((tokenizer, other_tokenizer)):
            limits = {
                name: SourceLimits(max_tokens=maximum, min_characters=1)
                for name, maximum in zip("ab", max_tokens, strict=True)
            }
            settings = {"block_size": sizes[number], "add_bos": marks[number], "add_eos": marks[not number]}
            directory = tmp_path_factory.mktemp("p")
            prepared.append(prepare(sources, directory, tokenizer=made_with, limits=limits, **settings))
    except DataError:  # too little text, or all of it of one token
        event("refused")
        return
    event("prepared")
    one, other = prepared
    assert one.text_identity == other.text_identity
    one.require_same_text(other)
    check_that_all_is_found(one, other, tokenizer, other_tokenizer)
    check_that_all_is_found(other, one, other_tokenizer, tokenizer)


@pytest.mark.parametrize("block_size", [5, 16, 300])
def test_nothing_is_missing_but_the_last_token(
    tmp_path, prepare, list_source, prose, tokenizer, other_tokenizer, block_size
):
    """A token left over at the end of a source predicts nothing, and is in no block."""
    sources = [list_source("a", prose(40)), list_source("b", [text.upper() for text in prose(70)[40:]])]
    one = prepare(sources, tmp_path / "p", block_size=23)
    other = prepare(sources, tmp_path / "q", block_size=block_size, tokenizer=other_tokenizer, add_bos=True)
    for first, second, *made_with in (
        (one, other, tokenizer, other_tokenizer),
        (other, one, other_tokenizer, tokenizer),
    ):
        missing = check_that_all_is_found(first, second, *made_with)
        last = {("train", max(row["segment_documents"])) for row in first.train}
        assert missing.keys() <= last and all(number < 12 for number in missing.values())
    assert len(DocumentIndex.of_text(one)) > 70


def numbered_texts(text, tokenizer):
    found = defaultdict(bytes)
    for part, _, _, document, _, _, tokens in segments_of(text):
        found[part, document] += bytes_of(tokenizer, tokens)
    return found


def test_the_same_number_is_the_same_text_whatever_the_tokenizer(
    tmp_path, prepare, list_source, prose, tokenizer, other_tokenizer
):
    """One ends earlier in the first source, and has documents of one token that are several for the other."""
    words = sorted({word for text in prose(40) for word in text.split()})
    single = [w for w in words if len(tokenizer.tokenize(w)) == 1 < len(other_tokenizer.tokenize(w))]
    assert len(single) > 1
    mixed = [*prose(3), *single, *prose(40)[3:]]
    sources = [list_source("a", mixed), list_source("b", [text.upper() for text in prose(30)])]
    limits = {"a": SourceLimits(max_tokens=700, min_characters=1), "b": SourceLimits(min_characters=1)}
    one = prepare(sources, tmp_path / "p", limits=limits)
    other = prepare(sources, tmp_path / "q", limits=limits, tokenizer=other_tokenizer)
    assert one.manifest["sources"]["a"]["documents"]["too_short"] > 0
    assert "too_short" not in other.manifest["sources"]["a"]["documents"]
    ours, theirs = numbered_texts(one, tokenizer), numbered_texts(other, other_tokenizer)
    both = ours.keys() & theirs.keys()
    assert both < ours.keys() and both < theirs.keys()
    expected = {text.encode() for text in [*mixed, *(text.upper() for text in prose(30))]}
    for key in both:
        short, long = sorted((ours[key], theirs[key]), key=len)
        assert long.startswith(short)
        if len(short) < len(long):
            last = [max(d for p, d in found if p == "train" and d % 2 == key[1] % 2) for found in (ours, theirs)]
            assert key[0] == "train" and key[1] in last  # cut by max_tokens, or without a last token
        else:
            assert long in expected
    for name in "ab":
        assert (tmp_path / f"p/held_out/{name}.jsonl").read_text() == (
            tmp_path / f"q/held_out/{name}.jsonl"
        ).read_text()


def blocks(*rows):
    """Rows of (document, start, end) of their segments."""
    names = ("segment_documents", "segment_starts", "segment_ends")
    columns = [dict(zip(names, map(list, zip(*row, strict=True)), strict=True)) for row in rows]
    return datasets.Dataset.from_list([{**column, "domain": "a"} for column in columns])


def places(index, *asked):
    return [(p.part, p.row, p.index, p.start, p.end) for p in index.find(*asked)]


def test_places_of_a_small_table():
    index = DocumentIndex.of_parts(
        {
            "train": blocks([(3, 0, 4), (4, 0, 0), (4, 0, 6)], [(4, 6, 10)], [(4, 10, 10), (9, 2, 7)]),
            "held_out/a": blocks([(0, 0, 5), (1, 0, 2)]),
        }
    )
    assert places(index, 4, 0, 10) == [("train", 0, 2, 0, 6), ("train", 1, 0, 6, 10)]
    assert places(index, 4, 5, 6) == [("train", 0, 2, 0, 6)]
    assert places(index, 4, 6, 7) == [("train", 1, 0, 6, 10)]
    assert places(index, 4, 5, 7) == [("train", 0, 2, 0, 6), ("train", 1, 0, 6, 10)]
    assert places(index, 9, 0, 3) == [("train", 2, 1, 2, 7)]
    assert places(index, 0, 0, 99) == [("held_out/a", 0, 0, 0, 5)]
    for nothing in [(4, 10, 11), (9, 0, 2), (9, 7, 8), (5, 0, 3), (99, 0, 1), (-1, 0, 1), (4, 3, 3)]:
        assert places(index, *nothing) == []


def test_order_of_rows_does_not_matter_and_a_selection_is_read_as_such():
    ordered = blocks([(1, 0, 4)], [(1, 4, 6), (2, 0, 3)], [(2, 3, 9)])
    index = DocumentIndex.of_parts({"train": ordered.select([2, 0, 1])})
    assert places(index, 1, 0, 6) == [("train", 1, 0, 0, 4), ("train", 2, 0, 4, 6)]
    assert places(index, 2, 2, 5) == [("train", 2, 1, 0, 3), ("train", 0, 0, 3, 9)]
    some = DocumentIndex.of_parts({"train": ordered.select([2])})
    assert places(some, 1, 0, 6) == [] and places(some, 2, 0, 9) == [("train", 0, 0, 3, 9)]


def test_text_without_known_bytes_is_not_found():
    index = DocumentIndex.of_parts({"train": blocks([(0, -1, -1), (1, -1, -1)])})
    assert len(index) == 0 and places(index, 0, 0, 5) == []


@pytest.mark.parametrize("changed", ["text", "held_out", "limits", "threshold", "order"])
def test_another_text_is_refused(tmp_path, prepare, list_source, prose, other_tokenizer, changed):
    sources = [list_source(name, texts) for name, texts in (("a", prose(30)), ("b", prose(60)[30:]))]
    one = prepare(sources, tmp_path / "p")
    named, arguments = {
        "text": ("held_out_text, sources|sources", {}),
        "held_out": ("held_out_documents, held_out_text", {"held_out_documents": 5}),
        "limits": ("min_characters", {"limits": {"a": SourceLimits(min_characters=17)}}),
        "threshold": ("near_duplicate_threshold", {"near_duplicate_threshold": 0.6}),
        "order": ("held_out_text, sources", {}),
    }[changed]
    if changed == "text":
        sources[1] = list_source("b", prose(61)[30:])
    if changed == "order":
        sources = sources[::-1]
    other = prepare(sources, tmp_path / "q", tokenizer=other_tokenizer, **arguments)
    assert one.text_identity != other.text_identity
    with pytest.raises(DataError, match=f"{tmp_path / 'q'}: is not the text of .*p.*in ({named});"):
        one.require_same_text(other)


def test_what_concerns_tokens_only_is_the_same_text(tmp_path, prepare, list_source, prose, other_tokenizer):
    sources = [list_source("a", prose(30))]
    one = prepare(sources, tmp_path / "p")
    other = prepare(
        sources,
        tmp_path / "q",
        tokenizer=other_tokenizer,
        block_size=31,
        add_bos=True,
        add_eos=True,
        blocks_per_shard=3,
        limits={"a": SourceLimits(max_tokens=100)},
    )
    one.require_same_text(other)
    assert one.text_identity == other.text_identity == PreparedText.load(tmp_path / "q").text_identity
    assert one.fingerprint != other.fingerprint


def test_text_that_changed_under_its_name_is_refused(tmp_path, prepare, list_source, prose, other_tokenizer):
    """A data set on the hub is known by what was asked for, so its held-out text is compared as well."""
    sources = [list_source("a", prose(30)), list_source("a", prose(30)[::-1])]
    for source in sources:
        source.fingerprint = "the same"
    one = prepare(sources[:1], tmp_path / "p")
    other = prepare(sources[1:], tmp_path / "q", tokenizer=other_tokenizer)
    with pytest.raises(DataError, match="differ in held_out_text;"):
        one.require_same_text(other)


def test_index_is_of_every_part(tmp_path, prepare, list_source, prose):
    sources = [list_source("a", prose(30)), list_source("b", prose(60)[30:])]
    text = prepare(sources, tmp_path / "p")
    index = DocumentIndex.of_text(text)
    assert index.parts == ("train", "held_out/a", "held_out/b")
    lines = (tmp_path / "p/held_out/b.jsonl").read_text().splitlines()
    for record in map(json.loads, lines):
        found = index.find(record["document"], 0, len(record["text"].encode()))
        assert {place.part for place in found} == {"held_out/b"}
        assert (found[0].start, found[-1].end) == (0, len(record["text"].encode()))
    assert np.all(np.diff(index.documents) >= 0)

"""What `prepare_text` writes: nothing lost, nothing on both sides, everything counted."""

import json

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from collegium.base.errors import DataError
from collegium.data.deduplicate import HeldOutIndex, words_key, words_of
from collegium.data.documents import Document
from collegium.data.hub import HubSource
from collegium.data.prepared import PreparedText
from collegium.data.settings import SourceLimits
from collegium.data.sources import FileSource


def key(text):
    return words_key(words_of(text))


def test_round_trip_of_two_sources(tmp_path, prepare, list_source, prose, document_texts):
    texts = {"a": prose(60), "b": [text.upper() + "!" for text in prose(130)[90:]]}
    sources = [list_source(name, t) for name, t in texts.items()]
    prepared = prepare(sources, tmp_path / "p", limits={"a": SourceLimits(min_characters=0)})

    train = document_texts(prepared.train)
    held_out = {name: document_texts(blocks) for name, blocks in prepared.held_out.items()}
    assert [*held_out["a"], *held_out["b"]] == list(range(8))
    assert [*train] == [*range(8, 8 + 2 * 56, 2), *range(9, 9 + 2 * 36, 2)]
    assert [*train.values()] == [
        text for name in ("a", "b") for text in texts[name] if text not in held_out[name].values()
    ]
    for name in ("a", "b"):
        rows = [row for row in prepared.train if row["domain"] == name]
        assert {len(row["input_ids"]) for row in rows[:-1]} == {16}
        described = prepared.manifest["sources"][name]
        assert described["documents"] == {"kept": len(texts[name]) - 4, "held_out": 4}
        assert described["train_tokens"] == sum(len(row["input_ids"]) for row in rows)
        assert described["held_out_documents"] == len(held_out[name]) == 4
        lines = (tmp_path / f"p/held_out/{name}.jsonl").read_text().splitlines()
        assert {r["document"]: r["text"] for r in map(json.loads, lines)} == held_out[name]
    shards = sorted((tmp_path / "p/train").iterdir())
    assert [len(datasets.Dataset.from_file(str(shard))) for shard in shards[:-1]] == [8] * (len(shards) - 1)
    prepared.verify()


def test_marks_begin_and_end_every_document(tmp_path, prepare, list_source, prose):
    source = list_source("a", prose(30))
    prepared = prepare([source], tmp_path / "p", add_bos=True, add_eos=True, block_size=512)
    tokens = [token for row in prepared.train for token in row["input_ids"]]
    assert tokens.count(0) == tokens.count(1) == 26
    assert (tokens[0], tokens[-1]) == (0, 1)
    # With BOS in front, all text of documents that are not continued is predicted.
    [row] = prepared.held_out["a"]
    texts = (tmp_path / "p/held_out/a.jsonl").read_text().splitlines()
    assert row["segment_bytes"] == [len(json.loads(line)["text"].encode()) for line in texts]


def test_reasons_are_counted(tmp_path, prepare, list_source, prose):
    bad = [Document("", "nul"), Document("", "bad_json"), Document("", "bad_json")]
    source = list_source("a", [*prose(30), "", "  \n", "tiny", *bad])
    prepared = prepare([source], tmp_path / "p", max_bad_fraction=0.1)
    assert prepared.manifest["sources"]["a"]["documents"] == {
        "kept": 26,
        "held_out": 4,
        "empty": 2,
        "too_short": 1,
        "nul": 1,
        "bad_json": 2,
    }


def test_documents_of_one_token_are_too_short(tmp_path, prepare, list_source, prose):
    source = list_source("a", ["the", *prose(30)])
    limits = {"a": SourceLimits(min_characters=1)}
    prepared = prepare([source], tmp_path / "p", limits=limits, held_out_documents=1)
    if "the" not in (tmp_path / "p/held_out/a.jsonl").read_text().split('"'):
        assert prepared.manifest["sources"]["a"]["documents"]["too_short"] == 1


def test_too_many_bad_documents_stop_at_once(tmp_path, prepare, list_source, prose):
    source = list_source("a", [*prose(98), *[Document("", "invalid_utf8")] * 500])
    message = r"source 'a': 2 of 100 documents cannot be read \(2 invalid_utf8\).*0\.01"
    with pytest.raises(DataError, match=message):
        prepare([source], tmp_path / "p", held_out_documents=50)
    assert source.num_read == 100


def test_one_bad_row_of_a_few_is_no_share_but_two_are(tmp_path, prepare, list_source, prose):
    bad = Document("", "no_text", detail="a.jsonl, line 7: what it is")
    text = prepare([list_source("a", [*prose(20), bad])], tmp_path / "one")
    assert text.manifest["sources"]["a"]["documents"]["no_text"] == 1
    with pytest.raises(
        DataError, match="2 of 22 .*allow more. The first no_text is in a.jsonl, line 7: what it is"
    ):
        prepare([list_source("a", [*prose(20), bad, bad])], tmp_path / "two")
    with pytest.raises(DataError, match="1 of 21 documents cannot be read"):
        prepare([list_source("a", [*prose(20), bad])], tmp_path / "none", max_bad_fraction=0.0)


def test_too_many_bad_documents_in_a_short_source(tmp_path, prepare, list_source, prose):
    source = list_source("a", [*prose(20), Document("", "truncated")])
    with pytest.raises(DataError, match="1 of 21 documents cannot be read"):
        prepare([source], tmp_path / "p")


def test_nothing_to_hold_out_or_to_train_on(tmp_path, prepare, list_source, prose):
    with pytest.raises(DataError, match="'a': nothing can be held out.*1 kept, 1 too_short"):
        prepare([list_source("a", [prose(1)[0], "x"])], tmp_path / "p1")
    with pytest.raises(DataError, match="'a': nothing can be held out.*no document"):
        prepare([list_source("a", [])], tmp_path / "p2")
    base = [f"w{i}" for i in range(30)]
    alike = [" ".join([*base, str(i)]) for i in range(10)]
    with pytest.raises(DataError, match="'a': nothing is left for training.*near_duplicate"):
        prepare([list_source("a", alike)], tmp_path / "p3")


def test_one_training_token_is_nothing(tmp_path, prepare, list_source, prose):
    limits = {"a": SourceLimits(max_tokens=1)}
    with pytest.raises(DataError, match="nothing is left for training"):
        prepare([list_source("a", prose(30))], tmp_path / "p", limits=limits)


def test_near_duplicates_in_any_source_are_dropped(tmp_path, prepare, list_source, prose):
    texts = prose(40)
    long_ones = [text for text in texts if len(text.split()) > 20]
    alike = [text.upper() + " and one more" for text in long_ones]
    other = [f"{i} entirely other text about nothing at all" for i in range(10)]
    sources = [list_source("a", texts), list_source("b", [*alike, *other])]
    prepared = prepare(sources, tmp_path / "p", held_out_documents=10)
    held_out_a = (tmp_path / "p/held_out/a.jsonl").read_text()
    num_alike = sum(json.dumps(text)[1:-1] in held_out_a for text in long_ones)
    counts = prepared.manifest["sources"]["b"]["documents"]
    assert num_alike > 0
    assert counts["near_duplicate_of_held_out"] >= num_alike - counts["held_out"]


words = st.sampled_from(["w1", "W1,", "w2", "w3", "€4", "5"])
texts = st.lists(st.lists(words, min_size=1, max_size=20).map(" ".join), max_size=40)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts, texts, st.integers(1, 6), st.sampled_from([0.2, 0.5, 1.0]))
def test_no_text_on_both_sides(tmp_path_factory, prepare, list_source, document_texts, a, b, wanted, threshold):
    sources = [list_source("a", a), list_source("b", b)]
    try:
        prepared = prepare(
            sources,
            tmp_path_factory.mktemp("p"),
            held_out_documents=wanted,
            near_duplicate_threshold=threshold,
            limits={name: SourceLimits(min_characters=0) for name in "ab"},
        )
    except DataError:
        return
    held_out = [
        json.loads(line)["text"]
        for name in "ab"
        for line in (prepared.directory / f"held_out/{name}.jsonl").read_text().splitlines()
    ]
    train = document_texts(prepared.train).values()
    assert len({key(text) for text in held_out}) == len(held_out)
    assert not {key(text) for text in train} & {key(text) for text in held_out}
    index = HeldOutIndex(held_out, threshold=threshold)
    assert not any(index.match(text) for text in train)


def test_limits(tmp_path, prepare, list_source, prose):
    source = list_source("a", ["", *prose(100)])
    limits = {"a": SourceLimits(max_documents=50)}
    prepared = prepare([source], tmp_path / "p1", limits=limits)
    assert prepared.manifest["sources"]["a"]["documents"] == {
        "empty": 1,
        "kept": 46,
        "held_out": 4,
    }
    limits = {"a": SourceLimits(max_tokens=123)}
    prepared = prepare([source], tmp_path / "p2", limits=limits)
    assert sum(len(row["input_ids"]) for row in prepared.train) == 123
    assert prepared.manifest["sources"]["a"]["train_tokens"] == 123


def test_two_texts_of_one_source_share_held_out_documents_only(
    tmp_path, prepare, list_source, prose, document_texts
):
    source = list_source("a", ["", *prose(100)])
    first = prepare([source], tmp_path / "p1", limits={"a": SourceLimits(max_documents=40)}, held_out_documents=3)
    rest = prepare([source], tmp_path / "p2", limits={"a": SourceLimits(skip_documents=40)}, held_out_documents=3)
    whole = prepare([source], tmp_path / "p3", held_out_documents=3)
    assert rest.manifest["sources"]["a"]["documents"]["skipped"] >= 37  # held-out ones among the 40 count as such
    texts = [set(document_texts(part.train).values()) for part in (first, rest, whole)]
    assert texts[0] and texts[1] and not texts[0] & texts[1]
    assert texts[0] | texts[1] >= texts[2]
    held_out = [(part.directory / "held_out/a.jsonl").read_text() for part in (rest, whole)]
    assert held_out[0] == held_out[1]


def test_progress(tmp_path, prepare, list_source, prose, monkeypatch):
    monkeypatch.setattr("collegium.data.preparation._BATCH_DOCUMENTS", 10)
    seen = []
    limits = {"a": SourceLimits(max_tokens=10_000)}
    prepare([list_source("a", prose(60))], tmp_path / "p", limits=limits, on_progress=seen.append)
    assert [progress.documents for progress in seen] == [10, 20, 30, 40, 50, 60]
    assert all(p.source == "a" and p.tokens_total == 10_000 for p in seen)
    last = seen[-1]
    assert last.tokens_per_second == pytest.approx(last.tokens / last.seconds)
    assert last.seconds_left == pytest.approx((10_000 - last.tokens) / last.tokens_per_second)


def test_finished_folder_is_opened_without_reading(tmp_path, prepare, list_source, prose):
    prepare([list_source("a", prose(30))], tmp_path / "p")
    source = list_source("a", prose(30))
    prepared = prepare([source], tmp_path / "p")
    assert source.num_read == 0
    assert list(prepared.train) == list(PreparedText.load(tmp_path / "p").train)


@pytest.mark.parametrize("changed", ["source", "setting", "limits"])
def test_folder_of_another_text_is_refused(tmp_path, prepare, list_source, prose, changed):
    before = prepare([list_source("a", prose(30))], tmp_path / "p")
    texts = prose(31 if changed == "source" else 30)
    settings = {
        "source": {},
        "setting": {"block_size": 17},
        "limits": {"limits": {"a": SourceLimits(min_characters=17)}},
    }[changed]
    with pytest.raises(DataError, match=f"{before.fingerprint}.*give another data.directory"):
        prepare([list_source("a", texts)], tmp_path / "p", **settings)


def test_arguments_are_checked(tmp_path, prepare, list_source):
    with pytest.raises(ValueError, match="a name has letters"):
        prepare([list_source("../a", [])], tmp_path)
    with pytest.raises(ValueError, match="each a name of its own"):
        prepare([list_source("a", []), list_source("a", [])], tmp_path)
    with pytest.raises(ValueError, match="limits name \\['b'\\]"):
        prepare([list_source("a", [])], tmp_path, limits={"b": SourceLimits()})


def test_special_tokens_in_text_stay_text(tmp_path, prepare, list_source, prose):
    source = list_source("a", [f"</s> {text} <s>" for text in prose(30)])
    prepared = prepare([source], tmp_path / "p")
    assert not {0, 1} & {token for row in prepared.train for token in row["input_ids"]}


def test_line_of_ten_megabytes(tmp_path, prepare, monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    path = tmp_path / "d.txt"
    lines = ["one short document of text", "made of many words " * 530_000, "and another one of it"]
    path.write_text("\n".join(lines))
    prepared = prepare(
        [FileSource("a", str(path))],
        tmp_path / "p",
        block_size=1024,
        held_out_documents=1,
        blocks_per_shard=512,
    )
    num_bytes = sum(sum(row["segment_bytes"]) for row in prepared.train)
    if "made of" not in (tmp_path / "p/held_out/a.jsonl").read_text():
        assert num_bytes > 0.99 * len(lines[1])
    assert max(len(row["input_ids"]) for row in prepared.train) == 1024


def test_hub_layout_from_beginning_to_end(tmp_path, prepare, prose, document_texts):
    (tmp_path / "hub").mkdir()
    lines = [json.dumps({"text": text}) for text in prose(40)]
    (tmp_path / "hub/train-00000.jsonl").write_text("\n".join(lines))
    prepared = prepare([HubSource("a", str(tmp_path / "hub"))], tmp_path / "p")
    train = [*document_texts(prepared.train).values()]
    assert len(train) == 36
    assert train == [text for text in prose(40) if text in set(train)]


def test_a_shard_may_end_inside_a_document_with_bos_in_each_block(prepare, prose, list_source, tmp_path):
    texts = [" ".join(prose(8)), *prose(20)[8:]]
    text = prepare(
        [list_source("a", texts)], tmp_path / "p", add_bos=True, bos_at_segments=True, blocks_per_shard=2
    )
    assert len(list((tmp_path / "p/train").iterdir())) > 5
    assert {row["input_ids"][0] for row in text.train} == {0}

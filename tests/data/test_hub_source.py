"""Data sets in hub layout, streamed from a local folder; the hub itself is never reached."""

import gzip
import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from collegium.base.errors import DataError
from collegium.data.hub import HubRows, HubSource
from collegium.data.sources import FileSource


@pytest.fixture(params=["json.gz", "parquet"])
def hub_folder(request, tmp_path):
    """Two files of 40 documents, `train` and configuration `en` only."""
    (tmp_path / "en").mkdir()
    card = [
        "---",
        "configs:",
        "- config_name: en",
        "  data_files:",
        "  - split: train",
        "    path: en/train-*",
        "---",
    ]
    (tmp_path / "README.md").write_text("\n".join(card))
    for part in range(2):
        rows = [{"text": f"document {part} {i}", "url": "u"} for i in range(40)]
        path = tmp_path / f"en/train-0000{part}.{request.param}"
        if request.param == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=15)
        else:
            path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    return tmp_path


def texts_of(source):
    return [document.problem or document.text for document in source]


@pytest.mark.parametrize("streamed", [False, True])
def test_reads_and_resumes_after_any_document(hub_folder, monkeypatch, streamed):
    if streamed:
        monkeypatch.setattr(HubRows, "local_files", lambda self: None)
    expected = [f"document {part} {i}" for part in range(2) for i in range(40)]
    source = HubSource("c4", str(hub_folder), config="en")
    states = [source.state_dict()]
    for _ in source:
        states.append(json.loads(json.dumps(source.state_dict())))
    for num_read in (0, 1, 14, 15, 16, 39, 40, 41, 79, 80):
        resumed = HubSource("c4", str(hub_folder), config="en")
        resumed.load_state_dict(states[num_read])
        assert resumed.state_dict() == states[num_read]
        assert texts_of(resumed) == expected[num_read:]
    source.load_state_dict({})
    assert texts_of(source) == expected


BAD_ROWS = [
    {"text": "good"},
    {"text": None},
    {"text": "a\0b"},
    {"text": 7},
    {"body": "x"},
    {"text": "lone \ud800"},
]


def test_a_bad_row_is_treated_as_in_files(tmp_path):
    (tmp_path / "train.jsonl").write_text("\n".join([*map(json.dumps, BAD_ROWS), "{no json", "end of lines"]))
    hub = list(HubSource("d", str(tmp_path)))
    assert [d.problem for d in hub] == [
        None,
        "no_text",
        "nul",
        "no_text",
        "no_text",
        "invalid_utf8",
        "bad_json",
        "bad_json",
    ]
    assert [(d.problem, d.detail) for d in hub] == [
        (d.problem, d.detail) for d in FileSource("d", str(tmp_path / "train.jsonl"))
    ]


@pytest.mark.parametrize("streamed", [False, True])
def test_undecodable_bytes_in_parquet_spoil_only_their_row(tmp_path, monkeypatch, streamed):
    texts = pa.array([b"one", b"caf\xe9", None, b"two"]).view(pa.string())
    pq.write_table(pa.table({"text": texts, "other": [1, 2, 3, 4]}), tmp_path / "train.parquet")
    if streamed:
        monkeypatch.setattr(HubRows, "local_files", lambda self: None)
    assert texts_of(HubSource("d", str(tmp_path))) == ["one", "invalid_utf8", "no_text", "two"]
    with pytest.raises(DataError, match="source 'd':.* column 'other' holds int64, not text: change text_column"):
        texts_of(HubSource("d", str(tmp_path), text_column="other"))
    with pytest.raises(DataError, match="no column 'body'; there are text, other: set text_column to one of them"):
        texts_of(HubSource("d", str(tmp_path), text_column="body"))


@pytest.mark.parametrize("split", ["test", "train", "validation"])
def test_a_folder_of_save_to_disk(tmp_path, split):
    parts = {"train": ["one", "two"], "test": ["three"]}
    sets = {name: datasets.Dataset.from_dict({"text": texts}) for name, texts in parts.items()}
    datasets.DatasetDict(sets).save_to_disk(tmp_path / "sets")
    source = HubSource("d", str(tmp_path / "sets"), split=split)
    if split == "validation":
        with pytest.raises(
            DataError, match="no split 'validation'; there is train, test: set split to train or test"
        ):
            texts_of(source)
        return
    alone = HubSource("d", str(tmp_path / "sets" / split))
    assert texts_of(source) == texts_of(alone) == parts[split]
    assert texts_of(FileSource("d", str(tmp_path / "sets" / split))) == parts[split]
    assert source.fingerprint == HubSource("e", str(tmp_path / "sets"), split=split).fingerprint
    with pytest.raises(DataError, match=r"holds the splits train, test; give one, such as .*sets/train"):
        FileSource("d", str(tmp_path / "sets"))
    with pytest.raises(DataError, match="has no configurations: leave config out"):
        texts_of(HubSource("d", str(tmp_path / "sets" / split), config="en"))


def test_a_damaged_list_of_saved_files_is_refused(tmp_path):
    datasets.Dataset.from_dict({"text": ["one"]}).save_to_disk(tmp_path / "set")
    state = tmp_path / "set/state.json"
    whole = state.read_text()
    for content, message in {
        "{": "state.json is not that of `save_to_disk`",
        whole.replace("data-00000", "../data-00000"): "names files outside the folder",
        whole.replace(
            "data-00000", "data-00009"
        ): "data-00009-of-00001.arrow, which its state.json names, is not there",
    }.items():
        state.write_text(content)
        with pytest.raises(DataError, match=message):
            FileSource("d", str(tmp_path / "set"))


def test_a_position_of_an_earlier_version_is_refused(hub_folder, monkeypatch):
    old = {"commit": "c", "stream": {"examples_iterable": {"type": "ArrowExamplesIterable"}, "epoch": 0}}
    with pytest.raises(DataError, match="another version of collegium.*delete data.directory"):
        HubSource("c4", str(hub_folder), config="en").load_state_dict(old)
    monkeypatch.setattr(HubRows, "local_files", lambda self: None)
    source = HubSource("c4", str(hub_folder), config="en")
    source.load_state_dict(old)
    with pytest.raises(DataError, match="another version of collegium or datasets.*delete data.directory"):
        texts_of(source)


def test_fingerprint_is_of_the_files(hub_folder):
    before = HubSource("c4", str(hub_folder), config="en").fingerprint
    assert before == HubSource("other", str(hub_folder), config="en").fingerprint
    path = next(hub_folder.glob("en/*0.*"))
    path.write_bytes(path.read_bytes() + b" ")
    assert before != HubSource("c4", str(hub_folder), config="en").fingerprint


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"split": "test"}, "has no split 'test'; there is train: set split to train"),
        ({"config": "de"}, "config de.*'en'"),
    ],
)
def test_wrong_names_say_what_there_is(hub_folder, changed, message):
    source = HubSource("c4", str(hub_folder), **({"config": "en"} | changed))
    with pytest.raises(DataError, match=message):
        texts_of(source)


def test_offline_is_one_line_with_the_mend(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    source = HubSource("c4", "allenai/c4", config="en", split="train")
    assert source.fingerprint  # needs no network
    with pytest.raises(DataError) as caught:
        texts_of(source)
    message = str(caught.value)
    assert "\n" not in message
    for part in ("'c4'", "allenai/c4", "config en", "HF_HUB_OFFLINE", "local folder", "files"):
        assert part in message


def test_missing_folder(tmp_path):
    with pytest.raises(DataError, match="none.*could not be read"):
        texts_of(HubSource("d", str(tmp_path / "none")))


def test_damaged_file_names_the_source(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(DataError, match="source 'd'"):
        texts_of(HubSource("d", str(tmp_path)))


def test_resumed_source_reads_the_commit_it_began_with(monkeypatch):
    asked = []

    def refuse(dataset, config, *, revision):
        asked.append(revision)
        raise ConnectionError("no network in tests")

    monkeypatch.setattr(datasets, "load_dataset_builder", refuse)
    source = HubSource("c4", "allenai/c4", revision="main")
    source.load_state_dict({"commit": "abc123", "stream": {}})
    with pytest.raises(DataError):
        texts_of(source)
    assert asked == ["abc123"]

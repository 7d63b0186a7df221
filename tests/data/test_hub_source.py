"""Data sets in hub layout, streamed from a local folder; the hub itself is never reached."""

import gzip
import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from collegium.base.errors import DataError
from collegium.data.hub import HubSource


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


def test_streams_and_resumes_after_any_document(hub_folder):
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


def test_rows_without_usable_text(tmp_path):
    rows = [{"text": "good"}, {"text": None}, {"text": "a\0b"}]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert texts_of(HubSource("d", str(tmp_path))) == ["good", "no_text", "nul"]


def test_fingerprint_is_of_the_files(hub_folder):
    before = HubSource("c4", str(hub_folder), config="en").fingerprint
    assert before == HubSource("other", str(hub_folder), config="en").fingerprint
    path = next(hub_folder.glob("en/*0.*"))
    path.write_bytes(path.read_bytes() + b" ")
    assert before != HubSource("c4", str(hub_folder), config="en").fingerprint


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"text_column": "body"}, "no column 'body'.*text"),
        ({"split": "test"}, "split test.*Available splits"),
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

"""Files of every kind, good and bad: what documents come out, and that reading resumes."""

import gzip
import json
import re
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collegium.base.errors import DataError
from collegium.data.documents import cut_text
from collegium.data.readers import read_separated
from collegium.data.sources import FileSource


def texts_of(source):
    return [document.problem or document.text for document in source]


def write(path: Path, content: bytes) -> str:
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return str(path)


@pytest.mark.parametrize("ending", [".txt", ".md", ".utf8", ".txt.gz", ""])
def test_lines_are_documents(tmp_path, ending):
    path = write(tmp_path / f"text{ending}", "one\r\ntwo äöü\n\nthree".encode())
    assert texts_of(FileSource("d", path)) == ["one", "two äöü", "", "three"]


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".ndjson", ".jsonl.gz", ".json.gz"])
def test_json_lines(tmp_path, ending):
    lines = [
        json.dumps({"body": "first\nparagraph", "other": 1}),
        '{"body": "second',
        "",
        json.dumps({"text": "no body"}),
        json.dumps(["no object"]),
        json.dumps({"body": None}),
        json.dumps({"body": "a\0b"}),
        '{"body": "lone \\ud800 surrogate"}',
        '{"body": "paired \\ud83d\\ude00"}',
        "[" * 100_000,
    ]
    path = write(tmp_path / f"d{ending}", "\n".join(lines).encode())
    assert texts_of(FileSource("d", path, text_column="body")) == [
        "first\nparagraph",
        "bad_json",
        "",
        "no_text",
        "no_text",
        "no_text",
        "nul",
        "invalid_utf8",
        "paired 😀",
        "bad_json",
    ]


@pytest.mark.parametrize("documents", ["line", "separator"])
def test_bad_bytes_spoil_only_their_document(tmp_path, documents):
    path = write(tmp_path / "d.txt", b"good\nbad \xff\xfe\ncut \xe2\x82\nnul \0\nalso good \xe2\x82\xac")
    separator = "\n" if documents == "separator" else None
    source = FileSource("d", path, documents=documents, separator=separator)
    assert texts_of(source) == ["good", "invalid_utf8", "invalid_utf8", "nul", "also good €"]


@pytest.mark.parametrize("documents", ["line", "file"])
def test_byte_order_mark_is_dropped_at_the_start_only(tmp_path, documents):
    path = write(tmp_path / "d.txt", b"\xef\xbb\xbfone \xef\xbb\xbf two")
    assert texts_of(FileSource("d", path, documents=documents)) == ["one \ufeff two"]


@pytest.mark.parametrize("documents", ["line", "file"])
def test_empty_file_has_no_documents(tmp_path, documents):
    assert texts_of(FileSource("d", write(tmp_path / "d.txt", b""), documents=documents)) == []


def test_whole_files_in_the_order_of_their_names(tmp_path):
    for name in ("b", "a", "c"):
        write(tmp_path / f"{name}.txt", f"{name}\n{name}".encode())
    source = FileSource("d", f"{tmp_path}/*.txt", documents="file")
    assert texts_of(source) == ["a\na", "b\nb", "c\nc"]


def test_separator_that_matches_nothing_is_refused(tmp_path):
    path = write(tmp_path / "d.txt", b"abc")
    with pytest.raises(DataError, match="must match at least one character"):
        texts_of(FileSource("d", path, documents="separator", separator="x*"))


@settings(deadline=None)
@given(st.lists(st.text("ab =\n€", max_size=40), min_size=1, max_size=30))
def test_separated_equals_split_of_the_whole_from_any_document(tmp_path_factory, parts):
    content = "\n====\n".join(parts)
    path = tmp_path_factory.mktemp("d") / "d.txt"
    path.write_text(content, newline="")
    separator = re.compile("\n=+\n")
    expected = separator.split(content)
    if expected[-1] == "":
        expected.pop()
    with path.open("rb") as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr("collegium.data.readers._CHUNK_SIZE", 7)
        patch.setattr("collegium.data.readers._LOOKAHEAD", 60)
        found = list(read_separated(file, 0, separator=separator))
        resumed = [list(read_separated(file, end, separator=separator)) for _, end in found]
    assert [document.text for document, _ in found] == expected
    assert [[d.text for d, _ in rest] for rest in resumed] == [expected[i + 1 :] for i in range(len(found))]


@pytest.mark.parametrize("before", range(65_530, 65_540))
def test_separator_is_matched_as_a_whole_at_the_end_of_a_chunk(tmp_path, before):
    path = write(tmp_path / "d.txt", b"a" * before + b"====" + b"b")
    source = FileSource("d", path, documents="separator", separator="=+")
    assert texts_of(source) == ["a" * before, "b"]


def test_long_documents_are_cut_between_words(tmp_path):
    content = " ".join(f"word{i}" for i in range(2000))
    path = tmp_path / "d.txt"
    path.write_text(content)
    with path.open("rb") as file:
        documents = [d.text for d, _ in read_separated(file, 0, separator=None, limit=1000)]
    assert "".join(documents) == content
    assert all(len(document) <= 1000 for document in documents)
    assert all(document.startswith(" ") for document in documents[1:])


@settings(deadline=None)
@given(st.text(" \n\tabé", max_size=300), st.integers(1, 50))
def test_pieces_are_the_text(text, limit):
    pieces = list(cut_text(text, limit))
    assert "".join(pieces) == text
    assert all(0 < len(piece) <= limit for piece in pieces) or text == ""


def test_line_of_ten_megabytes(tmp_path):
    line = "some words of text " * 550_000
    path = write(tmp_path / "d.txt", f"first\n{line}\nlast".encode())
    started = time.monotonic()
    assert texts_of(FileSource("d", path)) == ["first", line, "last"]
    assert time.monotonic() - started < 5


def test_line_above_the_limit_is_cut(tmp_path, monkeypatch):
    monkeypatch.setattr("collegium.data.readers.MAX_DOCUMENT_SIZE", 100)
    line = "€uro und " * 50
    path = write(tmp_path / "d.txt", f"first\n{line}\n{'ü' * 150}\nlast".encode())
    texts = texts_of(FileSource("d", path))
    assert "".join(texts) == "first" + line + "ü" * 150 + "last"
    assert max(len(text.encode()) for text in texts) <= 100


@pytest.mark.parametrize(("documents", "complete"), [("line", 900), ("separator", 900)])
def test_truncated_gzip_gives_what_lies_before_and_goes_on(tmp_path, documents, complete):
    lines = [f"{i} {hash(str(i))}" for i in range(1000)]
    whole = gzip.compress("\n".join(lines).encode())
    (tmp_path / "a.txt.gz").write_bytes(whole[: len(whole) * 19 // 20])
    write(tmp_path / "b.txt.gz", b"next file")
    separator = "\n" if documents == "separator" else None
    source = FileSource("d", f"{tmp_path}/*.gz", documents=documents, separator=separator)
    *texts, problem, last = texts_of(source)
    assert texts == lines[: len(texts)]
    assert len(texts) > complete
    assert (problem, last) == ("truncated", "next file")


def test_damaged_gzip(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(b"this is not gzip \xff\0")
    write(tmp_path / "b.txt", b"next file")
    assert texts_of(FileSource("d", f"{tmp_path}/*")) == ["damaged", "next file"]


def test_parquet(tmp_path):
    broken = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(bytes([0, 0, 0, 0, 1, 0, 0, 0])), pa.py_buffer(b"\xff")]
    )
    texts = pa.concat_arrays([pa.array([f"text {i}" for i in range(700)] + [None]), broken])
    pq.write_table(pa.table({"text": texts}), tmp_path / "d.parquet", row_group_size=100)
    expected = [f"text {i}" for i in range(700)] + ["no_text", "invalid_utf8"]
    assert texts_of(FileSource("d", str(tmp_path / "d.parquet"))) == expected


def test_parquet_without_the_column_names_those_it_has(tmp_path):
    pq.write_table(pa.table({"a": ["x"], "b": [1]}), tmp_path / "d.parquet")
    with pytest.raises(DataError, match=r"d\.parquet.*no column 'text'.*a, b"):
        texts_of(FileSource("d", str(tmp_path / "d.parquet")))
    with pytest.raises(DataError, match="column 'b' holds int64, not text"):
        texts_of(FileSource("d", str(tmp_path / "d.parquet"), text_column="b"))


def test_damaged_parquet(tmp_path):
    path = write(tmp_path / "d.parquet", b"PAR1 nothing PAR1")
    with pytest.raises(DataError, match=r"d\.parquet: cannot be read"):
        texts_of(FileSource("d", path))


def test_missing_file_folder_and_package(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        FileSource("d", str(tmp_path / "none.txt"))
    with pytest.raises(DataError, match=r"is a folder; give its files"):
        FileSource("d", str(tmp_path))
    with pytest.raises(DataError, match="pip install --no-deps no-such-package"):
        FileSource("d", "package:no-such-package/a.txt")
    with pytest.raises(DataError, match="package:NAME/FILE"):
        FileSource("d", "package:numpy")


@pytest.mark.parametrize("name", ["a_package", "with-dashes"])
def test_package_is_found_without_importing_it(tmp_path, monkeypatch, name):
    (tmp_path / name / "texts").mkdir(parents=True)
    (tmp_path / name / "__init__.py").write_text("raise RuntimeError('imported')")
    write(tmp_path / name / "texts/a.txt", b"inside")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert texts_of(FileSource("d", f"package:{name}/texts/a.txt")) == ["inside"]
    assert texts_of(FileSource("d", f"package:{name}/texts/*.txt")) == ["inside"]
    assert name not in sys.modules


def make_files(folder: Path) -> dict[str, dict[str, str]]:
    """Arguments of one source of each kind, of two files each."""
    for part in ("1", "2"):
        lines = [f"document {part} {i} äöü" for i in range(60)]
        write(folder / f"{part}.txt", b"\xef\xbb\xbf" + "\n".join(lines).encode())
        write(folder / f"{part}.txt.gz", "\n".join(lines).encode())
        write(folder / f"{part}.sep", "\n--\n".join(lines).encode())
        write(folder / f"{part}.jsonl", "\n".join(json.dumps({"text": x}) for x in lines).encode())
        pq.write_table(pa.table({"text": lines}), folder / f"{part}.parquet", row_group_size=7)
    separated = {"documents": "separator", "separator": "\n-+\n"}
    return {
        "lines": {"path": f"{folder}/*.txt"},
        "gzip": {"path": f"{folder}/*.gz"},
        "separator": {"path": f"{folder}/*.sep", **separated},
        "jsonl": {"path": f"{folder}/*.jsonl"},
        "parquet": {"path": f"{folder}/*.parquet"},
    }


@pytest.mark.parametrize("kind", ["lines", "gzip", "separator", "jsonl", "parquet"])
def test_resumes_after_every_document(tmp_path, kind):
    arguments = make_files(tmp_path)[kind]
    expected = texts_of(FileSource("d", **arguments))
    assert len(expected) == 120
    source = FileSource("d", **arguments)
    states = [source.state_dict()]
    for _ in source:
        states.append(json.loads(json.dumps(source.state_dict())))
    for num_read in (0, 1, 6, 7, 8, 59, 60, 61, 113, 120):
        resumed = FileSource("d", **arguments)
        resumed.load_state_dict(states[num_read])
        assert texts_of(resumed) == expected[num_read:]
    source.load_state_dict({})
    assert texts_of(source) == expected


def test_fingerprint_is_of_content_and_options_not_of_place(tmp_path):
    (tmp_path / "a").mkdir()
    here = FileSource("d", write(tmp_path / "1.txt", b"text"))
    there = FileSource("e", write(tmp_path / "a/2.txt", b"text"))
    other = FileSource("d", write(tmp_path / "a/3.txt", b"TEXT"))
    whole = FileSource("d", str(tmp_path / "1.txt"), documents="file")
    assert here.fingerprint == there.fingerprint
    assert len({here.fingerprint, other.fingerprint, whole.fingerprint}) == 3


def test_fingerprint_of_a_large_file_sees_size_and_samples(tmp_path):
    content = bytearray(b"x" * 9 * 2**20)
    seen = {FileSource("d", write(tmp_path / "0.txt", bytes(content))).fingerprint}
    for place in (0, len(content) // 2, len(content) - 1):
        content[place] = ord("y")
        seen.add(FileSource("d", write(tmp_path / f"{place}.txt", bytes(content))).fingerprint)
    seen.add(FileSource("d", write(tmp_path / "longer.txt", bytes(content) + b"y")).fingerprint)
    assert len(seen) == 5


def test_separator_goes_with_its_option(tmp_path):
    path = write(tmp_path / "d.txt", b"text")
    with pytest.raises(ValueError, match="only with it"):
        FileSource("d", path, separator="x")
    with pytest.raises(ValueError, match="only with it"):
        FileSource("d", path, documents="separator")

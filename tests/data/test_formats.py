"""The same rows in every container give the same text; what is not read is refused by its name."""

import bz2
import csv
import gzip
import io
import json
import lzma
import pickle
import tarfile
import zipfile
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collegium.base.errors import DataError
from collegium.data.compression import COMPRESSIONS
from collegium.data.formats import ENDINGS, REFUSED
from collegium.data.sources import FileSource


COMPRESS = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": lambda content: pa.compress(content, codec="zstd", asbytes=True),
    "lz4": lambda content: pa.compress(content, codec="lz4", asbytes=True),
}


def delimited(texts: list[str], delimiter: str) -> bytes:
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=delimiter)
    writer.writerows([["id", "text", "label"], *([i, text, "x"] for i, text in enumerate(texts))])
    return file.getvalue().encode()


def parquet(column: pa.Array, **options: int) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"id": pa.array(range(len(column))), "text": column}), sink, **options)
    return sink.getvalue()


def arrow(texts: list[str], new: type) -> bytes:
    table = pa.table({"text": texts, "id": range(len(texts))})
    sink = io.BytesIO()
    with new(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    return sink.getvalue()


def rows_of(texts: list[str]) -> list[dict]:
    return [{"id": i, "text": text, "more": {"a": [1, "]"]}} for i, text in enumerate(texts)]


CONTAINERS = {
    "a.jsonl": lambda t: "\n".join(map(json.dumps, rows_of(t))).encode(),
    "a.json": lambda t: json.dumps(rows_of(t)).encode(),
    "indented.json": lambda t: b"\xef\xbb\xbf" + json.dumps(rows_of(t), indent=2, ensure_ascii=False).encode(),
    "lines.json": lambda t: "\r\n".join(map(json.dumps, rows_of(t))).encode(),
    "array.txt": lambda t: json.dumps(rows_of(t)).encode(),
    "rows.txt": lambda t: "\n".join(map(json.dumps, rows_of(t))).encode(),
    "a.csv": lambda t: delimited(t, ","),
    "semicolons.csv": lambda t: b"\xef\xbb\xbf" + delimited(t, ";"),
    "a.tsv": lambda t: delimited(t, "\t"),
    "a.arrow": lambda t: arrow(t, pa.ipc.new_file),
    "stream.arrow": lambda t: arrow(t, pa.ipc.new_stream),
    "a.parquet": lambda t: parquet(pa.array(t, pa.string()), row_group_size=7),
    "parquet.txt": lambda t: parquet(pa.array(t, pa.string())),
    "dictionary.parquet": lambda t: parquet(pa.array(t, pa.string()).dictionary_encode()),
    "large.parquet": lambda t: parquet(pa.array(t, pa.large_string())),
    "view.parquet": lambda t: parquet(pa.array(t, pa.string_view())),
}


def texts_of(source: FileSource) -> list[str | None]:
    return [document.problem or document.text for document in source]


def written(folder: Path, name: str, content: bytes) -> str:
    (folder / name).write_bytes(content)
    return str(folder / name)


TEXTS = [f'document {i}, with a "quote", a comma,\nand a second line; äöü\t{"long " * (i % 9)}' for i in range(60)]


@settings(deadline=None, max_examples=25)
@given(
    st.lists(
        st.text("ab ,;\t\"'\n{}[]\\é漢🙂", min_size=1, max_size=30).filter(str.strip), min_size=1, max_size=12
    )
)
def test_every_container_holds_the_same_documents(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("d")
    for name, content in CONTAINERS.items():
        assert texts_of(FileSource("d", written(folder, name, content(texts)))) == texts, name


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.arrow"])
def test_compressed_with_and_without_the_ending(tmp_path, name, compression):
    content = COMPRESS[compression](CONTAINERS[name](TEXTS))
    ending = COMPRESSIONS[compression][0]
    for named in (f"{name}{ending}", name):
        assert texts_of(FileSource("d", written(tmp_path, named, content))) == TEXTS


def test_several_members_in_one_compressed_file(tmp_path):
    for compression, compress in COMPRESS.items():
        path = written(tmp_path, f"{compression}.txt", compress(b"one\ntw") + compress(b"o\nthree"))
        assert texts_of(FileSource("d", path)) == ["one", "two", "three"], compression


@pytest.mark.parametrize("compression", COMPRESS)
def test_cut_and_damaged_compressed_files(tmp_path, compression):
    lines = [f"{i} {hash(str(i))}" for i in range(5000)]
    whole = COMPRESS[compression]("\n".join(lines).encode())
    source = FileSource("d", written(tmp_path, "cut.txt", whole[: len(whole) * 19 // 20]))
    *texts, problem = texts_of(source)
    assert texts == lines[: len(texts)] and problem in ("truncated", "damaged")
    damaged = bytearray(whole)
    damaged[len(whole) // 2 : len(whole) // 2 + 64] = b"\x55" * 64
    assert texts_of(FileSource("d", written(tmp_path, "bad.txt", bytes(damaged)))) != lines


def test_a_plain_file_with_the_ending_of_a_compression_is_read(tmp_path):
    assert texts_of(FileSource("d", written(tmp_path, "a.txt.gz", b"one\ntwo"))) == ["one", "two"]
    assert texts_of(FileSource("d", written(tmp_path, "a.jsonl.zst", b'{"text": "one"}'))) == ["one"]
    assert texts_of(FileSource("d", written(tmp_path, "a.parquet.gz", CONTAINERS["a.parquet"](TEXTS)))) == TEXTS


@pytest.mark.parametrize(
    "name", [*CONTAINERS, "a.jsonl.zst", "a.json.bz2", "a.csv.xz", "a.arrow.gz", "a.parquet.zst"]
)
def test_every_container_resumes_after_any_document(tmp_path, name):
    inner, _, ending = name.rpartition(".")
    compression = next((c for c, (e, _) in COMPRESSIONS.items() if e == f".{ending}"), None)
    content = CONTAINERS[inner if compression else name]
    compress = COMPRESS[compression] if compression else bytes
    folder = tmp_path / "files"
    folder.mkdir()
    for part in range(2):
        written(folder, f"{part}.{name}", compress(content(TEXTS[part * 30 : part * 30 + 30])))
    source = FileSource("d", f"{folder}/*")
    states = [source.state_dict()]
    for _ in source:
        states.append(json.loads(json.dumps(source.state_dict())))
    for num_read in (0, 1, 6, 7, 8, 29, 30, 31, 59, 60):
        resumed = FileSource("d", f"{folder}/*")
        resumed.load_state_dict(states[num_read])
        assert texts_of(resumed) == TEXTS[num_read:]


def test_prepared_text_is_the_same_from_every_container(tmp_path, prepare, prose, folder_content):
    contents = []
    for name in ("a.jsonl", "a.json", "a.csv", "a.tsv", "a.arrow", "dictionary.parquet"):
        path = written(tmp_path, name, CONTAINERS[name](prose(80)))
        prepare([FileSource("a", path)], tmp_path / f"p-{name}")
        contents.append({k: v for k, v in folder_content(tmp_path / f"p-{name}").items() if k != "manifest.json"})
    assert len(contents[0]) > 2 and all(content == contents[0] for content in contents)


def test_empty_files_hold_nothing(tmp_path):
    for name in ("a.txt", "a.jsonl", "a.csv", "a.json", "b.gz"):
        assert texts_of(FileSource("d", written(tmp_path, name, b""))) == [], name
    assert texts_of(FileSource("d", written(tmp_path, "array.json", b" [ ] "))) == []
    assert texts_of(FileSource("d", written(tmp_path, "header.csv", b"id,text\n"))) == []


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize(
    "text", ["plain words\nand more\n" * 50, "漢字と仮名の文 です。\n" * 40, "Привет, мир\n" * 40]
)
def test_other_unicode_encodings_are_named(tmp_path, encoding, text):
    for name in ("a.txt", "a.jsonl", "a.csv"):
        with pytest.raises(DataError, match=rf"{name}: is {encoding[:6].upper()}.*UTF-8.*iconv"):
            texts_of(FileSource("d", written(tmp_path, name, text.encode(encoding))))


@settings(deadline=None)
@given(st.binary(max_size=40), st.integers(0, 1000))
def test_damage_in_text_is_no_encoding(tmp_path_factory, noise, place):
    content = b"some words of a text that is UTF-8\n" * 40
    path = written(tmp_path_factory.mktemp("d"), "a.txt", content[:place] + noise + content[place:])
    texts = texts_of(FileSource("d", path))
    assert texts.count("some words of a text that is UTF-8") >= 38 - noise.count(b"\n")


def archive(kind: str) -> bytes:
    sink = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(sink, "w") as file:
            file.writestr("a.txt", "text")
    else:
        with tarfile.open(fileobj=sink, mode="w") as file:
            file.addfile(tarfile.TarInfo("a.txt"))
    return sink.getvalue()


REFUSALS = {
    "a zip archive": archive("zip"),
    "a tar archive": archive("tar"),
    "a pickle": pickle.dumps({"text": ["a"]}),
    "PDF": b"%PDF-1.7\n",
    "a SQLite database": b"SQLite format 3\0....",
    "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n",
    "compressed twice": gzip.compress(b"text"),
}


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet", "a.txt.gz"])
@pytest.mark.parametrize("refused", REFUSALS)
def test_other_formats_are_refused_by_name(tmp_path, refused, name):
    content = REFUSALS[refused]
    if name.endswith(".gz") or refused == "compressed twice":
        content = gzip.compress(content)
    with pytest.raises(DataError, match=f"{name}: is {refused}"):
        texts_of(FileSource("d", written(tmp_path, name, content)))


def test_every_refused_format_is_recognised(tmp_path):
    for what, beginnings in REFUSED.items():
        for place, mark in beginnings:
            path = written(tmp_path, "a.txt", b"\0" * place + mark + b"rest" * 99)
            with pytest.raises(DataError) as caught:
                texts_of(FileSource("d", path))
            assert f"is {what}" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.parquet", b'{"text": "a"}', r'is not Parquet, though it is called that: it begins {"text": "a"}'),
        ("a.arrow", b"text", "is not Arrow, though it is called that"),
        ("a.json", b'[{"text": "a"}, {"text": ]', r'not a whole JSON array: at byte 16 there is {"text": \]'),
        ("a.json", b'[{"text": "a"}, {"text": "b', "not a whole JSON array: at byte 16"),
        ("a.json", b'[{"text": "a"} {"text": "b"}]', "where , is expected"),
        ("a.jsonl", b'["a"]\n["b"]\n', r'more follows the array at byte 6: \["b"\]⏎; rows must be objects'),
        ("a.csv", b"1,hello\n2,world\n", "no column 'text'; there are 1, hello.*the header, is 1,hello"),
        ("a.arrow", b"\xff\xff\xff\xff\x10\0\0\0rest", "cannot be read"),
        ("a.arrow", b"ARROW1\0\0rest", "cannot be read"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path, name, content, message):
    with pytest.raises(DataError, match=message):
        texts_of(FileSource("d", written(tmp_path, name, content)))


def test_a_format_that_was_asked_for_is_not_another(tmp_path):
    path = written(tmp_path, "a.txt", CONTAINERS["a.parquet"](TEXTS))
    with pytest.raises(DataError, match="is Parquet, not text: set format to parquet or leave it out"):
        texts_of(FileSource("d", path, format="text"))
    path = written(tmp_path, "b.txt", CONTAINERS["a.jsonl"](TEXTS))
    assert texts_of(FileSource("d", path, format="text"))[0] == json.dumps(rows_of(TEXTS)[0])
    path = written(tmp_path, "c.txt", delimited(TEXTS, ","))
    assert texts_of(FileSource("d", path, format="csv")) == TEXTS


BAD_ROWS = [
    ("a.jsonl", '{"messages": []}', "line 2: there is no key 'text'; there are messages: 'messages' are chats"),
    (
        "a.jsonl",
        '{"body": "a", "n": 1}',
        "line 2: there is no key 'text'; there are body, n: set text_column to one",
    ),
    ("a.jsonl", '{"text": null}', "line 2: 'text' is null, not text; it reads {\"text\": null}"),
    ("a.jsonl", '{"text": 7}', "line 2: 'text' is the number 7, not text"),
    ("a.jsonl", '{"text": "a"},', "line 2: a comma follows the object"),
    ("a.jsonl", '{"text": "a"', "line 2: this is not JSON: Expecting ',' delimiter at character 13"),
    ("a.jsonl", "{", "line 2: the object goes on in the next line"),
    ("a.jsonl", "[1]", "line 2: this is not an object with keys; it reads [1]"),
    (
        "a.jsonl",
        '{"body": "\x1b[31m\x07"}',
        'line 2: this is not JSON: Invalid control character at character 11; it reads {"body": "⟨U+001B⟩[31m',
    ),
    ("a.txt", "a\0b", "line 2: there is a zero byte, which no text has; it reads a⟨U+0000⟩b"),
    ("a.csv", "1,hello, world", "line 3: there are 3 cells, and the header has 2; it reads 1,hello, world"),
]


@pytest.mark.parametrize(("name", "line", "detail"), BAD_ROWS)
def test_the_first_bad_row_is_shown_where_it_is(tmp_path, prepare, name, line, detail):
    header, good = {"a.jsonl": ("", '{"text": "good words"}\n'), "a.txt": ("", "good words\n")}.get(
        name, ("id,text\n", "0,good words\n")
    )
    path = written(tmp_path, name, f"{header}{good}{line}\n{good}{line}\n{good}".encode())
    documents = list(FileSource("d", path))
    assert [d.text for d in documents if d.problem is None] == ["good words"] * 3
    assert f"{name}, {detail}" in next(d.detail for d in documents if d.problem)
    with pytest.raises(DataError) as caught:
        prepare([FileSource("d", path)], tmp_path / "p")
    assert f"2 of 5 documents cannot be read (2 {documents[1].problem})" in str(caught.value)
    assert f"The first {documents[1].problem} is in {name}, {detail}" in str(caught.value)


def test_columns_may_hold_nothing_and_schemas_may_drift(tmp_path):
    pq.write_table(pa.table({"text": ["one"], "a": [1]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"b": ["x"], "text": pa.array(["two"], pa.large_string())}), tmp_path / "2.parquet")
    pq.write_table(pa.table({"text": pa.nulls(1), "a": ["x"]}), tmp_path / "3.parquet")
    pq.write_table(pa.table({"text": pa.array([b"four"])}), tmp_path / "4.parquet")
    assert texts_of(FileSource("d", f"{tmp_path}/*.parquet")) == ["one", "two", "no_text", "four"]


def test_a_null_prompt_is_none(tmp_path):
    rows = [{"input": None, "text": "one"}, {"input": "a ", "text": "two"}, {"input": "", "text": "three"}]
    for name, content in {
        "a.jsonl": "\n".join(map(json.dumps, rows)).encode(),
        "a.json": json.dumps(rows).encode(),
    }.items():
        path = written(tmp_path, name, content)
        assert texts_of(FileSource("d", path, prompt_column="input")) == ["one", "a two", "three"]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert texts_of(FileSource("d", str(tmp_path / "a.parquet"), prompt_column="input")) == [
        "one",
        "a two",
        "three",
    ]


def test_fingerprints_of_what_was_always_read_stay_and_others_differ(tmp_path, monkeypatch):
    """Text that was prepared before is not prepared again; what was read in another way is."""
    kept = {name: FileSource("d", written(tmp_path, name, b"one\n")) for name in ("a.txt", "a.jsonl", "a.none")}
    other = {name: FileSource("d", written(tmp_path, name, b"text\none\n")) for name in ("a.csv", "a.tsv")}
    before = {name: source.fingerprint for name, source in (kept | other).items()}
    monkeypatch.setattr(FileSource, "_recognised_unlike_before", lambda self: [])
    for name in kept | other:
        again = FileSource("d", str(tmp_path / name)).fingerprint
        assert (again == before[name]) == (name in kept), name


def test_long_elements_of_an_array_and_its_borders(tmp_path, monkeypatch):
    monkeypatch.setattr("collegium.data.json_array._CHUNK_SIZE", 5)
    texts = ["a" * 300, "12", "é" * 40, "[]{},"]
    path = written(
        tmp_path, "a.json", json.dumps([{"text": t, "n": 123} for t in texts], ensure_ascii=False).encode()
    )
    assert texts_of(FileSource("d", path)) == texts


def test_a_quote_without_an_end_takes_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("collegium.data.delimited.MAX_JSON_LINE", 200)
    lines = ["id,text", '1,"open', *(f"{i},fine {i}" for i in range(60))]
    path = written(tmp_path, "a.csv", "\n".join(lines).encode())
    first, *others = FileSource("d", path)
    assert (
        first.problem == "bad_row" and 'a.csv, line 2: a quote is never closed; it reads 1,"open' in first.detail
    )
    assert [document.text for document in others] == [f"fine {i}" for i in range(60)]


def test_the_page_lists_the_formats():
    page = (Path(__file__).parents[2] / "docs" / "text.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    for format, endings in ENDINGS.items():
        (row,) = [row for row in rows if row.startswith(f"| `{format}` |")]
        assert all(f"`{ending}`" in row for ending in endings), format
    for compression, (ending, _) in COMPRESSIONS.items():
        assert any(row.startswith(f"| {compression} | `{ending}` |") for row in rows), compression
    for what in REFUSED:
        assert what in page, what


def test_saved_sets_are_read_as_files(tmp_path):
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(tmp_path / "set", num_shards=3)
    source = FileSource("d", str(tmp_path / "set"))
    assert texts_of(source) == TEXTS and len(source.files) == 3

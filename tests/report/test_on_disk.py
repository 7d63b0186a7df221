"""References as others may read them, and licences from cards on this machine; the network is never asked."""

from pathlib import Path

import pytest

from collegium.report.card import on_disk
from collegium.report.card.on_disk import (
    licence_on_disk,
    origin_of,
    resolved_revision,
    shown_path,
    shown_reference,
    stated_licence,
)


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("reference", "origin", "shown"),
    [
        ("HuggingFaceTB/SmolLM2-135M", "hub", "HuggingFaceTB/SmolLM2-135M"),
        ("gpt2", "hub", "gpt2"),
        ("package:a_package/w.gguf", "package", "package:a_package/w.gguf"),
        ("/home/someone/models/mine/", "local", "mine"),
        ("../secret/models/mine", "local", "mine"),
        ("~/models/mine", "local", "mine"),
        ("runs/families/models/x.gguf", "local", "x.gguf"),
        ("a/b/c", "local", "c"),
        ("a--b/c", "local", "c"),
        ("/", "local", "local folder"),
    ],
)
def test_no_path_of_this_machine_is_shown(reference, origin, shown):
    assert (origin_of(reference), shown_reference(reference)) == (origin, shown)


def test_what_looks_like_an_id_but_is_a_folder_here_is_local(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert origin_of("adapters/legal") == "hub"
    (tmp_path / "adapters" / "legal").mkdir(parents=True)
    assert (origin_of("adapters/legal"), shown_reference("adapters/legal")) == ("local", "legal")
    assert shown_path("texts/*.jsonl.gz") == "*.jsonl.gz" and shown_path(r"C:\texts\a.txt") == "a.txt"


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        ("---\nlicense: apache-2.0\n---\n# A\n", "apache-2.0"),
        ("---\r\nlicense: mit\r\n---\r\n", "mit"),
        ("---\nlicense: [odc-by, mit]\n---\n", "odc-by, mit"),
        ("---\nlicense: other\nlicense_name: my-terms\n---\n", "my-terms"),
        ("---\nlicense: other\n---\n", "other"),
        ("---\nlicense: 3\n---\n", None),
        ("---\nlicense: {a: b}\n---\n", None),
        ("---\nlicense: !!python/object/apply:os.system ['true']\n---\n", None),
        ("---\nlicense: a\nlicense: b\n---\n", None),
        ("---\n- license\n---\n", None),
        ("---\nlicense: mit\n", None),
        ("# license: mit\n", None),
        ("---\nlicense: 'a\n\n  b'\n---\n", "a b"),
    ],
)
def test_licence_of_a_card(tmp_path, text, licence):
    path = tmp_path / "README.md"
    path.write_bytes(text.encode())
    assert stated_licence(path) == licence
    assert licence_on_disk("./model", str(tmp_path)) == licence
    assert licence_on_disk("./model/x.gguf", str(tmp_path / "x.gguf")) == licence


def test_a_card_that_is_none(tmp_path):
    assert stated_licence(tmp_path / "README.md") is None
    (tmp_path / "README.md").write_bytes(b"---\nlicense: \xff\xfe\n---\n")
    assert stated_licence(tmp_path / "README.md") is None


def hub_cache(root: Path, repo: str, files: dict[str, str]) -> None:
    """A repository in a local cache of the hub, as huggingface_hub lays it out."""
    folder = root / f"models--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    for name, text in files.items():
        path = folder / "snapshots" / COMMIT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_the_local_cache_of_the_hub_is_read(tmp_path, monkeypatch):
    hub_cache(tmp_path, "someone/model", {"config.json": "{}", "README.md": "---\nlicense: gemma\n---\n"})
    read = on_disk.try_to_load_from_cache
    monkeypatch.setattr(
        on_disk, "try_to_load_from_cache", lambda *args, **rest: read(*args, cache_dir=tmp_path, **rest)
    )
    assert licence_on_disk("someone/model", "someone/model") == "gemma"
    assert resolved_revision("someone/model", None) == COMMIT
    assert resolved_revision("someone/model", "main") == COMMIT
    assert resolved_revision("someone/model", "other") == "other"
    assert resolved_revision("someone/absent", None) is None
    assert licence_on_disk("someone/absent", "someone/absent") is None

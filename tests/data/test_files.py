"""Files are identified by every byte; text that earlier versions prepared from large ones is still found."""

import pytest

from collegium.assembly.corpus import build_text, text_directory
from collegium.assembly.sources import build_source
from collegium.base import known_digests
from collegium.base.errors import DataError
from collegium.data import files
from collegium.data.files import sampled_digest, whole_digest
from collegium.data.prepare import _say_unknown
from collegium.data.sources import FileSource
from collegium.recipe.file import load_recipe
from tests.support.pico import byte_tokenizer
from tests.support.runs import write_recipe


@pytest.fixture(autouse=True)
def large(tmp_path, monkeypatch):
    monkeypatch.setenv("COLLEGIUM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(files, "_WHOLE_DIGEST_SIZE", 100)
    monkeypatch.setattr(files, "_SAMPLE_SIZE", 10)
    monkeypatch.setattr(known_digests, "LARGE", 100)
    monkeypatch.setattr(known_digests, "_SETTLED_NS", -1)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "web.txt"
    path.write_bytes(b"some text that is long\n" * 20)
    return path


def test_a_change_anywhere_in_a_large_file_is_seen(file):
    content = file.read_bytes()
    first = FileSource("web", str(file)).fingerprint
    sample = sampled_digest(file)
    for place in range(0, len(content), 31):
        damaged = bytearray(content)
        damaged[place] ^= 1
        file.write_bytes(damaged)
        assert FileSource("web", str(file)).fingerprint != first, place
    file.write_bytes(content[:50] + b"0" * 20 + content[70:])
    assert sampled_digest(file) == sample, "which is where earlier versions did not look"
    file.write_bytes(content)
    assert FileSource("web", str(file)).fingerprint == first


def test_small_files_have_the_digests_of_before(file, monkeypatch):
    monkeypatch.setattr(files, "_WHOLE_DIGEST_SIZE", 10**6)
    assert whole_digest(file) == sampled_digest(file)
    assert FileSource("web", str(file)).fingerprint == FileSource("web", str(file)).earlier_fingerprint


@pytest.mark.parametrize("given", [True, False])
def test_text_of_an_earlier_version_is_used_and_it_is_said_what_is_not_known(
    tmp_path, model_folder, capsys, monkeypatch, given
):
    path = write_recipe(tmp_path / "files", model_folder)
    recipe = load_recipe(path, [] if given else ["data.directory=null"])
    tokenizer = byte_tokenizer()
    with monkeypatch.context() as earlier:
        earlier.setattr(FileSource, "fingerprint", FileSource.earlier_fingerprint)
        before = build_text(recipe, tokenizer)
    _say_unknown.cache_clear()
    after = build_text(recipe, tokenizer)
    assert after.directory == before.directory
    assert after.fingerprint == before.fingerprint
    assert "which looked at three samples of each file above 8 MiB" in capsys.readouterr().err
    cats = tmp_path / "files" / "cats.txt"
    cats.write_text(cats.read_text() + "another")
    if given:
        with pytest.raises(DataError, match=r"holds text with fingerprint \w+, now \w+ is asked for"):
            build_text(recipe, tokenizer)
    else:
        sources = [build_source(source) for source in recipe.data.sources]
        assert text_directory(recipe, tokenizer, sources) != before.directory

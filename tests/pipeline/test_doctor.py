"""`collegium doctor` and the pairs of `preflight`, over pico models of several tokenizers."""

import json
import re
from pathlib import Path

import pytest

from tests.support.command import files_below, run
from tests.support.pico import pico_llama
from tests.support.runs import write_recipe
from tests.support.small_tokenizers import byte_level, unigram, word_piece


@pytest.fixture
def recipe(tmp_path, model_folder, monkeypatch) -> Path:
    """The first teacher has the student's tokenizer, the second one another."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLLEGIUM_CACHE", str(tmp_path / "cache"))
    return write_recipe(tmp_path / "files", model_folder, two=save_model(tmp_path / "two", byte_level()))


def save_model(folder: Path, tokenizer, vocab_size: int = 640) -> Path:
    pico_llama(2, vocab_size=vocab_size).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_before_anything_is_prepared(recipe, tmp_path, monkeypatch, capsys):
    before = files_below(tmp_path)
    code, out, err = run(["doctor", str(recipe)], monkeypatch, capsys)
    assert code == 0, err
    assert "ok    torch: " in out and "ok    cache folder: " in out and "GB free" in out
    assert "fix   text: not prepared; run `collegium prepare RECIPE`" in out
    assert "Teacher one: same tokenizer: nothing to align" in out
    assert "Teacher two: another tokenizer: " in out and "% of the text exact" in out
    assert "positions exact" in out and "640" in out
    written = files_below(tmp_path) - before
    assert all(name.startswith("cache/vocabularies/") for name in written), written


def test_json_agrees_with_what_preflight_says(recipe, monkeypatch, capsys):
    code, out, err = run(["prepare", str(recipe)], monkeypatch, capsys)
    assert code == 0, err
    code, out, err = run(["doctor", str(recipe), "--json"], monkeypatch, capsys)
    assert code == 0, err
    diagnosis = json.loads(out)
    checks = {check["name"]: check for check in diagnosis["checks"]}
    assert "training blocks" in checks["text"]["found"] and checks["text"]["fix"] is None
    one, two = diagnosis["tokenizers"]
    assert (one["teacher"], one["kind"], two["teacher"], two["kind"]) == ("one", "same", "two", "other")
    assert sum(two["overlap"]["shares"].values()) == pytest.approx(1.0)
    assert two["own"]["num_rows"] == 640 and two["own"]["bytes_per_token"] > two["student"]["bytes_per_token"] == 1

    code, out, err = run(["preflight", str(recipe), "--json"], monkeypatch, capsys)
    assert code == 0, err
    assert json.loads(out)["tokenizers"] == diagnosis["tokenizers"]
    code, out, err = run(["preflight", str(recipe)], monkeypatch, capsys)
    assert code == 0 and two["verdict"] in out and "Loss on held-out text" in out


def test_shares_are_those_of_the_domains_that_a_teacher_is_for(recipe, tmp_path, monkeypatch, capsys):
    (tmp_path / "files" / "dogs.txt").write_text(
        "\n".join(f"漢字 and かな {i}, {i} times 🙂🙃 {i * i}" for i in range(20)), encoding="utf-8"
    )
    shares = []
    for domains in (["cats"], ["dogs"], ["cats", "dogs"]):
        arguments = ["doctor", str(recipe), f"teachers.1.domains={json.dumps(domains)}", "--json"]
        code, out, err = run(arguments, monkeypatch, capsys)
        assert code == 0, err
        shares.append(json.loads(out)["tokenizers"][1]["overlap"]["shares"]["exact"])
    assert min(shares[:2]) < shares[2] < max(shares[:2])


def test_padding_of_the_model_is_no_other_tokenizer(recipe, tmp_path, tokenizer, monkeypatch, capsys):
    padded = save_model(tmp_path / "padded", tokenizer, vocab_size=320)
    code, out, err = run(["doctor", str(recipe), f"teachers.1.model={padded}"], monkeypatch, capsys)
    assert code == 0, err
    assert "same tokenizer, other padding: 260 tokens, in vocabularies of 260 and 320 rows" in out


def test_a_tokenizer_that_cannot_be_used_ends_with_69_after_all_was_said(recipe, tmp_path, monkeypatch, capsys):
    pieces = save_model(tmp_path / "pieces", word_piece())
    code, out, err = run(["doctor", str(recipe), f"teachers.0.model={pieces}"], monkeypatch, capsys)
    assert code == 69
    assert "Teacher two: another tokenizer: " in out
    assert "teacher 'one': cannot be used: " in err and "need a BPE or Unigram tokenizer" in err
    code, out, err = run(["doctor", str(recipe), "teachers.0.model=some/hub-id", "--json"], monkeypatch, capsys)
    assert code == 69 and "HF_HUB_OFFLINE is set; unset it, or give a local folder" in err
    assert json.loads(out)["tokenizers"][1]["kind"] == "other"
    hub = next(check for check in json.loads(out)["checks"] if check["name"] == "hub")
    assert "some/hub-id must have been fetched before" in hub["found"]


def test_text_that_is_not_there_ends_with_65_after_all_was_said(recipe, monkeypatch, capsys):
    code, out, err = run(["doctor", str(recipe), "data.sources.0.path=/nowhere.txt"], monkeypatch, capsys)
    assert code == 65
    assert "fix   text: cannot be used; /nowhere.txt" in out and "/nowhere.txt" in err
    assert "Teacher two: another tokenizer: how much of the text it reaches is not known without text" in out


def test_caches(recipe, monkeypatch, capsys):
    def found(*changes: str, ends: int = 0) -> dict[str, str | None]:
        code, out, err = run(["doctor", str(recipe), *changes, "--json"], monkeypatch, capsys)
        assert code == ends, err
        return {check["name"]: check["fix"] for check in json.loads(out)["checks"]}

    cached = ["teachers.0.cached=true", "cache.directory=caches"]
    assert found(*cached)["cache of one"] == "prepare the text, then ask again"
    run(["prepare", str(recipe)], monkeypatch, capsys)
    assert "run `collegium cache RECIPE`" in found(*cached)["cache of one"]
    code, _, err = run(["cache", str(recipe), *cached], monkeypatch, capsys)
    assert code == 0, err
    assert found(*cached)["cache of one"] is None
    assert "kd_temperature" in found(*cached, "objective.kd_temperature=2", ends=65)["cache of one"]
    assert "cache of one" not in found()

    code, out, err = run(
        ["doctor", str(recipe), "teachers=[{kind: cached, name: far, path: caches/one}]", "--json"],
        monkeypatch,
        capsys,
    )
    assert code == 0, err
    assert json.loads(out)["tokenizers"][0]["kind"] == "same"
    code, out, err = run(
        ["doctor", str(recipe), "teachers=[{kind: cached, name: far, path: nowhere}]"], monkeypatch, capsys
    )
    assert code == 69 and "nowhere: holds no finished cache" in err


def test_a_full_disk_is_said(recipe, monkeypatch, capsys):
    monkeypatch.setattr("collegium.pipeline.doctor.LOW_DISK", 1e18)
    code, out, err = run(["doctor", str(recipe)], monkeypatch, capsys)
    assert code == 0, err
    assert "fix   cache folder: " in out and "free some space, or set COLLEGIUM_CACHE" in out


def test_bytes_that_are_lost_are_told(recipe, tmp_path, monkeypatch, capsys):
    unknown = save_model(tmp_path / "unknown", unigram())
    (tmp_path / "files" / "cats.txt").write_text(
        "\n".join(f"a letter \u0416 between words, number {i}" for i in range(20)), encoding="utf-8"
    )
    arguments = ["doctor", str(recipe), f"teachers.0.model={unknown}", "teachers.0.domains=[cats]"]
    code, out, err = run(arguments, monkeypatch, capsys)
    assert code == 0, err
    assert re.search(r"warning: the teacher's tokenizer loses (\d+) of ", out), out


def test_a_cache_in_the_teachers_own_tokens(recipe, tmp_path, monkeypatch, capsys):
    """Looked for without preparing its text; a stored one names its tokenizer."""

    def checked(*changes: str) -> dict:
        code, out, err = run(["doctor", str(recipe), *changes, "--json"], monkeypatch, capsys)
        assert code == 0, err
        return json.loads(out)

    cached = ["teachers.1.cached=true", "cache.directory=caches"]
    run(["prepare", str(recipe)], monkeypatch, capsys)
    before = files_below(tmp_path)
    assert checked(*cached)["checks"][-1]["fix"] == "run `collegium cache RECIPE`"
    assert all(name.startswith("cache/vocabularies/") for name in files_below(tmp_path) - before)
    code, _, err = run(["cache", str(recipe), *cached], monkeypatch, capsys)
    assert code == 0, err
    assert checked(*cached)["checks"][-1]["fix"] is None
    far = f"{{kind: cached, name: far, path: caches/two, tokenizer: {tmp_path / 'two'}}}"
    diagnosis = checked(f"teachers=[{far}]")
    assert diagnosis["checks"][-1]["fix"] is None and diagnosis["tokenizers"][0]["kind"] == "other"


def test_what_is_carried_by_spelling_reaches_every_position(recipe, monkeypatch, capsys):
    code, out, err = run(["doctor", str(recipe), "teachers.1.alignment.carry=min_ed"], monkeypatch, capsys)
    assert code == 0, err
    assert "the rest (0.0 %) left to the other teachers" in out

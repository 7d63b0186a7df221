"""`collegium report` over runs of pico models: what a user calls and what is then in the folder."""

import json
from pathlib import Path

import pytest

from tests.support.command import run
from tests.support.runs import write_recipe


@pytest.fixture
def recipe(tmp_path, model_folder, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLLEGIUM_CACHE", str(tmp_path / "cache"))
    return write_recipe(tmp_path / "files", model_folder)


def test_runs_from_training_to_their_page(recipe, tmp_path, monkeypatch, capsys):
    code, _, err = run(["preflight", str(recipe), "--json"], monkeypatch, capsys)
    assert code == 0, err
    code, out, err = run(["train", str(recipe), "--json"], monkeypatch, capsys)
    assert code == 0, err
    trained = json.loads(out)
    assert trained == json.loads((tmp_path / "runs/pico/evaluation.json").read_text())
    assert set(trained["before"]["mean"]) >= {"nll", "ece"}
    assert set(trained["differences"]) == {"before", "fused", "teachers"}
    assert set(trained["differences"]["teachers"]) == {"one", "two"}
    gap = trained["differences"]["before"]["domains"]["cats"]["value"]
    assert gap == pytest.approx(
        trained["domains"]["cats"]["figures"]["nll"]["value"]
        - trained["before"]["domains"]["cats"]["figures"]["nll"]["value"]
    )
    written = trained["continuations"]["dogs"]
    assert set(written) == {"prompt", "document", "teachers", "fused", "before", "student"}
    assert list(written["teachers"]) == ["one", "two"]
    assert trained["cost"]["plan"]["num_steps"] == 4 and trained["cost"]["actual"]["memory_bytes"] > 10**7
    assert trained["curves"]["train/loss"]["step"] == [1, 2, 3, 4] and trained["verdict"]

    other = ["name=other", "objective.kd_weight=0", "teachers=[]"]
    code, _, err = run(["train", str(recipe), *other], monkeypatch, capsys)
    assert code == 0, err
    code, out, err = run(["report", "runs/pico"], monkeypatch, capsys)
    assert code == 0 and out == "runs/pico/report.html\n"
    page = (tmp_path / "runs/pico/report.html").read_text(encoding="utf-8")
    assert "Who taught which token" in page and "What they write" in page
    code, out, err = run(["report", "runs/pico", "runs/other", "--json"], monkeypatch, capsys)
    assert code == 0, err
    shown = json.loads(out)
    assert shown["page"] == "report.html" and set(shown["runs"]) == {"pico", "other"}
    rows = shown["comparison"]["table"]["rows"]
    both = [json.loads((tmp_path / f"runs/{name}/evaluation.json").read_text()) for name in ("pico", "other")]
    losses = [sum(sum(d["nll"]) for d in content["documents"].values()) for content in both]
    tokens = sum(sum(d["tokens"]) for d in both[0]["documents"].values())
    assert float(rows[1][-2]["text"]) == pytest.approx((losses[1] - losses[0]) / tokens, abs=1e-3)

    code, out, err = run(["evaluate", "runs/pico", "--json"], monkeypatch, capsys)
    assert code == 0, err
    again = json.loads(out)
    for section in ("domains", "before", "teachers", "passages", "continuations", "cost", "curves", "verdict"):
        assert again[section] == trained[section], section


def test_text_for_people_can_be_left_out(recipe, monkeypatch, capsys):
    code, out, err = run(["train", str(recipe), "evaluation.samples=null", "--json"], monkeypatch, capsys)
    assert code == 0, err
    assert not {"passages", "continuations"} & set(json.loads(out))
    code, _, err = run(["report", "runs/pico"], monkeypatch, capsys)
    assert code == 0, err


def test_a_cached_teacher_speaks_in_passages_but_does_not_write(recipe, monkeypatch, capsys):
    cached = ["teachers.0.cached=true", "cache.directory=caches"]
    assert run(["cache", str(recipe), *cached], monkeypatch, capsys)[0] == 0
    code, out, err = run(["train", str(recipe), *cached, "--json"], monkeypatch, capsys)
    assert code == 0, err
    trained = json.loads(out)
    assert "one" not in trained["continuations"]["cats"]["teachers"]
    assert trained["passages"]["cats"]["teachers"]["one"]["alternatives"][0]


def test_what_is_no_run_ends_with_65(tmp_path, monkeypatch, capsys):
    code, _, err = run(["report", str(tmp_path)], monkeypatch, capsys)
    assert code == 65 and "holds no evaluation.json" in err

"""`collegium cache` as a user meets it."""

import json
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from collegium.cache.manifest import Manifest
from collegium.cli.app import main
from tests.support.runs import write_recipe


CACHED = ["teachers.0.cached=true", "teachers.1.cached=true", "cache.rows_per_shard=5"]


@pytest.fixture
def recipe(tmp_path, model_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLLEGIUM_CACHE", str(tmp_path / "cache"))
    return str(write_recipe(tmp_path / "files", model_folder))


@pytest.fixture
def run(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["collegium", *map(str, arguments)])
        code = main()
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_cache_then_train_then_verify(recipe, run):
    code, out, err = run("cache", recipe, *CACHED, "--json")
    assert code == 0, err
    made = json.loads(out)
    assert set(made) == {"one", "two"}
    assert "bytes a token" in err
    locations = [made[name]["location"] for name in ("one", "two")]
    manifest = Manifest.from_bytes(Path(locations[0], "manifest.json").read_bytes())
    assert set(manifest.splits) == {"train", "held_out/cats", "held_out/dogs"}
    assert manifest.num_rows == made["one"]["blocks"]

    code, out, err = run("train", recipe, *CACHED, "--json")
    assert code == 0, err
    cached = json.loads(out)["mean"]
    code, out, err = run("train", recipe, "output_dir=online", "--json")
    assert code == 0, err
    online = json.loads(out)["mean"]
    assert cached["nll"] == pytest.approx(online["nll"], rel=0.02)

    for location in locations:
        code, out, err = run("cache", "verify", location)
        assert (code, "intact, every byte is as it was written" in err) == (0, True)

    # One teacher from its cache, the other running.
    code, _, err = run("train", recipe, CACHED[0], CACHED[2], "output_dir=mixed", "--json")
    assert code == 0, err

    # The same cache without the model that made it.
    foreign = [f"teachers.0={{kind: cached, name: one, path: {locations[0]}}}", CACHED[1], CACHED[2]]
    code, out, err = run("train", recipe, *foreign, "output_dir=foreign", "--json")
    assert code == 0, err
    assert json.loads(out)["mean"]["nll"] == pytest.approx(cached["nll"], rel=1e-6)

    code, out, err = run("preflight", recipe, *CACHED, "--json")
    assert code == 0, err


def test_export(recipe, run, tmp_path):
    _, out, _ = run("cache", recipe, *CACHED, "--teacher", "one", "--json")
    made = json.loads(out)["one"]
    code, _, err = run("cache", "export", made["location"], tmp_path / "one.parquet")
    assert code == 0, err
    table = pq.read_table(tmp_path / "one.parquet")
    assert (
        table.num_rows == Manifest.from_bytes(Path(made["location"], "manifest.json").read_bytes()).splits["train"]
    )
    for row in table.to_pylist():
        assert len(row["token_ids"]) == len(row["entropy"]) == len(row["positions"])


def test_a_second_call_returns_at_once(recipe, run, monkeypatch):
    assert run("cache", recipe, *CACHED)[0] == 0
    monkeypatch.setattr("collegium.assembly.cache.load_teachers", lambda *_, **__: pytest.fail("loaded again"))
    code, _, err = run("cache", recipe, *CACHED)
    assert code == 0, err


def test_one_teacher_at_a_time(recipe, run):
    code, out, _ = run("cache", recipe, *CACHED, "--teacher", "two", "--json")
    assert code == 0
    assert set(json.loads(out)) == {"two"}
    code, _, err = run("train", recipe, *CACHED)
    assert code == 65
    assert err.splitlines()[-1] == (
        "collegium: teacher 'one' is to be read from its cache (`cached: true`), which is not there yet: run "
        "`collegium cache RECIPE`, which also resumes one"
    )


def test_damage_is_named_and_only_that_is_written_again(recipe, run):
    _, out, _ = run("cache", recipe, *CACHED, "--teacher", "one", "--json")
    folder = json.loads(out)["one"]["location"]
    shard = Path(folder, "shards/shard-00001.parquet")
    good = shard.read_bytes()
    content = bytearray(good)
    content[len(content) // 3] ^= 4
    shard.write_bytes(content)

    code, _, err = run("cache", "verify", folder)
    assert code == 65
    assert "shards/shard-00001.parquet: its checksum is wrong" in err
    assert f"run `collegium cache repair {folder}`" in err

    code, _, err = run("cache", "repair", folder)
    assert code == 0, err
    assert "wrote shards/shard-00001.parquet" in err
    assert shard.read_bytes() == good
    assert run("cache", "verify", folder)[0] == 0
    assert "nothing is damaged" in run("cache", "repair", folder)[2]


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ([], 2, "no teacher is to be cached: set `cached: true`"),
        ([*CACHED, "--teacher", "three"], 2, "--teacher three: the teachers with `cached: true` are one, two"),
        ([*CACHED, "cache.mode=all"], 2, "cache.mode"),
        ([*CACHED, "cache.directory=gibberish://x"], 65, "gibberish://x/one: cannot be reached"),
    ],
)
def test_mistakes(recipe, run, changes, code, message):
    found, _, err = run("cache", recipe, *changes)
    assert found == code
    assert message in err


def test_what_was_not_captured_is_refused_with_both_values(recipe, run):
    directory = "cache.directory=caches"
    assert run("cache", recipe, *CACHED, directory)[0] == 0
    for change, message in (
        ("objective.kd_temperature=2", "at kd_temperature 1, now 2 is asked for"),
        ("cache.max_kept=9", "a cache with max_kept 256, now 9 is asked for"),
        ("teachers.0.dtype=bfloat16", "a cache with teacher "),
        ("data.block_size=16", "a cache with text "),
    ):
        data = ["data.directory=other"] if change.startswith("data.") else []
        code, _, err = run("train", recipe, *CACHED, directory, change, *data)
        assert code == 65, err
        assert message in err
    code, _, err = run("cache", recipe, *CACHED, directory, "cache.mode=sampled")
    assert code == 65
    assert "holds a cache with mode top_k, now sampled is asked for" in err


def test_draws_serve_a_loss_that_is_linear_in_its_target(recipe, run):
    drawn = [*CACHED, "cache.mode=sampled"]
    assert run("cache", recipe, *drawn)[0] == 0
    for change in ("objective.divergence=reverse_kl", "objective.fusion=geometric"):
        code, _, err = run("train", recipe, *drawn, change)
        assert code == 69
        assert "provides samples, but the objective needs top_k too: draws serve the forward KL" in err
    assert run("train", recipe, *drawn)[0] == 0


def test_features_need_what_the_cache_does_not_hold(recipe, run):
    assert run("cache", recipe, *CACHED)[0] == 0
    code, _, err = run("train", recipe, *CACHED, "objective.feature_weight=0.1")
    assert code == 2
    assert "reads hidden states, which cache.mode top_k does not hold" in err
    states = [*CACHED, "cache.mode=hidden_states"]
    assert run("cache", recipe, *states)[0] == 0
    last = ["objective.feature_weight=0.1", "objective.feature.layer_map=last"]
    code, _, err = run("train", recipe, *states, *last)
    assert code == 0, err

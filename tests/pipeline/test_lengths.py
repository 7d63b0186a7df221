"""Warm-up and batches against the length of the text, before and after it is prepared."""

import logging

import pytest

from collegium.base.errors import RecipeError
from collegium.pipeline.check import check
from collegium.pipeline.lengths import most_blocks, require_length
from collegium.pipeline.train import train
from collegium.recipe.file import load_recipe
from tests.support.runs import write_recipe


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_recipe(tmp_path, lambda name, seed: name)
    return lambda *overrides: load_recipe(path, list(overrides))


def findings(recipe):
    return {finding.key: finding for finding in check(recipe)}


def test_plain_files_bound_the_blocks(load, tmp_path):
    size = sum((tmp_path / f"{name}.txt").stat().st_size for name in ("cats", "dogs"))
    assert size // 32 < most_blocks(load()) <= 3 * size // 32 + 2
    (tmp_path / "cats.txt.gz").write_bytes(b"x")
    assert most_blocks(load(f"data.sources.0.path={tmp_path}/cats.txt.gz")) is None
    assert most_blocks(load("data.sources.0.max_tokens=64", "data.sources.1.max_tokens=64")) == 6
    assert most_blocks(load("data.sources.0.prompt_column=prompt")) is None


def test_a_warm_up_that_never_ends_is_warned_of(load):
    long = load("training.num_epochs=4", "training.max_steps=null", "training.warmup_steps=10000")
    finding = findings(long)["training.warmup_steps"]
    assert finding.exit_code == 0
    assert finding.found.startswith("10,000 steps of warm-up in a run of at most ")
    short = findings(load("training.warmup_steps=4"))["training.warmup_steps"]
    assert short.found == "4 steps of warm-up in a run of 4 steps"
    assert "training.warmup_steps" not in findings(load("training.warmup_steps=3"))


def test_a_batch_above_the_text_is_an_error(load):
    finding = findings(load("training.batch_size=60000"))["training.batch_size"]
    assert finding.exit_code == 2
    assert finding.found.startswith("60,000 blocks in a batch, and the text has at most ")
    assert "training.batch_size" not in findings(load())


def test_both_are_looked_at_again_once_the_text_is_there(load):
    recipe = load("training.num_epochs=2", "training.max_steps=null", "training.warmup_steps=30")
    assert require_length(recipe, 20) == [
        "training.warmup_steps: 30 steps of warm-up in a run of 20 steps; the learning rate never comes down from "
        "its peak: give fewer than 20"
    ]
    with pytest.raises(
        RecipeError, match="training.batch_size: 64 blocks in a batch, and the text has 20; give 20"
    ):
        require_length(load("training.batch_size=64"), 20)


def test_training_says_so_too(tmp_path, model_folder, caplog):
    path = write_recipe(tmp_path, model_folder)
    out = f"output_dir={tmp_path}/run"
    with caplog.at_level(logging.WARNING), pytest.raises(RecipeError, match="training.batch_size: 4,000 blocks"):
        train(load_recipe(path, [out, "training.batch_size=4000"]))

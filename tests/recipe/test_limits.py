"""Hostile and mistaken recipes end in a sentence within a second, whatever they hold."""

import os
import threading
import time

import pytest

from collegium.base.errors import RecipeError
from collegium.recipe.file import load_recipe
from collegium.recipe.schema import recipe_schema


RECIPE = """
name: x
student: {kind: pretrained, model: m}
data: {sources: [{kind: files, name: a, path: a.txt}], block_size: 32}
objective: {kd_weight: 0}
training: {max_steps: 4}
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


LAUGHS = "\n".join(["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LAUGHS, "over 20,000 values, anchors counted"),
        ("a: &a [*a]", "over 20,000 values|nested in over 50"),
        ("a: &a {b: *a}", "over 20,000 values|nested in over 50"),
        ("[" * 50_000, "nested in over 50 others"),
        ("a: {" * 20_000, "not valid YAML|nested in over 50"),
        ("x: " + "[" * 200 + "]" * 200, "nested in over 50 others|not valid YAML"),
        ("x: " + "9" * 5000, "not valid YAML"),
        ("x: " + "9" * 4000, "x: a whole number of about 4,000 digits"),
        ("seed: 0x" + "f" * 50_000, "seed: a whole number of about 60,2.. digits"),
        ("x: 2001-99-99", "not valid YAML"),
        ("? [1, 2]\n: 3", "not valid YAML|unknown key|missing"),
        ("1: 2", "."),
        ("x: \x00", "not valid YAML"),
        ("# " + "x" * 200_000, "over 100,000 bytes"),
    ],
    ids=range(14),
)
def test_a_hostile_file_is_refused_in_a_second(recipe, text, words):
    recipe.write_text(text, encoding="utf-8")
    start = time.process_time()
    with pytest.raises(RecipeError, match=words) as caught:
        load_recipe(recipe)
    assert time.process_time() - start < 1
    assert len(str(caught.value)) < 2000


def test_an_endless_file_is_not_read_to_its_end():
    with pytest.raises(RecipeError, match="/dev/zero: over 100,000 bytes"):
        load_recipe(__import__("pathlib").Path("/dev/zero"))


def test_a_pipe_is_read(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=(RECIPE,))
    writer.start()
    assert load_recipe(pipe).name == "x"
    writer.join()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seed=4294967296", "seed: .* less than or equal to 4294967295"),
        ("seed=" + "9" * 5000, "seed: .* is not a YAML value"),
        ("seed=" + "9" * 400, "seed: a whole number of about 400 digits"),
        ("training.learning_rate=" + "9" * 400, "training.learning_rate: a whole number of about 400 digits"),
        ("training.learning_rate=1e999", "training.learning_rate: .*finite"),
        ("training.max_steps=10000000000", "training.max_steps: .* less than or equal to 1000000000"),
        ("training.batch_size=1000000000", "training.batch_size: .* less than or equal to 65536"),
        ("data.block_size=100000000", "data.block_size: .* less than or equal to 1048576"),
        ("training.num_workers=100000", "training.num_workers: .* less than or equal to 256"),
        ("evaluation.batch_size=1000000000", "evaluation.batch_size: .* less than or equal to 65536"),
        ("training.warmup_steps=-1", "training.warmup_steps: .* greater than or equal to 0"),
        ("training.save_every=" + "x" * 100_000, "training.save_every: .*got 'xxx"),
        (".".join("a" * 1000) + "=1", "nested in over 50 others"),
        ("training.report_to={a: 1}", "training.report_to"),
    ],
)
def test_an_override_out_of_bounds_is_refused(recipe, override, words):
    with pytest.raises(RecipeError, match=words) as caught:
        load_recipe(recipe, [override])
    assert len(str(caught.value)) < 2000


def test_a_micro_batch_must_fit_into_memory(recipe):
    with pytest.raises(RecipeError, match=r"training.batch_size x data.block_size is 134,217,728 tokens"):
        load_recipe(recipe, ["training.batch_size=256", "data.block_size=524288"])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("tensorboard", ("tensorboard",)),
        ("none", ()),
        ("[none]", ()),
        ("[]", ()),
        ("[tensorboard, wandb]", ("tensorboard", "wandb")),
    ],
)
def test_trackers_are_one_a_list_or_none(recipe, given, expected):
    assert load_recipe(recipe, [f"training.report_to={given}"]).training.report_to == expected


def test_the_schema_takes_one_tracker_and_a_list():
    kinds = recipe_schema()["$defs"]["TrainingSection"]["properties"]["report_to"]["anyOf"]
    assert [kind["type"] for kind in kinds] == ["array", "string"]

"""Files of a recipe that are swapped between a stop and the next start are noticed, by name."""

import shutil
from pathlib import Path

import pytest

from collegium.base.errors import DataError, RecipeError, UserError
from collegium.pipeline.train import train
from collegium.recipe.file import load_recipe
from tests.support.pico import byte_tokenizer, pico_llama
from tests.support.runs import write_recipe


OVERRIDES = ("data.directory=null", "training.precision=float32", "evaluation.samples=null")


def save(folder: Path, seed: int, *, tokenizer=None) -> Path:
    pico_llama(seed).save_pretrained(folder)
    (tokenizer or byte_tokenizer()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("swapped")
    recipe = write_recipe(folder / "files", lambda name, seed: save(folder / name, seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("COLLEGIUM_CACHE", str(folder / "cache"))
        train(load_recipe(recipe, OVERRIDES))
    return folder


@pytest.fixture
def stopped(trained, monkeypatch) -> Path:
    """The same folder with a run that ended at its second step of four; what a test changes in it is put back."""
    monkeypatch.chdir(trained)
    monkeypatch.setenv("COLLEGIUM_CACHE", str(trained / "cache"))
    kept = trained.with_name("kept")
    shutil.copytree(trained, kept)
    shutil.rmtree(trained / "runs" / "pico" / "student")
    shutil.rmtree(trained / "runs" / "pico" / "checkpoints" / "checkpoint-4")
    yield trained
    shutil.rmtree(trained)
    kept.rename(trained)


def go_on(folder: Path, *overrides: str) -> None:
    train(load_recipe(folder / "files" / "recipe.yaml", (*OVERRIDES, *overrides)))


def other_text(folder: Path) -> None:
    with (folder / "files" / "cats.txt").open("a") as file:
        file.write("\none more line, and nothing else")


SWAPS = {
    "text": (other_text, r"text was \w+ and is \w+ now: put it back, or start again in another output_dir"),
    "teacher": (lambda folder: save(folder / "two", 7), "teacher 'two' was .* and is"),
    "student": (lambda folder: save(folder / "student", 7), r"student before training was \w+ and is \w+ now"),
}


@pytest.mark.parametrize("name", SWAPS)
def test_what_is_swapped_is_named(stopped, name):
    swap, message = SWAPS[name]
    swap(stopped)
    with pytest.raises(DataError, match=message) as error:
        go_on(stopped)
    assert error.value.exit_code == 65
    assert not (stopped / "runs" / "pico" / "student").exists()


def test_another_tokenizer_is_noticed(stopped):
    """It changes the text as well, since that is prepared with it."""
    for name in ("student", "one", "two"):
        byte_tokenizer(extra=("<y>",)).save_pretrained(stopped / name)
    with pytest.raises(UserError, match=r"tokenizer was \w+ and is|262|261|token embeddings"):
        go_on(stopped)


def test_a_step_may_be_cut_otherwise_and_nothing_else_may_change(stopped):
    with pytest.raises(
        DataError, match=r"samples a step was 2 and is 4 now.*training.gradient_accumulation in a rec"
    ):
        go_on(stopped, "training.batch_size=4")
    with pytest.raises(RecipeError, match=r"training.learning_rate: 0.01, 0.02"):
        go_on(stopped, "training.batch_size=1", "training.gradient_accumulation=2", "training.learning_rate=0.02")
    go_on(stopped, "training.batch_size=1", "training.gradient_accumulation=2")
    assert (stopped / "runs" / "pico" / "student").exists()
    with pytest.raises(RecipeError, match="holds a run of another recipe"):
        go_on(stopped, "training.batch_size=2", "training.gradient_accumulation=1")


def test_nothing_swapped_goes_on(stopped):
    go_on(stopped)
    assert (stopped / "runs" / "pico" / "student").exists()

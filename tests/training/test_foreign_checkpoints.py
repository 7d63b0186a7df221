"""Folders that are no checkpoint of ours are named for what they are, and never deleted."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import Trainer, TrainingArguments

from collegium.base.digest import json_digest
from collegium.base.errors import DataError
from collegium.training.checkpoint import CheckpointDirectory
from collegium.training.checkpoint_files import ForeignCheckpointError, verify
from tests.support.checkpoints import change
from tests.support.damage import damages
from tests.support.pico import byte_tokenizer, pico_llama
from tests.support.runs import trainer_of


OPTIONS = {"num_teachers": 0, "max_steps": 2, "save_strategy": "steps", "save_steps": 1}


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    trainer_of(folder, student=pico_llama(0, layers=1), **OPTIONS).train()
    return folder


@pytest.fixture
def folder(written, tmp_path) -> Path:
    return shutil.copytree(written, tmp_path / "run")


def of_transformers(path: Path) -> None:
    """A checkpoint of transformers' own Trainer, by name and kind of its files."""
    pico_llama(0, layers=1).save_pretrained(path)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        (path / name).write_bytes(b"PK")
    (path / "trainer_state.json").write_text("{}")


def model(path: Path) -> None:
    pico_llama(0, layers=1).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)


def run_folder(path: Path) -> None:
    (path / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    (path / "recipe.yaml").touch()


def prepared_text(path: Path) -> None:
    path.mkdir()
    (path / "manifest.json").write_text(json.dumps({"schema": 3, "files": {}, "fingerprint": "a"}))


def newer(path: Path) -> None:
    content = {"files": {}, "step": 9, "format": 3, "more": "to say"}
    path.mkdir()
    (path / "manifest.json").write_text(json.dumps({**content, "sha256": json_digest(content)}))


def of_nobody(path: Path) -> None:
    path.mkdir()
    (path / "notes.txt").touch()


FOREIGN = {
    of_transformers: "is no checkpoint of collegium: transformers' own Trainer wrote it",
    model: "is no checkpoint of collegium: it holds a model; to begin with its weights, give the folder as",
    run_folder: "is no checkpoint of collegium: it holds checkpoints; give the checkpoint-N that you mean",
    prepared_text: "is no checkpoint of collegium: its manifest.json is of prepared text or of a cache",
    newer: "was written by a newer version: its format is 3, this version reads up to 2; update collegium",
    of_nobody: "is no checkpoint of collegium: it has no manifest.json but notes.txt",
}


@pytest.mark.parametrize("make", FOREIGN, ids=lambda make: make.__name__)
def test_it_is_named_and_nothing_is_deleted(folder, make):
    make(folder / "checkpoint-9")
    before = sorted(path.relative_to(folder) for path in folder.rglob("*"))
    with pytest.raises(ForeignCheckpointError) as explicit:
        verify(folder / "checkpoint-9")
    assert FOREIGN[make] in str(explicit.value)
    for resume in (True, None, str(folder / "checkpoint-9"), str(folder / "checkpoint-1")):
        with pytest.raises(ForeignCheckpointError, match="checkpoint-9"):
            trainer_of(folder, student=pico_llama(0, layers=1), save_total_limit=1, **OPTIONS).train(resume)
    assert sorted(path.relative_to(folder) for path in folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("nothing", "there is no such folder; give a folder checkpoint-N, or True for the newest one"),
        ("a file", "is a file, and a checkpoint is a folder"),
        ("empty", "manifest.json cannot be read"),
        ("the folder above", "it holds checkpoint-1, checkpoint-2; give the checkpoint-N that you mean"),
        ("another name", "is the checkpoint of step 2 under another name; rename it to checkpoint-2"),
    ],
)
def test_a_path_that_leads_elsewhere_is_an_error_in_a_sentence(folder, tmp_path, what, message):
    path = tmp_path / "there"
    if what == "a file":
        path.touch()
    elif what == "empty":
        path.mkdir()
    elif what == "the folder above":
        path = folder
    elif what == "another name":
        path = (folder / "checkpoint-2").rename(tmp_path / "checkpoint-7")
    with pytest.raises(DataError, match=message):
        trainer_of(tmp_path / "out", student=pico_llama(0, layers=1), **OPTIONS).train(str(path))


def test_transformers_itself_writes_what_is_taken_for_its_own(tmp_path):
    args = TrainingArguments(
        str(tmp_path), max_steps=1, save_steps=1, use_cpu=True, report_to=[], disable_tqdm=True
    )
    rows = [{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}] * 8
    Trainer(pico_llama(0, layers=1), args, train_dataset=rows).train()
    with pytest.raises(
        ForeignCheckpointError, match="transformers' own Trainer wrote it, whose pickles are not read"
    ):
        verify(tmp_path / "checkpoint-1")


def test_a_state_of_a_newer_transformers_is_named(folder):
    change(folder / "checkpoint-2", "trainer_state", of_tomorrow=1)
    with pytest.raises(
        DataError, match="was written with a newer transformers, which notes of_tomorrow: update it"
    ):
        trainer_of(folder, student=pico_llama(0, layers=1), **OPTIONS).train(resume_from_checkpoint=True)


def test_damage_to_any_file_is_found_and_the_older_one_taken(folder):
    directory = CheckpointDirectory(folder)
    for file in sorted((folder / "checkpoint-2").iterdir()):
        for damage in damages(file):
            newest = directory.newest_whole()
            assert newest is not None and newest.name == "checkpoint-1", f"{file.name}: {damage}"
    assert directory.newest_whole().name == "checkpoint-2"


def test_checkpoints_of_a_later_step_than_a_new_run_has_done_are_not_why_its_own_are_dropped(tmp_path):
    directory = CheckpointDirectory(tmp_path, keep=1)
    for step in (50, 1, 2):
        directory.publish(step, {}, {})
    assert [path.name for path in directory.list()] == ["checkpoint-2", "checkpoint-50"]


def test_other_manifests_with_a_newer_number_are_damage(tmp_path):
    """A bit that makes a 2 of the format a 3 is no reason to go and update."""
    path = CheckpointDirectory(tmp_path).publish(1, {}, {})
    text = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(text.replace('"format": 2', '"format": 3'))
    with pytest.raises(DataError, match="is not as it was written") as error:
        verify(path)
    assert not isinstance(error.value, ForeignCheckpointError)

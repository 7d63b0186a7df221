"""Messages that people read when something goes wrong, word for word: `tests/cli/snapshots/NAME.txt`.

Each case ends in an exit code and in stderr, which is compared without what differs between machines. Run with
COLLEGIUM_WRITE_SNAPSHOTS=1 to rewrite the files, and read the difference before you commit it.
"""

import errno
import inspect
import json
import os
import re
import shutil
import signal
import sys
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import Timeout

import collegium.pipeline.train  # noqa: F401  # now: some libraries speak when they are imported
from collegium.base import errors
from collegium.training.callbacks import Stopped
from tests.support.command import command
from tests.support.made_up_lineage import finished_run
from tests.support.runs import write_recipe


FOLDER = Path(__file__).parent / "snapshots"
PROGRESS = re.compile(r"^(text: |resuming |teacher \w+: |written to )")


def nothing(*_: object) -> None:
    pass


@dataclass(frozen=True)
class Case:
    """A mishap.

    Attributes:
        words: The command.
        code: Exit code.
        kind: Name of the error's class.
        arrange: Called before, with the folder and monkeypatch.
    """

    words: tuple[str, ...]
    code: int
    kind: str
    arrange: Callable[[Path, pytest.MonkeyPatch], None] = nothing


def train(*changes: str, command: str = "train") -> tuple[str, ...]:
    return (command, "files/recipe.yaml", *changes)


def a_full_disk(folder: Path, patch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/pico/checkpoints/checkpoint-2")

    patch.setattr("collegium.training.checkpoint.save_file", full)


def a_small_disk(folder: Path, patch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    patch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, 10**8))
    patch.setattr("collegium.cache.builder.CacheBuilder._size_of", lambda *_: 10_000_000.0)


def a_missing_package(folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setitem(sys.modules, "sacrebleu", None)


def a_signal(folder: Path, patch: pytest.MonkeyPatch) -> None:
    def stops(*_: object) -> None:
        raise Stopped(signal.SIGINT, 3)

    patch.setattr("collegium.pipeline.train.train", stops)


def a_damaged_student(folder: Path, patch: pytest.MonkeyPatch) -> None:
    run = folder / "runs" / "pico"
    recipe = folder / "files" / "recipe.yaml"
    run.mkdir(parents=True)
    shutil.copy(recipe, run / "recipe.yaml")
    (model,) = re.findall(r"pretrained, model: (\S+)}", recipe.read_text(encoding="utf-8"))
    shutil.copytree(model, run / "student")
    weights = run / "student" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])


def a_held_folder(folder: Path, patch: pytest.MonkeyPatch) -> None:
    def refused(lock: object) -> None:
        raise Timeout("")

    holder = {"process": 4711, "host": "HOST", "since": "2026-11-29 14:00:00 UTC", "command": "collegium train r"}
    (folder / "runs" / "pico").mkdir(parents=True)
    (folder / "runs" / "pico" / ".lock").write_text(json.dumps(holder), encoding="utf-8")
    patch.setattr("collegium.base.locks.FileLock.acquire", refused)


def an_existing_recipe(folder: Path, patch: pytest.MonkeyPatch) -> None:
    (folder / "recipe.yaml").write_text("", encoding="utf-8")


def a_finished_run(folder: Path, patch: pytest.MonkeyPatch) -> None:
    finished_run(folder / "runs" / "run")
    patch.setenv("HF_HUB_OFFLINE", "1")


CASES = {
    "unknown-key": Case(train("objective.kd_wieght=1"), 2, "RecipeError"),
    "unknown-key-without-a-near-one": Case(train("evaluation.zzz=1"), 2, "RecipeError"),
    "wrong-type": Case(train("training.max_steps=many"), 2, "RecipeError"),
    "several-mistakes": Case(train("training.max_steps=0", "objective.fusion=sum", "nmae=x"), 2, "RecipeError"),
    "bad-override": Case(train("training.max_steps"), 2, "RecipeError"),
    "unknown-method": Case(train("method=tinybret"), 2, "RecipeError"),
    "no-recipe": Case(("train", "none.yaml"), 2, "RecipeError"),
    "recipe-not-overwritten": Case(("init",), 2, "RecipeError", an_existing_recipe),
    "missing-package": Case(
        train("evaluation.generation={prompt_tokens: 4, new_tokens: 4}"), 2, "RecipeError", a_missing_package
    ),
    "unknown-command": Case(("trian", "files/recipe.yaml"), 2, "UsageError"),
    "unknown-option": Case(train("--jsno"), 2, "NoSuchOption"),
    "missing-text": Case(train("data.sources.0.path=nowhere.txt"), 65, "DataError"),
    "missing-student": Case(train("student.model=./nowhere"), 65, "DataError"),
    "damaged-student": Case(("evaluate", "runs/pico"), 65, "DataError", a_damaged_student),
    "no-run": Case(("evaluate", "runs/none"), 65, "DataError"),
    "teacher-absent": Case(train("teachers.1.model=./nowhere"), 69, "TeacherError"),
    "teacher-offline": Case(train("teachers.1.model=some/hub-id"), 69, "TeacherError"),
    "check-of-files": Case(
        train("data.sources.0.path=nowhere.txt", "teachers.1.model=./nowhere", command="check"), 69, "TeacherError"
    ),
    "hub-offline": Case(("push", "runs/run", "owner/name"), 69, "HubError", a_finished_run),
    "not-finite": Case(train("training.learning_rate=1e38", "training.warmup_steps=0"), 70, "NumericError"),
    "disk-too-small": Case(train("teachers.0.cached=true", command="cache"), 74, "DiskError", a_small_disk),
    "disk-full": Case(train(), 74, "OSError", a_full_disk),
    "busy": Case(train(), 75, "BusyError", a_held_folder),
    "signal": Case(train(), 130, "Stopped", a_signal),
}


def as_anywhere(text: str, folder: Path, models: Path) -> str:
    """Without paths of this machine, progress, and what a terminal's width decides."""
    text = text.replace(str(folder), "FOLDER")
    text = re.sub(re.escape(str(models)) + r"[^\s:;,')]*", "MODEL", text)
    text = re.sub(r"-[0-9a-f]{16}\b", "-HASH", text)  # of what a cache is made from, paths included
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines() if not PROGRESS.match(line))


@pytest.mark.parametrize("name", CASES)
def test_what_people_read(name, tmp_path, tmp_path_factory, model_folder, monkeypatch, capsys):
    case = CASES[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLLEGIUM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr("collegium.base.progress.say", nothing)
    write_recipe(tmp_path / "files", model_folder)
    case.arrange(tmp_path, monkeypatch)
    answer = command(monkeypatch, capsys)(*case.words, "--json")
    assert answer.code == case.code, answer.err
    assert json.loads(answer.out)["error"]["type"] == case.kind
    assert "Traceback" not in answer.err
    said = f"exit code {answer.code}\n{as_anywhere(answer.err, tmp_path, tmp_path_factory.getbasetemp())}"
    path = FOLDER / f"{name}.txt"
    if os.environ.get("COLLEGIUM_WRITE_SNAPSHOTS"):
        path.write_text(said, encoding="utf-8")
    assert said == path.read_text(encoding="utf-8")


def test_every_class_of_errors_and_every_exit_code_is_there():
    classes = {
        name
        for name, found in inspect.getmembers(errors, inspect.isclass)
        if issubclass(found, errors.UserError) and found is not errors.UserError
    }
    assert len(classes) == 7 and classes <= {case.kind for case in CASES.values()}
    codes = {case.code for case in CASES.values()}
    elsewhere = {0, 1, 129, 143}  # in test_json_everywhere.py
    assert codes | elsewhere == set(errors.EXIT_CODES)


def test_no_snapshot_is_left_over():
    assert {path.stem for path in FOLDER.glob("*")} == set(CASES)

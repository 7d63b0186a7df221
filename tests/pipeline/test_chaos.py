"""Commands that are ended at random moments and started again leave what undisturbed ones leave, bit for bit.

`make chaos` ends trainings a thousand times, and the making of text, caches, evaluations and exports five hundred
times; COLLEGIUM_CHAOS scales the numbers, COLLEGIUM_SEED repeats the choices of a failure.
"""

import json
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from collegium.base.digests import verify_student
from collegium.report.evaluation_file import read_evaluation
from tests.support.chaos import Chaos, Target, content_of, run_content
from tests.support.command import run
from tests.support.forked_command import CommandWorker, command_worker
from tests.support.runs import write_recipe


RUN = Path("runs") / "pico"
CHANGES = ("training.max_steps=6", "training.save_every=1", "evaluation.samples=null")
EXPORT = Path("export") / "safetensors-int8"


@pytest.fixture(scope="module")
def worker() -> Iterator[CommandWorker]:
    with command_worker() as started:
        yield started


@pytest.fixture(scope="module")
def targets(worker, tmp_path_factory, model_folder) -> dict[str, Target]:
    """All commands that make something, over text that is prepared and a run that is finished."""
    root = tmp_path_factory.mktemp("shared")
    recipe = str(write_recipe(root / "files", model_folder))
    done = worker.start(root, "train", recipe, *CHANGES, log=root / "log")
    assert done.wait() == 0, done.text

    def finished(folder: Path) -> None:
        shutil.copytree(root / RUN, folder / RUN)

    def student_intact(folder: Path) -> None:
        if (folder / RUN / "student").exists():
            verify_student(folder / RUN / "student")

    def evaluation_intact(folder: Path) -> None:
        student_intact(folder)
        read_evaluation(folder / RUN)

    def export_whole(folder: Path) -> None:
        if (folder / RUN / EXPORT).exists():
            described = json.loads((folder / RUN / EXPORT / "export.json").read_text())
            assert described["parity"]["positions"] > 0

    cached = ("teachers.0.cached=true", "cache.directory=cached", "cache.rows_per_shard=4", "cache.batch_size=2")
    loaders = ((), ("training.num_workers=1",))
    training = ("train", recipe, *CHANGES)
    found = [
        Target("train", training, lambda f: run_content(f / RUN), intact=student_intact, draws=loaders),
        Target("train-on-two-ranks", training, lambda f: run_content(f / RUN), intact=student_intact, ranks=2),
        Target(
            "prepare",
            ("prepare", recipe, "data.directory=prepared", "data.blocks_per_shard=2"),
            lambda f: content_of(f / "prepared"),
        ),
        Target("cache", ("cache", recipe, *cached), lambda f: content_of(f / "cached")),
        Target(
            "evaluate",
            ("evaluate", str(RUN)),
            lambda f: run_content(f / RUN),
            arrange=finished,
            intact=evaluation_intact,
        ),
        Target(
            "export",
            ("export", str(RUN), "--to", "safetensors-int8"),
            lambda f: content_of(f / RUN),
            arrange=finished,
            intact=export_whole,
            done=lambda f: (f / RUN / EXPORT).exists(),
        ),
    ]
    return {target.name: target for target in found}


@pytest.fixture
def cause_chaos(worker, targets, tmp_path, monkeypatch, request) -> Callable[[str, int], None]:
    """Ends a command so often."""
    monkeypatch.setenv("COLLEGIUM_CACHE", str(tmp_path / "caches"))

    def cause(name: str, num_kills: int) -> None:
        seed = int(os.environ.get("COLLEGIUM_SEED", random.SystemRandom().randrange(2**32)))
        print(f"{request.node.name}: seed {seed}", file=sys.stderr, flush=True)
        Chaos(worker, targets[name], tmp_path, seed).run(num_kills)

    return cause


@pytest.mark.parametrize(("name", "num_kills"), [("train", 2), ("evaluate", 1)])
def test_a_few_ends(cause_chaos, name, num_kills):
    cause_chaos(name, num_kills)


def scaled(num_kills: int) -> int:
    return round(num_kills * float(os.environ.get("COLLEGIUM_CHAOS", "1")))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
def test_training_ends_a_thousand_times(cause_chaos, part):
    cause_chaos("train", scaled(115))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(2))
def test_training_on_two_ranks_ends_often(cause_chaos, part):
    cause_chaos("train-on-two-ranks", scaled(40))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["prepare", "cache", "evaluate", "export"])
def test_other_work_ends_five_hundred_times(cause_chaos, name):
    cause_chaos(name, scaled(125))


def test_a_run_that_was_killed_before_its_card_gets_one(tmp_path, model_folder, monkeypatch, capsys):
    """The evaluation says that a run was measured, so it comes last."""
    monkeypatch.chdir(tmp_path)
    recipe = str(write_recipe(tmp_path / "files", model_folder))

    def killed(*_: object) -> None:
        raise SystemExit(9)

    with monkeypatch.context() as patch:
        patch.setattr("collegium.pipeline.measure.write_card", killed)
        assert run(["train", recipe, *CHANGES], patch, capsys)[0] == 9
    assert (RUN / "student").is_dir()
    assert not (RUN / "student" / "README.md").exists()
    assert run(["train", recipe, *CHANGES], monkeypatch, capsys)[0] == 0
    assert (RUN / "student" / "README.md").exists()

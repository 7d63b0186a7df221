"""Nobody waits in silence: whatever takes long in a command, given large models and much text, runs in a phase.

What takes long is known by its functions: a model that runs, is read or written, text that is tokenized,
intervals that are drawn. They are watched while commands run on pico models. (Hashing a file is a phase itself.)
"""

import functools
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from transformers import PreTrainedModel

import collegium.cli.preflight_tables
import collegium.demo.run
import collegium.pipeline.preflight.judge  # noqa: F401  # now: what is watched is found in its modules
from collegium.base import progress
from collegium.data.tokenization import DocumentTokenizer
from collegium.evaluation import statistics
from collegium.models import pretrained
from collegium.report import plots
from tests.support.command import command
from tests.support.runs import write_recipe


TAKES_LONG = (
    pretrained.read_model,
    statistics.bootstrap_ratio,
    statistics.bootstrap_figure,
    statistics.paired_bootstrap_difference,
    statistics.paired_figure_difference,
    plots.draw_all,
)
"""Functions whose time grows with models and text, beside the methods below."""

METHODS = (
    (nn.Module, "__call__"),
    (PreTrainedModel, "save_pretrained"),
    (DocumentTokenizer, "encode"),
)


@contextmanager
def watched() -> Iterator[set[str]]:
    """Where something that takes long began outside of all phases."""
    silent: set[str] = set()

    def heard(function: Any) -> Any:
        @functools.wraps(function)
        def wrapper(*arguments: Any, **options: Any) -> Any:
            if not progress.phases():
                frames = [f for f in traceback.extract_stack() if "/collegium/" in f.filename]
                silent.add(" > ".join(f"{Path(f.filename).name}:{f.lineno}" for f in frames[-5:]))
            return function(*arguments, **options)

        return wrapper

    with pytest.MonkeyPatch.context() as patch:
        for kind, name in METHODS:
            patch.setattr(kind, name, heard(getattr(kind, name)))
        for function in TAKES_LONG:
            replacement = heard(function)
            for module in [m for key, m in sys.modules.items() if key.startswith("collegium.")]:
                if getattr(module, function.__name__, None) is function:
                    patch.setattr(module, function.__name__, replacement)
        yield silent


@pytest.fixture
def run(tmp_path, monkeypatch, capsys) -> Callable[..., str]:
    """Run a command: nothing in it takes long in silence, and no two phases are called the same at once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLLEGIUM_CACHE", str(tmp_path / "cache"))
    typed = command(monkeypatch, capsys)

    def call(*words: object) -> str:
        with watched() as silent:
            answer = typed(*words)
        assert answer.code == 0, answer.err
        assert not silent, f"{words} in silence:\n" + "\n".join(sorted(silent))
        assert not progress.phases(), "all are over"
        return answer.err

    return call


@pytest.fixture
def recipe(tmp_path, model_folder) -> Path:
    return write_recipe(tmp_path / "files", model_folder)


def test_a_run_and_what_is_done_with_it(recipe, run, tmp_path):
    run("doctor", recipe)
    run("prepare", recipe)
    said = run("train", recipe, "training.evaluate_every=2")
    folder = tmp_path / "runs" / "pico"
    run("evaluate", folder)
    run("report", folder)
    run("export", folder, "--to", "safetensors-int8", "--min-agreement", "0")
    run("push", folder, "me/pico", "--dry-run")
    for name in (
        "preparing the text",
        "preparing the teachers",
        "making the student",
        "training",
        "measuring the student",
        "measuring the student before training",
        "measuring the teachers",
        "computing intervals",
    ):
        assert any(line.startswith(name) for line in said.splitlines()), (name, said)


def test_students_that_are_made(recipe, run, model_folder):
    model = model_folder("student", 0)
    student = f"student={{kind: pruned, model: {model}, num_layers: 1, calibration_blocks: 2, lora: {{rank: 2}}}}"
    run("train", recipe, student, "training.max_steps=1")


def test_caches_and_temperatures_that_are_fitted(recipe, run, tmp_path):
    changes = ("teachers.0.cached=true", "teachers.0.weight_temperature=fit", "cache.mode=hidden_states")
    run("preflight", recipe, *changes)
    run("cache", recipe, *changes)
    (folder,) = (tmp_path / "cache" / "teachers").iterdir()
    run("cache", "verify", folder)
    run("cache", "repair", folder)
    run("train", recipe, *changes, "evaluation.generation={prompt_tokens: 4, new_tokens: 4}")

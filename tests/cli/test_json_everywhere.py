"""`--json` of every command: one document on stdout, whatever happens."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from typer.main import get_command

from collegium.base.errors import DataError
from collegium.cli.app import app
from tests.support.command import Command, command
from tests.support.runs import write_recipe


@pytest.fixture
def run(monkeypatch, capsys) -> Command:
    return command(monkeypatch, capsys)


@pytest.fixture
def recipe(tmp_path, model_folder, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLLEGIUM_CACHE", str(tmp_path / "cache"))
    return write_recipe(tmp_path / "files", model_folder)


def commands_of(group: click.Group, words: tuple[str, ...] = ()) -> dict[tuple[str, ...], click.Command]:
    found = {}
    for name, inner in group.commands.items():
        if hasattr(inner, "commands"):
            found |= commands_of(inner, (*words, name))
        else:
            found[(*words, name)] = inner
    return found


COMMANDS = commands_of(get_command(app))

FAILING = {
    ("reproduce",): (["table9"], 2, "RecipeError"),
    ("evaluate",): (["runs/none"], 65, "DataError"),
    ("cache", "verify"): (["nowhere"], 65, "DataError"),
    ("cache", "repair"): (["nowhere"], 65, "DataError"),
    ("cache", "export"): (["nowhere", "out.parquet"], 65, "DataError"),
    ("init",): (["recipe.yaml", "--kind", "none"], 2, "RecipeError"),
    ("schema",): (["--output", "file/schema.json"], 74, "FileExistsError"),
    ("report",): (["runs/none"], 65, "DataError"),
    ("export",): (["runs/none", "--to", "gguf"], 65, "DataError"),
    ("push",): (["runs/none", "owner/name"], 65, "DataError"),
    ("demo",): ([], 65, "DataError"),
}
"""Arguments that a command cannot use; of the others, a recipe that is not there."""


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_failure_is_one_document(words, run, tmp_path, monkeypatch):
    def fails(*_: object, **__: object) -> None:
        print("noise of a library")
        raise DataError("no demo here")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("collegium.demo.run.run_demo", fails)
    Path("file").write_text("", encoding="utf-8")
    arguments, code, kind = FAILING.get(words, (["none.yaml"], 2, "RecipeError"))
    plain = run(*words, *arguments)
    answer = run(*words, *arguments, "--json")
    assert (plain.code, answer.code) == (code, code), answer.err
    error = json.loads(answer.out)["error"]
    assert set(error) == {"type", "message", "exit_code"}
    assert (error["type"], error["exit_code"]) == (kind, code)
    assert plain.err.splitlines()[-1] == f"collegium: {error['message']}"
    assert answer.err.splitlines()[-1] == f"collegium: {error['message']}", "people read it too"


def test_every_command_has_the_option():
    lacking = [words for words, found in COMMANDS.items() if not any("--json" in p.opts for p in found.params)]
    assert len(COMMANDS) >= 13 and lacking == []


def test_usage_errors_and_faults_of_ours(run, monkeypatch):
    answer = run("train", "--what", "--json")
    assert (answer.code, json.loads(answer.out)["error"]["type"]) == (2, "NoSuchOption")
    monkeypatch.setattr("collegium.recipe.file.load_recipe", lambda *_: 1 / 0)
    monkeypatch.setattr(sys, "argv", ["collegium", "check", "x.yaml", "--json"])
    with pytest.raises(ZeroDivisionError):
        run("check", "x.yaml", "--json")


def test_a_fault_of_ours_is_a_document_and_a_traceback(tmp_path):
    code = (
        "import sys; from collegium.cli.outcome import conclude; sys.argv += ['--json']; conclude(lambda: 1 / 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert json.loads(done.stdout)["error"] == {
        "type": "ZeroDivisionError",
        "message": "division by zero",
        "exit_code": 1,
    }
    assert done.returncode == 1 and "Traceback" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(("command", "advice"), [("train", "; the same command resumes"), ("report", "")])
def test_a_signal_is_a_document(number, command, advice):
    code = (
        f"import os, sys; from collegium.cli.outcome import conclude; sys.argv += ['{command}', '--json']; "
        f"conclude(lambda: os.kill(os.getpid(), {int(number)}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 128 + number
    message = f"stopped by {number.name}{advice}"
    assert json.loads(done.stdout)["error"] == {"type": "Stopped", "message": message, "exit_code": 128 + number}
    assert done.stderr == f"collegium: {message}\n"


def test_other_ranks_are_silent(run, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert run("check", "none.yaml", "--json").out == ""
    assert run("schema", "--json").out == ""


def test_what_is_printed_meanwhile_goes_to_stderr(run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def noisy(*_: object, **__: object) -> dict[str, int]:
        print("noise of a library")
        return {"rows": 1}

    monkeypatch.setattr("collegium.paper.command.reproduce", noisy)
    answer = run("reproduce", "table1", "--json")
    assert json.loads(answer.out) == {"rows": 1}
    assert answer.err == "noise of a library\n"


def test_prepare_and_the_commands_on_caches(run, recipe):
    text = json.loads(run("prepare", recipe, "--json").out)
    assert set(text) == {"directory", "fingerprint", "training_blocks", "held_out_blocks"}
    assert text["training_blocks"] > 0 and set(text["held_out_blocks"]) == {"cats", "dogs"}
    made = json.loads(run("cache", recipe, "teachers.0.cached=true", "--json").out)
    folder = Path(made["one"]["location"])
    assert json.loads(run("cache", "verify", folder, "--json").out)["damages"] == []
    assert json.loads(run("cache", "repair", folder, "--json").out) == {"location": str(folder), "written": []}

    exported = json.loads(run("cache", "export", folder, "out.parquet", "--json").out)
    assert exported == {
        "file": "out.parquet",
        "blocks": text["training_blocks"],
        "bytes": os.path.getsize("out.parquet"),
    }
    shard = next(path for path in sorted(folder.rglob("*.parquet")))
    shard.write_bytes(shard.read_bytes()[:-1])
    answer = run("cache", "verify", folder, "--json")
    document = json.loads(answer.out)
    assert answer.code == document["error"]["exit_code"] == 65
    assert [damage["name"] for damage in document["damages"]] == [str(shard.relative_to(folder))]
    assert json.loads(run("cache", "repair", folder, "--json").out)["written"]

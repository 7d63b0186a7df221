"""Nothing that is printed holds credentials or acts on a terminal, and no recipe keeps credentials."""

import ast
import io
import json
import logging
import sys
import warnings
from pathlib import Path

import pytest

from collegium.base import terminal
from collegium.base.errors import RecipeError
from collegium.base.locks import folder_lock
from collegium.base.secrets import holds_credentials, redacted
from collegium.cli import outcome
from collegium.recipe.file import load_recipe
from tests.support.command import command
from tests.support.runs import write_recipe


PACKAGE = Path(__file__).parents[2] / "src" / "collegium"
SECRET = "hunter2abcdefXYZ99"
REFERENCES = [
    f"s3://key:{SECRET}@bucket/folder",
    f"s3://key:{SECRET}/with/slashes@bucket/folder",
    f"https://user:{SECRET}@host:8080/a.jsonl",
    f"https://{SECRET}@host/a.jsonl",
    f"https://host/a.jsonl?token={SECRET}",
    f"https://host/a.jsonl?x=1&api_key={SECRET}&y=2",
    f"https://bucket.s3.amazonaws.com/a?X-Amz-Expires=60&X-Amz-Signature={SECRET}&X-Amz-Credential={SECRET}%2Fus",
    f"https://host/a?AWSAccessKeyId={SECRET}&Signature={SECRET}&Expires=1",
    f"https://account.blob.core.windows.net/c?sv=2020&sig={SECRET}",
    f"/data/hf_{SECRET}{SECRET}/a.txt",
]
HARMLESS = [
    "s3://bucket/folder",
    "sftp://user@host/folder",
    "https://host:8080/path@v1/a.jsonl?x=1",
    "texts/a.txt",
    "a colon: and someone@example.org",
    "2 tokens?",
    "allenai/c4",
]
HOSTILE = "a\x1b[31mred\x07\x9b2J\u202etxt\r"


@pytest.mark.parametrize("reference", REFERENCES)
def test_credentials_are_found(reference):
    shown = redacted(f"cannot read {reference}: no")
    assert SECRET not in shown and "***" in shown
    assert shown.startswith("cannot read ") and shown.endswith(": no")
    assert holds_credentials(reference) and redacted(shown) == shown


@pytest.mark.parametrize("reference", HARMLESS)
def test_what_is_none_stays(reference):
    assert redacted(reference) == reference and not holds_credentials(reference)


def test_messages_with_headers():
    assert redacted(f"401: Authorization: Bearer {SECRET}") == "401: Authorization: Bearer ***"
    assert redacted("basic understanding and bearer of news") == "basic understanding and bearer of news"


def is_safe(text: str) -> bool:
    return SECRET not in text and not any(character in text for character in "\x1b\x07\x9b\u202e\r")


WRITERS = {
    "say": lambda text: terminal.say(text),
    "show": lambda text: terminal.show(text),
    "table": lambda text: terminal.show_table(text, ["", text], [[text, text]]),
    "json": lambda text: terminal.show_json({"a": text}),
    "failure": lambda text: outcome._fail(RecipeError(text), text, 2),
    "log": lambda text: logging.getLogger("some.library").warning("of %s", text),
    "warning": lambda text: warnings.warn(text, UserWarning, stacklevel=1),
    "traceback": lambda text: sys.excepthook(ValueError, ValueError(text), None),
}


@pytest.mark.parametrize("is_terminal", [False, True])
@pytest.mark.parametrize("writer", WRITERS)
def test_no_way_out_lets_them_through(writer, is_terminal, monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: is_terminal, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, stream)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    factory = logging.getLogRecordFactory()
    handler = outcome._Warnings()
    logging.getLogger("some.library").addHandler(handler)
    try:
        outcome._quiet_libraries()
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            monkeypatch.setattr(warnings, "showwarning", warnings_to_stderr)
            WRITERS[writer](f"{HOSTILE} {REFERENCES[0]} {REFERENCES[4]}")
    finally:
        logging.setLogRecordFactory(factory)
        logging.getLogger("some.library").removeHandler(handler)
    written = stream.getvalue()
    assert "***" in written
    if writer != "table" or not is_terminal:  # rich draws its own styles
        assert is_safe(written.replace("\n", " "))
    assert SECRET not in written and "\x1b[31m" not in written and "\x07" not in written


def warnings_to_stderr(message, category, filename, lineno, file=None, line=None):
    """What Python does where no test listens."""
    sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))


def test_a_record_of_any_library_is_shown_safely(monkeypatch):
    record = outcome._Record("a", logging.WARNING, "f", 1, "%s", (f"{HOSTILE} {REFERENCES[2]}",), None)
    assert is_safe(record.getMessage())


def prints(tree: ast.AST) -> list[int]:
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and (
            (isinstance(node.func, ast.Name) and node.func.id == "print")
            or ast.unparse(node.func) in ("typer.echo", "click.echo", "sys.stdout.write", "sys.stderr.write")
        )
    ]


def test_one_module_writes_to_the_console():
    """All else goes through it, so that no other can let through what a terminal would obey."""
    found = {
        str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if prints(ast.parse(path.read_text()))
    }
    assert found == {"base/terminal.py"}


@pytest.mark.parametrize("reference", REFERENCES)
def test_no_recipe_keeps_credentials_and_no_command_prints_them(
    reference, tmp_path, model_folder, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    recipe = write_recipe(tmp_path / "files", model_folder)
    run = command(monkeypatch, capsys)
    for key in ("cache.directory", "data.sources.0.path", "student.model", "output_dir"):
        for words in (("check",), ("train",)):
            answer = run(*words, recipe, f"{key}={json.dumps(reference)}", "--json")
            assert answer.code == 2 and "holds credentials" in answer.err
            assert SECRET not in answer.out + answer.err
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert kept == []
    with pytest.raises(RecipeError, match="FSSPEC_S3_KEY"):
        load_recipe(recipe, [f"data.directory={json.dumps(reference)}"])
    answer = run("cache", "verify", reference)
    assert answer.code != 0 and SECRET not in answer.out + answer.err


def test_a_lock_names_the_command_without_them(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["collegium", "cache", "verify", *REFERENCES])
    with folder_lock(tmp_path):
        kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"collegium cache verify" in kept and SECRET.encode() not in kept

"""The pages of docs/ as a whole: each can be reached, and lists that must be whole are. No Sphinx is needed.

Whether links and paths lead somewhere is seen in `test_documents.py`.
"""

import re
from fnmatch import fnmatch
from pathlib import Path

import click
import pytest
from typer.main import get_command

from collegium.base.errors import EXIT_CODES
from collegium.cli.app import app


ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)
WITH_DIRECTIVES = {"index", "api"}

TOCTREE = re.compile(r"```\{toctree\}\n(.*?)```", re.DOTALL)
ARXIV = re.compile(r"(?<![\d.])\d{4}\.\d{5}(?!\d)")


def name_of(page: Path) -> str:
    return page.relative_to(DOCS).with_suffix("").as_posix()


def entries_of(text: str) -> list[str]:
    lines = [line.strip() for block in TOCTREE.findall(text) for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith(":")]


def reached(pages: dict[str, str]) -> set[str]:
    """Names of pages that a toctree leads to, from `index` on."""
    seen, new = set(), {"index"}
    while new:
        seen |= new
        entries = [entry for name in new for entry in entries_of(pages[name])]
        new = {name for name in pages for entry in entries if fnmatch(name, entry)} - seen
    return seen


def commands_of(group: click.Group, prefix: str = "collegium") -> dict[str, click.Command]:
    found: dict[str, click.Command] = {}
    for name, inner in group.commands.items():
        found |= (
            commands_of(inner, f"{prefix} {name}") if hasattr(inner, "commands") else {f"{prefix} {name}": inner}
        )
    return found


COMMANDS = commands_of(get_command(app))


@pytest.fixture(scope="module")
def commands_page() -> str:
    return (DOCS / "commands.md").read_text(encoding="utf-8")


def test_what_is_not_reached_is_found():
    pages = {"index": "```{toctree}\n:hidden:\n\na\nsub/*\n```", "a": "", "sub/b": "", "c": ""}
    assert reached(pages) == {"index", "a", "sub/b"}


def test_every_page_is_reached():
    pages = {name_of(page): page.read_text(encoding="utf-8") for page in PAGES}
    assert len(pages) > 40
    assert sorted(set(pages) - reached(pages)) == []
    named = {entry for text in pages.values() for entry in entries_of(text)}
    assert [entry for entry in named if not any(fnmatch(name, entry) for name in pages)] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_page_is_plain_markdown_with_one_title(page):
    text = page.read_text(encoding="utf-8")
    if name_of(page) not in WITH_DIRECTIVES:
        assert re.search(r"```\{|^:::|\{(doc|ref|py:\w+)\}`", text, re.MULTILINE) is None
    outside = re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
    assert len(re.findall(r"^# ", outside, re.MULTILINE)) == 1


def test_the_page_of_commands_has_all_commands(commands_page):
    lacking = [name for name in COMMANDS if f"| `{name}" not in commands_page]
    assert len(COMMANDS) >= 13 and lacking == []
    named = set(re.findall(r"^\| `(collegium [a-z]+(?: [a-z]+)?)", commands_page, re.MULTILINE))
    assert sorted(named - set(COMMANDS)) == []


def test_the_page_of_commands_has_all_options(commands_page):
    options = {
        (name.removeprefix("collegium "), option)
        for name, command in COMMANDS.items()
        for parameter in command.params
        for option in (*parameter.opts, *parameter.secondary_opts)
        if option.startswith("--") and option not in ("--json", "--help")
    }
    rows = re.findall(r"^\| `([a-z ]+)` \| (`--.*?) \|", commands_page, re.MULTILINE)
    described = {(name, option) for name, cell in rows for option in re.findall(r"`(--[\w-]+)`", cell)}
    assert described == options


def test_the_page_of_commands_has_all_exit_codes(commands_page):
    rows = re.findall(r"^\| (\d+) \| (.*?) \|$", commands_page, re.MULTILINE)
    assert {int(code): meaning for code, meaning in rows} == dict(EXIT_CODES)


def test_the_page_of_papers_has_all_that_are_cited():
    """Each with the pages and modules that cite it; the table of methods leads to the same pages."""
    folders, page = ("src/collegium", "docs"), DOCS / "papers.md"
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".md")]
    cited = {
        (number, str(path.relative_to(ROOT / "src/collegium" if path.suffix == ".py" else DOCS)))
        for path in files
        if path not in (page, DOCS / "methods.md") and "_build" not in path.parts
        for number in ARXIV.findall(path.read_text(encoding="utf-8"))
    }
    rows = re.findall(r"^\| \[([\d.]+)\]\(https://arxiv.org/abs/\1\)(.*)$", page.read_text("utf-8"), re.MULTILINE)
    named = {(number, place) for number, row in rows for place in re.findall(r"\]\((.*?\.md)\)|`(.*?\.py)`", row)}
    told = {(number, pages or modules) for number, (pages, modules) in named}
    assert len(rows) == len({number for number, _ in cited}) > 30
    assert (sorted(cited - told), sorted(told - cited)) == ([], [])

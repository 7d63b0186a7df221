"""What the documents name must exist: files, `make` targets, sub-commands of `collegium`."""

import ast
import functools
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
PAGES = [path for path in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in path.parts]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]
LOGS = [ROOT / "CHANGELOG.md", ROOT / "LOG.md"]

PLACES = {"src", "tests", "docs", "recipes", "experiments", "benchmarks", ".ci"}
"""Folders of the repository; a path in code that begins elsewhere is not ours (`runs/demo/...`)."""

PACKAGE = ROOT / "src" / "collegium"
SUBPACKAGES = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}

MACHINE_PATH = re.compile(r"(?<![\w.])/(work|root|opt|home|tmp/pilot|Users)/")
PRIVATE_WORD = re.compile(r"\bissue #", re.IGNORECASE)
DIALECT = re.compile(r"\b(mend(s|ed|ing)?|anew|surer|over-confident)\b", re.IGNORECASE)
"""Words for which plain English has others: fix, again, overconfident."""

FENCE = re.compile(r"^ *(```|~~~)(\w*).*?\n(.*?)^ *\1", re.MULTILINE | re.DOTALL)
COMMAND_START = r"(?:^|[;&|(] *|\$ +)(?:\w+=\S+ +)*(?:[\w.]+/)*"
MAKE = re.compile(COMMAND_START + r"make((?: +[a-zA-Z][\w-]*(?:=\S*)?)+)")
COLLEGIUM = re.compile(COMMAND_START + r"collegium +([a-z][a-z-]*)")
MODULE = re.compile(r"-m collegium(?:\.cli)? +([a-z][a-z-]*)")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)|^\[[^\]]+\]: *(\S+)", re.MULTILINE)
HEADING = re.compile(r"^#+ +(.*)$", re.MULTILINE)
ROOM_LINE = re.compile(r"[├└]── (\w+)/ +(\S.*?) {2,}(\S.*)")
""" `├── cache/   teachers on disk   manifest.py, shard.py` """


def code_of(text: str) -> list[str]:
    """Lines of fenced blocks (Python left out) and inline code."""
    blocks = [body for _, language, body in FENCE.findall(text) if not language.startswith("py")]
    lines = [re.split(r"\s#", line)[0].strip() for block in blocks for line in block.splitlines()]
    return [*lines, *re.findall(r"`([^`\n]+)`", FENCE.sub("", text))]


def links_of(text: str) -> list[str]:
    prose = re.sub(r"`[^`\n]*`", "``", FENCE.sub("", text))
    found = [inline or reference for inline, reference in LINK.findall(prose)]
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def anchors_of(text: str) -> set[str]:
    titles = HEADING.findall(FENCE.sub("", text))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def paths_of(text: str) -> list[str]:
    """Paths in code that begin with a folder of the repository or of the package."""
    words = [word.strip("'\",;:()") for code in code_of(text) for word in code.split()]
    return [
        word
        for word in words
        if re.fullmatch(r"[\w.*-]+(/[\w.*-]*)+", word)
        and word.split("/")[0] in PLACES | SUBPACKAGES
        and not re.search(r"[A-Z]{2,}\.(?!md)|/[A-Z]{2,}$", word)  # recipes/NAME.yaml, tests/ROOM
    ]


def definitions_of(text: str) -> list[str]:
    """Functions and classes that are named with their file: `losses/divergences.py:forward_kl`."""
    words = [word.strip("'\",;()") for code in code_of(text) for word in code.split()]
    return [word for word in words if re.fullmatch(r"[\w/]+/\w+\.py:\w+", word)]


def code_map_of(text: str) -> dict[str, list[str]]:
    """Each room in the drawing of `src/collegium/`, with the files to begin with."""
    (drawing,) = [body for _, _, body in FENCE.findall(text) if body.startswith("src/collegium/")]
    rooms = {}
    for line in drawing.splitlines()[1:]:
        row = ROOM_LINE.fullmatch(line)
        assert row is not None, f"not `├── room/  what it holds  file.py, file.py`: {line}"
        room, _, files = row.groups()
        rooms[room] = [f"{room}/{file}" for file in files.split(", ")]
    return rooms


def layers_of(text: str) -> list[str]:
    """The drawing of the rooms in CONTRIBUTING.md, from the top down, as import-linter has it."""
    (drawing,) = [body for _, _, body in FENCE.findall(text) if body.startswith("cli\n")]
    return [line for line in drawing.splitlines() if not line.startswith("--")]


def make_targets_of(text: str) -> list[str]:
    words = [word for code in code_of(text) for run in MAKE.findall(code) for word in run.split()]
    return [word for word in words if "=" not in word]


def commands_of(text: str) -> list[str]:
    return [name for code in code_of(text) for name in COLLEGIUM.findall(code) + MODULE.findall(code)]


def exists(path: str) -> bool:
    return any(next(base.glob(path.rstrip("/")), None) for base in (ROOT, PACKAGE))


def is_defined(place: str) -> bool:
    """A file, or `file.py:name` with a function or class of that name in it."""
    path, _, name = place.partition(":")
    files = [base / path for base in (ROOT, PACKAGE) if (base / path).is_file()]
    if not files or not name:
        return bool(files)
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return any(
        isinstance(node, kinds) and node.name == name
        for node in ast.walk(ast.parse(files[0].read_text(encoding="utf-8")))
    )


@functools.cache
def is_command(name: str) -> bool:
    code = "import sys; from collegium.cli.app import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, name, "--help"],
        capture_output=True,
        check=False,
        env={**os.environ, "COLUMNS": "100"},
    )
    return done.returncode == 0


def of_document(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


class TestTheCheckers:
    TEXT = """
# A title, with `code`
Make sure of [this](docs/a.md#part) and [that](https://example.org/x), see `losses/fusion.py`,
`recipes/NAME.yaml` and `runs/demo/report.html`; `make test` or `collegium train recipe.yaml`.

```bash
make demo PYTHON=python3.12   # make nothing
HF_HUB_OFFLINE=1 .venv/bin/collegium evaluate runs/x && collegium report runs/x
python -m collegium export recipes/demo.yaml
```

```python
from collegium import recipe
make = "make trouble"
```
"""

    def test_what_is_named_is_found(self):
        assert links_of(self.TEXT) == ["docs/a.md#part"]
        assert paths_of(self.TEXT) == ["recipes/demo.yaml", "losses/fusion.py"]
        assert make_targets_of(self.TEXT) == ["demo", "test"]
        assert commands_of(self.TEXT) == ["evaluate", "report", "export", "train"]
        assert anchors_of(self.TEXT) == {"a-title-with-code"}

    MAP = """
```text
src/collegium/    a room imports only rooms below it    begin with
├── losses/       pure functions, (x, y) -> z           divergences.py, weighting.py:no_such
└── no_such/      nothing                               divergences.py
```

```
cli
demo | paper
---- no torch
base
```
"""

    def test_a_drawing_of_rooms_is_read(self):
        assert code_map_of(self.MAP) == {
            "losses": ["losses/divergences.py", "losses/weighting.py:no_such"],
            "no_such": ["no_such/divergences.py"],
        }
        assert layers_of(self.MAP) == ["cli", "demo | paper", "base"]
        with pytest.raises(AssertionError, match="models"):
            code_map_of(self.MAP.replace("└──", "├── models/ head.py\n└──"))

    def test_a_definition_that_is_missing_is_found(self):
        assert definitions_of("see `losses/fusion.py:fuse`, or `a.py`") == ["losses/fusion.py:fuse"]
        assert is_defined("losses/divergences.py") and is_defined("losses/divergences.py:forward_kl")
        assert is_defined("signals/contracts.py:Batch")
        assert not is_defined("losses/divergences.py:backward_kl") and not is_defined("losses/no_such.py")

    def test_what_is_missing_is_found(self):
        assert exists("tests/test_documents.py") and exists("losses/fusion.py")
        assert exists("tests/*.py") and exists("tests/")
        assert not exists("recipes/no-such.yaml") and not exists("losses/no_such.py")

    def test_what_must_not_be_named_is_found(self):
        assert MACHINE_PATH.search("in /work/" + "x") and PRIVATE_WORD.search("see Issue " + "#3")
        assert DIALECT.search("it mends the weights") and not DIALECT.search("we recommend an amended one")
        assert own_words("a <!-- results: x/y -->\nover-confident\n<!-- end --> b `mend`") == "a  b "
        assert not MACHINE_PATH.search("src/work/x") and not MACHINE_PATH.search("https://a.org/opt/")


@pytest.mark.parametrize("document", DOCUMENTS, ids=of_document)
class TestDocument:
    @pytest.fixture
    def text(self, document):
        return document.read_text(encoding="utf-8")

    def test_links_lead_somewhere(self, document, text):
        for link in links_of(text):
            path, _, anchor = link.partition("#")
            target = document.parent / path if path else document
            assert target.exists(), link
            if anchor and target.suffix == ".md":
                assert anchor in anchors_of(target.read_text(encoding="utf-8")), link

    def test_paths_exist(self, text):
        assert [path for path in paths_of(text) if not exists(path)] == []

    def test_definitions_exist(self, text):
        assert [place for place in definitions_of(text) if not is_defined(place)] == []

    def test_make_targets_exist(self, text):
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        targets = set(re.findall(r"^([a-z][\w-]*):", makefile, re.MULTILINE))
        assert [name for name in make_targets_of(text) if name not in targets] == []

    def test_commands_exist(self, text):
        assert [name for name in dict.fromkeys(commands_of(text)) if not is_command(name)] == []


def import_layers() -> list[str]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (contract, *_) = settings["tool"]["importlinter"]["contracts"]
    return [layer for layer in contract["layers"] if layer != "(__main__)"]


def test_the_code_map_leads_to_every_room():
    """From the top down as the layers are, so that the drawing shows who may import whom."""
    rooms = code_map_of((ROOT / "README.md").read_text(encoding="utf-8"))
    assert [place for places in rooms.values() for place in places if not is_defined(place)] == []
    level = {room: number for number, layer in enumerate(import_layers()) for room in layer.split(" | ")}
    assert set(rooms) == set(level) == SUBPACKAGES
    assert [level[room] for room in rooms] == sorted(level.values())


def test_the_rooms_are_drawn_as_import_linter_has_them():
    assert layers_of((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")) == import_layers()


def shipped_texts() -> list[Path]:
    folders = ["src", "recipes", "experiments", "benchmarks", "docs"]
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*"))]
    files = [path for path in found if "_build" not in path.parts]
    suffixes = {".py", ".md", ".yaml", ".json", ".toml", ".txt"}
    single = ["pyproject.toml", "Makefile", "constraints.txt", ".ci/run"]
    texts = [path for path in files if path.suffix in suffixes and path.is_file()]
    return [*dict.fromkeys([*DOCUMENTS, *LOGS, *(ROOT / name for name in single), *texts])]


@pytest.mark.parametrize("path", shipped_texts(), ids=of_document)
def test_nothing_private_is_named(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    found = [line for line in lines if MACHINE_PATH.search(line) or PRIVATE_WORD.search(line)]
    assert found == []


def own_words(text: str) -> str:
    """The text without code, and without tables that experiments write: those keep their labels."""
    return re.sub(r"<!-- results: .*?<!-- end -->|`[^`\n]*`", "", text, flags=re.DOTALL)


@pytest.mark.parametrize(
    "path",
    [
        *(page for page in (*DOCUMENTS, ROOT / "CHANGELOG.md") if page.name != "results.md"),
        *sorted((ROOT / "recipes").rglob("*.yaml")),
        *sorted((ROOT / "experiments").rglob("*.yaml")),
    ],
    ids=of_document,
)
def test_words_are_plain_english(path):
    text = own_words(path.read_text(encoding="utf-8"))
    assert [line for line in text.splitlines() if DIALECT.search(line)] == []


def test_constraints_are_pins_without_hosts():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split("  #")[0] for line in lines if not line.startswith("#")]
    assert pins[0].startswith("torch==")
    assert [pin for pin in pins if not re.fullmatch(r"[\w.-]+==[\w.]+", pin)] == []

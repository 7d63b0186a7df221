"""What CONTRIBUTING.md asks of the package and its tests, checked on their syntax trees.

The checkers are in `tests/support/code_rules.py`; each is tried on small wrong examples first.
"""

import ast
import importlib
import inspect
import re
import statistics
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from collegium.recipe.sections.base import Section
from tests.support import code_rules as rules


ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "collegium"
FILES = sorted(PACKAGE.rglob("*.py"))
ROOMS = sorted(path.parent for path in PACKAGE.glob("*/__init__.py"))
TESTS = ROOT / "tests"

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_MEDIAN_LINES = 150
MAX_POSITIONAL = 6
MAX_TUPLE = 3
MAX_VAGUE_DOCSTRINGS = 0.02
MAX_PAIRS_PER_LINE = 0.002
MIN_ENGINE_COMMENTS = 0.03

LONGER_THAN_ALLOWED: dict[str, str] = {}
"""`file.py` or `file.py:Class.function` -> why. This list may only become shorter."""

WITHOUT_TORCH = [
    "collegium",
    "collegium.recipe.recipe",
    "collegium.recipe.file",
    "collegium.cli.app",
    "collegium.pipeline.push",
]

MAY_NAME_IGNORE_INDEX = {"data/given_tokens.py", "signals/contracts.py", "data/collate.py"}

ENGINE = [
    *sorted(path for path in (PACKAGE / "fused").glob("*.py") if path.name != "__init__.py"),
    PACKAGE / "alignment" / "plan.py",
    PACKAGE / "training" / "checkpoint.py",
]
"""The files that are hardest to read, which explain themselves in comments."""


def relative(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0]


def all_sections(section: type[Section] = Section) -> list[type[Section]]:
    return [section, *(s for sub in section.__subclasses__() for s in all_sections(sub))]


def too_long(files: dict[str, str]) -> set[str]:
    return rules.longer_than(files, max_file_lines=MAX_FILE_LINES, max_function_lines=MAX_FUNCTION_LINES)


class TestTheCheckers:
    """A checker that finds nothing proves nothing until it has found something."""

    @pytest.mark.parametrize(
        "code",
        [
            "import pickle",
            "from dill import loads",
            "import yaml\nyaml.load(x)",
            "import torch\ntorch.load(p)",
            "import torch as t\nt.load(p)",
            "from torch import load\nload(p)",
            "import numpy as np\nnp.load(p)",
            "eval('1')",
            "exec('1')",
            "import numpy\nf(allow_pickle=True)",
        ],
    )
    def test_unsafe_is_found(self, code):
        assert rules.unsafe(ast.parse(code))

    @pytest.mark.parametrize(
        "code",
        [
            "model.eval()",
            "import re\nre.compile('x')",
            "yaml = YAML()\nyaml.load(x)",
            "json.load(f)",
        ],
    )
    def test_safe_is_left_alone(self, code):
        assert not rules.unsafe(ast.parse(code))

    @pytest.mark.parametrize(
        "code", ["x = -100", "from a import IGNORE_INDEX", "a.IGNORE_INDEX", "f(labels != -100)"]
    )
    def test_ignore_index_is_found(self, code):
        assert rules.names_ignore_index(ast.parse(code))

    def test_kwargs_are_found(self):
        code = """
class A:
    def __init__(self, **kwargs): ...
    def _private(self, **kwargs): ...
    async def f(self):
        def wrapper(**kwargs): ...
def g(a, **rest): ...
class Log(TrainerCallback):
    def on_log(self, args, **kwargs): ...
"""
        assert rules.with_kwargs(ast.parse(code)) == ["A.__init__", "g"]

    def test_length_is_found(self):
        body = "\n".join(f"    x{i} = {i}" for i in range(MAX_FUNCTION_LINES))
        text = f"class A:\n  def f(self):\n{body}\n" + "\n" * MAX_FILE_LINES
        assert too_long({"a.py": text}) == {"a.py", "a.py:A.f"}
        assert too_long({"a.py": "def f():\n    return 1\n"}) == set()

    def test_many_positional_parameters_are_found(self):
        code = """
def f(a, b, c, d, e, f, g): ...
def g(a, b, /, c, d, e, f, g=1, *, h): ...
class A:
    def seven(self, a, b, c, d, e, f, g): ...
    def six(self, a, b, c, d, e, f): ...
    @classmethod
    def of(cls, a, b, c, d, e, f): ...
def keywords(a, *, b, c, d, e, f, g): ...
"""
        assert rules.many_positional(ast.parse(code)) == ["f", "g", "A.seven"]

    @pytest.mark.parametrize(
        ("result", "is_wide"),
        [
            ("tuple[int, int, int, int]", True),
            ("tuple[int, int, int, int] | None", True),
            ("Iterator[tuple[str, str, str, int]]", True),
            ("'tuple[A, B, C, D]'", True),
            ("tuple[int, int, int]", False),
            ("tuple[int, ...]", False),
            ("Figures", False),
            ("dict[str, list[int]]", False),
        ],
    )
    def test_wide_tuples_are_found(self, result, is_wide):
        assert (
            rules.wide_tuples(ast.parse(f"def f(x: tuple[int, int, int, int]) -> {result}: ..."))
            == ["f"] * is_wide
        )

    def test_a_function_without_annotation_has_no_wide_tuple(self):
        assert rules.wide_tuples(ast.parse("def f(): return 1, 2, 3, 4")) == []

    @pytest.mark.parametrize("word", ["What", "Of", "How", "Whether", "Where"])
    def test_vague_docstrings_are_found(self, word):
        assert rules.begins_vaguely(f"{word} a thing is.") and rules.begins_vaguely(f"{word}: a thing.")

    @pytest.mark.parametrize(
        "text", ["Whatever can score tokens.", "Offsets of tokens.", "`Of` a thing.", "Reads."]
    )
    def test_other_docstrings_are_left_alone(self, text):
        assert rules.begins_vaguely(text) == text.startswith("`Of`")

    def test_docstrings_are_those_of_modules_classes_and_functions(self):
        code = '"""One."""\nx = 1\n"""No."""\nclass A:\n    """Two."""\n    def f(self):\n        """Three."""'
        assert sorted(rules.docstrings(ast.parse(code))) == ["One.", "Three.", "Two."]

    def test_pairs_are_found(self):
        code = "a, b = 1, 2\n(c, d) = (a, b)\nc, d = f()\ne = 1, 2\nfor a, b in (1, 2), (3, 4): pass"
        assert rules.pairs(ast.parse(code)) == [1, 2]

    def test_comments_are_counted(self):
        assert rules.comment_lines('# one\nx = "# not"  # two\n"""# not"""\n') == 2

    def test_imports_from_other_tests_are_found(self):
        code = "from tests.cli.test_outcome import run\nimport tests.test_layout\nfrom tests.support import pico"
        assert rules.of_other_tests(ast.parse(code)) == ["tests.cli.test_outcome.run", "tests.test_layout"]
        assert rules.of_other_tests(ast.parse("from tests.support.latest import texts")) == []

    @pytest.mark.parametrize(
        "code",
        [
            "N = 0\ndef f():\n    global N",
            "SEEN = {}\ndef f(x):\n    SEEN[x] = 1",
            "SEEN: list[int] = []\ndef f(x):\n    SEEN.append(x)",
            "SEEN = set()\ndef f(x):\n    SEEN.add(x)",
            "SEEN = collections.defaultdict(int)\ndef f(x):\n    SEEN[x] += 1",
            "SEEN = [1]\ndef f():\n    del SEEN[0]",
            "@functools.cache\ndef f(): ...",
            "class A:\n    @lru_cache(maxsize=1)\n    def f(self): ...",
        ],
    )
    def test_module_state_is_found(self, code):
        assert rules.module_state(ast.parse(code))

    @pytest.mark.parametrize(
        "code",
        [
            "NAMES = {'a': 1}\ndef f(x):\n    return NAMES[x]",
            "def f(x):\n    seen = []\n    seen.append(x)\n    return seen",
            "SIZES = (1, 2)",
        ],
    )
    def test_constants_are_left_alone(self, code):
        assert not rules.module_state(ast.parse(code))

    def test_a_room_that_says_too_little_is_found(self):
        whole = "Text, from sources to batches.\n\nMay import `base`. Begin with `sources`, then `packing`."
        assert rules.room_docstring_lacks(whole) == []
        assert rules.begins_with(whole) == ["sources", "packing"]
        assert rules.room_docstring_lacks(None) == ["a first sentence", "what it may import", "where to begin"]
        assert rules.room_docstring_lacks("Text.\n\nRests on `base`.") == ["where to begin"]


def test_there_is_something_to_check():
    assert len(FILES) > 5


def test_every_folder_of_modules_is_a_package():
    folders = {path.parent for path in FILES}
    missing = [relative(folder) for folder in folders if not (folder / "__init__.py").exists()]
    assert sorted(missing) == [], "add __init__.py: without it the layers are not checked"


def test_files_and_functions_stay_short():
    found = too_long({relative(path): path.read_text(encoding="utf-8") for path in FILES})
    limits = f"{MAX_FILE_LINES} lines a file, {MAX_FUNCTION_LINES} a function"
    allowed = set(LONGER_THAN_ALLOWED)
    assert sorted(found - allowed) == [], f"too long ({limits}): split them"
    assert sorted(allowed - found) == [], "short enough now: remove it from the list"


def test_half_of_the_files_are_short():
    lengths = [len(path.read_text(encoding="utf-8").splitlines()) for path in FILES]
    assert statistics.median(lengths) <= MAX_MEDIAN_LINES


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_meaning_goes_by_name_not_by_place(path):
    tree = parse(path)
    assert rules.many_positional(tree, most=MAX_POSITIONAL) == [], "make them keyword-only, or group them"
    assert rules.wide_tuples(tree, most=MAX_TUPLE) == [], "return a NamedTuple or a small dataclass"


def test_docstrings_begin_with_a_verb_or_a_name():
    found = {relative(path): rules.docstrings(parse(path)) for path in FILES}
    vague = [(name, text) for name, texts in found.items() for text in texts if rules.begins_vaguely(text)]
    assert len(vague) <= MAX_VAGUE_DOCSTRINGS * sum(map(len, found.values())), vague


def test_one_assignment_a_line():
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in FILES)
    found = [f"{relative(path)}:{line}" for path in FILES for line in rules.pairs(parse(path))]
    assert len(found) <= MAX_PAIRS_PER_LINE * lines, found


@pytest.mark.parametrize("path", ENGINE, ids=relative)
def test_the_engine_says_why(path):
    text = path.read_text(encoding="utf-8")
    assert rules.comment_lines(text) >= MIN_ENGINE_COMMENTS * len(text.splitlines())


def test_the_root_holds_rooms_and_nothing_else():
    entries = {path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    assert entries == {*(room.name for room in ROOMS), "__init__.py", "__main__.py", "py.typed"}
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = settings["tool"]["importlinter"]["contracts"][0]["layers"]
    drawn = {room for layer in layers for room in layer.split(" | ")}
    assert drawn - {"(__main__)"} == {room.name for room in ROOMS}


@pytest.mark.parametrize("room", ROOMS, ids=relative)
def test_a_room_says_what_it_is_and_where_to_begin(room):
    docstring = ast.get_docstring(parse(room / "__init__.py"))
    assert rules.room_docstring_lacks(docstring) == []
    begin = rules.begins_with(docstring)
    missing = [name for name in begin if not (room / f"{name}.py").exists() and not (room / name).is_dir()]
    assert begin and missing == []


@pytest.mark.parametrize("room", ROOMS, ids=relative)
def test_a_room_has_tests_of_its_own(room):
    assert list((TESTS / room.name).rglob("test_*.py"))


def test_tests_are_grouped_as_the_rooms_are():
    folders = {path.name for path in TESTS.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders <= {*(room.name for room in ROOMS), "support"}
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "pythonpath" not in settings["tool"]["pytest"]["ini_options"]


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: path.relative_to(TESTS).as_posix())
def test_no_test_imports_another(path):
    assert rules.of_other_tests(parse(path)) == [], "move what is shared into tests/support"


@pytest.mark.parametrize("path", [path for path in FILES if room_of(path) == "losses"], ids=relative)
def test_losses_hold_no_state(path):
    assert rules.module_state(parse(path)) == []


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_nothing_runs_code_from_files(path):
    assert rules.unsafe(parse(path)) == []


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_public_functions_name_their_arguments(path):
    assert rules.with_kwargs(parse(path)) == [], "name the arguments instead of **kwargs"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_ignore_index_is_read_at_the_border_alone(path):
    if relative(path) not in MAY_NAME_IGNORE_INDEX:
        assert rules.names_ignore_index(parse(path)) == [], "use contracts.predicted_positions"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_nothing_is_left_to_do(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    marks = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    found = [f"{number}: {line}" for number, line in enumerate(lines, 1) if marks.search(line)]
    assert found == [], "do it, or write it into LOG.md"


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_imports_without_torch(module):
    code = f"import sys, {module}; print(*sorted({{'torch', 'transformers'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_every_module_imports():
    for path in FILES:
        if path.name != "__main__.py":
            parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
            importlib.import_module(".".join(parts).removesuffix(".__init__"))


@pytest.mark.parametrize("folder", ["benchmarks", "experiments"])
def test_programs_beside_the_package_import_what_is_there(folder):
    missing = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("collegium"):
                module = importlib.import_module(node.module)
                missing += [
                    f"{path.name}: {node.module}.{a.name}" for a in node.names if not hasattr(module, a.name)
                ]
    assert missing == []


def test_every_recipe_field_is_described():
    sections = {s for s in all_sections() if inspect.getmodule(s).__name__.startswith("collegium.")}
    missing = [
        f"{section.__name__}.{name}"
        for section in sections
        for name, field in section.model_fields.items()
        if not (field.description or "").strip()
    ]
    assert len(sections) > 5
    assert missing == [], "write a docstring under the field"

"""What CONTRIBUTING.md asks of every file in src/, checked on its syntax tree."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from collegium.recipe.sections.base import Section


ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "collegium"
FILES = sorted(PACKAGE.rglob("*.py"))

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

LONGER_THAN_ALLOWED: dict[str, str] = {}
"""`file.py` or `file.py:Class.function` -> why. This list may only become shorter."""

WITHOUT_TORCH = [
    "collegium",
    "collegium.recipe.recipe",
    "collegium.recipe.file",
    "collegium.cli.app",
    "collegium.pipeline.push",
]

FORBIDDEN_MODULES = {
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "marshal",
    "shelve",
    "yaml",
}
FORBIDDEN_CALLS = {"eval", "exec", "torch.load", "numpy.load", "yaml.load"}
SPECIAL = {"__init__", "__call__"}
MAY_NAME_IGNORE_INDEX = {"signals/contracts.py", "data/collate.py"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def relative(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def functions(tree: ast.AST, prefix: str = "") -> list[tuple[str, Function]]:
    """Functions and methods with their dotted names; a nested one comes after what it is in."""
    found: list[tuple[str, Function]] = []
    for node in ast.iter_child_nodes(tree):
        inner = prefix
        if isinstance(node, Function):
            found.append((f"{prefix}{node.name}", node))
            inner = f"{prefix}{node.name}.<locals>."
        elif isinstance(node, ast.ClassDef):
            inner = f"{prefix}{node.name}."
        found += functions(node, inner)
    return found


def line_count(node: Function) -> int:
    return (node.end_lineno or 0) - node.lineno + 1


def too_long(files: dict[str, str]) -> set[str]:
    names = set()
    for name, text in files.items():
        if len(text.splitlines()) > MAX_FILE_LINES:
            names.add(name)
        for function, node in functions(ast.parse(text)):
            if line_count(node) > MAX_FUNCTION_LINES:
                names.add(f"{name}:{function}")
    return names


def imported_names(tree: ast.AST) -> dict[str, str]:
    """Local name -> what it stands for: `np` -> numpy, `load` -> torch.load."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def called_name(node: ast.expr, names: dict[str, str]) -> str | None:
    """Full dotted name of what is called, if it was imported or is a builtin."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Attribute):
        owner = node.value
        known = not isinstance(owner, ast.Name) or owner.id in names
        return f"{called_name(owner, names)}.{node.attr}" if known else None
    return None


def unsafe(tree: ast.AST) -> list[str]:
    """Uses of what can run code hidden in a file."""
    names, found = imported_names(tree), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] in FORBIDDEN_MODULES]
        elif isinstance(node, ast.ImportFrom):
            found += [m for m in [node.module or ""] if m.split(".")[0] in FORBIDDEN_MODULES]
        elif isinstance(node, ast.Call):
            name = called_name(node.func, names) or ""
            found += [name] if name in FORBIDDEN_CALLS else []
            found += [f"allow_pickle in {name}" for k in node.keywords if k.arg == "allow_pickle"]
    return found


def names_ignore_index(tree: ast.AST) -> list[int]:
    lines = []
    for node in ast.walk(tree):
        negative = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub)
        if (
            (isinstance(node, ast.Name) and node.id == "IGNORE_INDEX")
            or (isinstance(node, ast.Attribute) and node.attr == "IGNORE_INDEX")
            or (isinstance(node, ast.alias) and node.name == "IGNORE_INDEX")
            or (negative and isinstance(node.operand, ast.Constant) and node.operand.value == 100)
        ):
            lines.append(getattr(node, "lineno", 0))
    return lines


def is_public(dotted: str) -> bool:
    return all(not p.startswith(("_", "<")) or p in SPECIAL for p in dotted.split("."))


def with_kwargs(tree: ast.AST) -> list[str]:
    """Public functions with **kwargs; events of callbacks are called with it by transformers."""
    events = {
        f"{node.name}.{child.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        and any(ast.unparse(base).endswith("TrainerCallback") for base in node.bases)
        for child in node.body
        if isinstance(child, Function) and child.name.startswith("on_")
    }
    public = [(name, node) for name, node in functions(tree) if is_public(name)]
    return [name for name, node in public if node.args.kwarg and name not in events]


def all_sections(section: type[Section] = Section) -> list[type[Section]]:
    return [section, *(s for sub in section.__subclasses__() for s in all_sections(sub))]


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
        assert unsafe(ast.parse(code))

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
        assert not unsafe(ast.parse(code))

    @pytest.mark.parametrize(
        "code", ["x = -100", "from a import IGNORE_INDEX", "a.IGNORE_INDEX", "f(labels != -100)"]
    )
    def test_ignore_index_is_found(self, code):
        assert names_ignore_index(ast.parse(code))

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
        assert with_kwargs(ast.parse(code)) == ["A.__init__", "g"]

    def test_length_is_found(self):
        body = "\n".join(f"    x{i} = {i}" for i in range(MAX_FUNCTION_LINES))
        text = f"class A:\n  def f(self):\n{body}\n" + "\n" * MAX_FILE_LINES
        assert too_long({"a.py": text}) == {"a.py", "a.py:A.f"}
        assert too_long({"a.py": "def f():\n    return 1\n"}) == set()


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


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_nothing_runs_code_from_files(path):
    assert unsafe(parse(path)) == []


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_public_functions_name_their_arguments(path):
    assert with_kwargs(parse(path)) == [], "name the arguments instead of **kwargs"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_ignore_index_is_read_at_the_border_alone(path):
    if relative(path) not in MAY_NAME_IGNORE_INDEX:
        assert names_ignore_index(parse(path)) == [], "use contracts.predicted_positions"


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

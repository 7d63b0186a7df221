"""Parts of a run are not carried side by side.

The rule: where a `Run` can be seen, that is in `assembly` and in what rests on it, no function takes two of the
parts below, and none takes a part beside the run that has it. `Run` itself is made of parts, and is exempt.
Components below `assembly` know no run and take what they read, as plain arguments; those of `cli` are what users
type.
"""

import ast
from pathlib import Path

import pytest


PACKAGE = Path(__file__).parents[2] / "src" / "collegium"
PARTS = {"recipe", "ingredients", "corpus", "teachers", "held_out", "device"}
ROOMS = ("assembly", "pipeline", "paper", "demo")
FILES = [path for room in ROOMS for path in sorted((PACKAGE / room).rglob("*.py"))]
EXEMPT = {"assembly/run.py"}


def side_by_side(tree: ast.AST) -> list[str]:
    """Functions that take several parts, or a run and a part of it."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = {a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)}
            parts = arguments & PARTS
            if len(parts) > 1 or (parts and "run" in arguments):
                found.append(f"{node.name}({', '.join(sorted(arguments & (PARTS | {'run'})))})")
    return found


@pytest.mark.parametrize(
    "code",
    [
        "def f(recipe, ingredients): ...",
        "def f(a, *, teachers, device=None): ...",
        "class A:\n    async def f(self, run, held_out): ...",
        "def g():\n    def f(device, /, recipe): ...",
    ],
)
def test_several_parts_are_found(code):
    assert len(side_by_side(ast.parse(code))) == 1


@pytest.mark.parametrize("code", ["def f(recipe, folder): ...", "def f(run, section): ...", "def f(device): ..."])
def test_one_part_is_left_alone(code):
    assert side_by_side(ast.parse(code)) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_functions_take_the_run(path):
    if path.relative_to(PACKAGE).as_posix() not in EXEMPT:
        assert side_by_side(ast.parse(path.read_text(encoding="utf-8"))) == [], "take a Run"

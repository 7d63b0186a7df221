"""Nothing in the package asks of what kind a teacher is: the protocol answers instead."""

import ast
from pathlib import Path

import pytest

import collegium


PACKAGE = Path(collegium.__file__).parent


def names_in(tree: ast.AST) -> set[str]:
    """Every name and attribute in an expression."""
    found = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return found | {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def asked_of(node: ast.AST) -> set[str]:
    """Names of the classes that a piece of code compares the class of an object with."""
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("isinstance", "issubclass")
    ):
        return names_in(node.args[1])
    if isinstance(node, ast.Compare) and any("type" in names_in(part) for part in [node.left, *node.comparators]):
        return names_in(node)
    if isinstance(node, ast.MatchClass):
        return names_in(node.cls)
    return set()


KINDS = {
    node.name
    for path in (PACKAGE / "teachers").glob("*.py")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    if isinstance(node, ast.ClassDef) and node.name.endswith("Teacher")
}


def test_no_kind_of_teacher_is_asked_for():
    assert {"LocalTeacher", "CachedTeacher", "AlignedTeacher", "RestrictedTeacher"} <= KINDS
    found = [
        f"{path.relative_to(PACKAGE)}:{node.lineno} asks for {', '.join(sorted(asked))}"  # type: ignore[attr-defined]
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (asked := asked_of(node) & KINDS)
    ]
    assert not found, "let the protocol in signals/contracts.py answer: " + "; ".join(found)


@pytest.mark.parametrize(
    "code",
    [
        "isinstance(teacher, LocalTeacher)",
        "isinstance(teacher, (CachedTeacher, int))",
        "isinstance(teacher, local.LocalTeacher | None)",
        "type(teacher) is LocalTeacher",
        "match teacher:\n    case LocalTeacher(): pass",
    ],
)
def test_it_would_be_found(code):
    assert any(asked_of(node) & KINDS for node in ast.walk(ast.parse(code)))

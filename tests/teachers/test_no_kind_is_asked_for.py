"""Nothing in the package asks of what kind a teacher is: the protocol answers instead."""

import ast
from collections.abc import Iterable, Iterator
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


def parsed(*folders: str) -> Iterator[tuple[Path, ast.Module]]:
    """Every file below some folders of the package."""
    for path in sorted(path for folder in folders for path in (PACKAGE / folder).rglob("*.py")):
        yield path.relative_to(PACKAGE), ast.parse(path.read_text(encoding="utf-8"))


def classes(folder: str, ending: str) -> set[str]:
    """Names of the classes in a folder that end so."""
    nodes = [node for _, tree in parsed(folder) for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    return {node.name for node in nodes if node.name.endswith(ending)}


def places(trees: Iterable[tuple[Path, ast.Module]], names: set[str]) -> list[str]:
    """Where any of these classes is asked for."""
    found = [(path, node, asked_of(node) & names) for path, tree in trees for node in ast.walk(tree)]
    return [f"{path}:{node.lineno} asks for {', '.join(sorted(asked))}" for path, node, asked in found if asked]


KINDS = classes("teachers", "Teacher")


def test_no_kind_of_teacher_is_asked_for():
    assert {"LocalTeacher", "CachedTeacher", "AlignedTeacher", "RestrictedTeacher"} <= KINDS
    assert not places(parsed("."), KINDS), "let the protocol in signals/contracts.py answer"


def test_a_section_meets_its_class_in_assembly():
    sections = classes("recipe", "TeacherSection")
    assert {"LocalTeacherSection", "CachedTeacherSection"} <= sections
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")} - {"recipe", "assembly"}
    assert not places(parsed(*rooms), sections), "let the section answer"


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

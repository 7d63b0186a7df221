"""Figures of the package's structure, as LOG.md has them: `python -m tests.support.structure [CHECKOUT]`.

Rooms are the entries at the package's root that hold code; an arrow is a pair of rooms of which one imports the
other. Functions that take a recipe are those with a parameter of that name.
"""

import ast
import statistics
import sys
from pathlib import Path

from tests.support import code_rules as rules


def figures(checkout: Path) -> dict[str, str]:
    """Each figure with its name, of the package in a checkout."""
    package = checkout / "src" / "collegium"
    texts = {path: path.read_text(encoding="utf-8") for path in sorted(package.rglob("*.py"))}
    trees = {path: ast.parse(text) for path, text in texts.items()}
    root = [path for path in package.iterdir() if path.name != "__pycache__"]
    lines = sum(len(text.splitlines()) for text in texts.values())
    comments = sum(rules.comment_lines(text) for text in texts.values())
    docstrings = [docstring for tree in trees.values() for docstring in rules.docstrings(tree)]
    vague = sum(map(rules.begins_vaguely, docstrings))
    pairs = sum(len(rules.pairs(tree)) for tree in trees.values())
    takers = [node for tree in trees.values() for _, node in rules.functions(tree) if _takes(node, "recipe")]
    rooms = {room for room in (_room(path, package) for path in texts) if room}
    return {
        "entries at the root": f"{len(root)}",
        "rooms": f"{len(rooms)}",
        "arrows between rooms": f"{len(_arrows(trees, package))}",
        "functions that take a recipe": f"{len(takers)}",
        "lines": f"{lines:,}",
        "files, and lines of the median one": f"{len(texts)}, {statistics.median(map(_length, texts.values())):g}",
        "comments, share of lines": f"{comments} ({comments / lines:.2%})",
        "docstrings that begin with What, Of, How, Whether or Where": f"{vague / len(docstrings):.1%}",
        "pairs assigned on one line, a thousand lines": f"{1000 * pairs / lines:.1f}",
    }


def _length(text: str) -> int:
    return len(text.splitlines())


def _takes(node: rules.Function, name: str) -> bool:
    return name in [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]


def _room(path: Path, package: Path) -> str | None:
    """The room of a file; None for those of the root itself."""
    first = path.relative_to(package).parts[0].removesuffix(".py")
    return None if first in ("__init__", "__main__") else first


def _arrows(trees: dict[Path, ast.Module], package: Path) -> set[tuple[str, str]]:
    found = set()
    for path, tree in trees.items():
        here = _room(path, package)
        names = [name.split(".") for name in rules.imported_modules(tree)]
        there = {parts[1] for parts in names if parts[0] == "collegium" and len(parts) > 2}
        found |= {(here, room) for room in there if here and room != here}
    return found


if __name__ == "__main__":
    for name, figure in figures(Path(sys.argv[1] if len(sys.argv) > 1 else ".")).items():
        print(f"{name:<60} {figure}")

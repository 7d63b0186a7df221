"""Metrics have one name each, spelt in one file."""

import ast
import re
from pathlib import Path

import pytest

from collegium.report import metric_names


PACKAGE = Path(metric_names.__file__).parents[1]
SPELT = PACKAGE / "report" / "metric_names.py"
FOLDERS = {PACKAGE / "data" / "preparation.py", PACKAGE / "data" / "prepared.py"}
"""Files in which `train/` is a folder."""

FILES = sorted(path for path in PACKAGE.rglob("*.py") if path not in {SPELT, *FOLDERS})

CONSTANTS = {value for name, value in vars(metric_names).items() if name.isupper() and isinstance(value, str)}

ORDINARY = {
    "loss",
    "cross_entropy",
    "weight",
    "entropy",
    "conflict",
    "accuracy",
    "step",
    "epoch",
    "pairs",
    "target",
    "fused",
    "kl",
}
"""Words that name other things too: keys of recipes, columns of caches, kinds of weighting."""

PATH = re.compile(r"(train|eval|teacher|rule|kl|entropy|oracle|certain|mixing|feature|cross_tokenizer)/[^\s]*")


def literals(tree: ast.AST) -> list[tuple[int, str]]:
    """Strings of the code and constant parts of its formatted ones, with their lines; docstrings are left out."""
    docs = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    return [
        (node.lineno, node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs
    ]


def spelt(text: str) -> bool:
    return text in CONSTANTS - ORDINARY or PATH.match(text) is not None


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_other_file_spells_a_metric(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [f"line {line}: {text!r}" for line, text in literals(tree) if spelt(text)]
    assert not found, f"{path.relative_to(PACKAGE)}: take these from report/metric_names.py: {found}"


@pytest.mark.parametrize("name", ["own", "common", "a/b", "teacher", "nll", ""])
def test_figures_of_teachers_are_found_again_by_name(name):
    values = {metric_names.of_teacher(name, metric_names.KL): 1.0, metric_names.KL_OWN: 2.0, metric_names.NLL: 3.0}
    assert len(values) == 3
    assert metric_names.by_teacher(values) == {name: {"kl": 1.0}}
    assert metric_names.by_rule({**values, metric_names.rule_nll(name): 4.0}) == {name: 4.0}


def test_no_two_metrics_have_one_name():
    values = [value for name, value in vars(metric_names).items() if name.isupper() and isinstance(value, str)]
    assert len(values) == len(set(values))

"""What is recommended can be typed: the command line's own parser takes it, and the recipe stays valid."""

import ast
import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest

import collegium
from collegium.evaluation.advice import Advice, routed
from collegium.pipeline.preflight.advice import GEOMETRIC, RULES, advice_for
from collegium.pipeline.preflight.judge import ALTERNATIVES
from collegium.recipe.file import load_recipe
from tests.support.command import run
from tests.support.runs import write_recipe


PACKAGE = Path(collegium.__file__).parent
TYPED = re.compile(r"`([^`]*=[^`]*)`")
STATIC = "objective.weighting={kind: static, values: {one: 1, two: 2}}"


@pytest.fixture
def recipe(tmp_path, model_folder, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_recipe(tmp_path / "files", model_folder)


def all_of(advice: Advice) -> list[tuple[str, ...]]:
    values = [getattr(advice, field.name) for field in fields(advice)]
    return [o for value in values for o in (value.values() if isinstance(value, dict) else [value]) if o]


@pytest.mark.parametrize(
    "changes",
    [
        [],
        ["objective.fusion=geometric"],
        ["teachers.0.domains=[cats]"],
        [STATIC],
        ["teachers.1.weight_temperature=2.0", "training.batch_size=5"],
    ],
)
def test_every_override_is_taken_and_changes_the_recipe(recipe, changes):
    before = load_recipe(recipe, changes)
    found = all_of(advice_for(before))
    assert found
    for overrides in found:
        words = shlex.split(" ".join(map(shlex.quote, overrides)))
        assert load_recipe(recipe, [*changes, *words]) != before, overrides


def test_teachers_are_kept_or_left_out_by_name(recipe):
    advice = advice_for(load_recipe(recipe, ["teachers.0.licence=MIT"]))
    [alone] = load_recipe(recipe, advice.alone["one"]).teachers
    assert (alone.name, alone.licence) == ("one", "MIT")
    assert [teacher.name for teacher in load_recipe(recipe, advice.without["one"]).teachers] == ["two"]


def test_what_would_leave_the_recipe_invalid_is_not_advised(recipe):
    """Static weights name all teachers."""
    advice = advice_for(load_recipe(recipe, [STATIC]))
    assert advice.alone == {} and advice.rules


def test_a_batch_is_halved_and_a_step_stays_as_it_is(recipe):
    before = load_recipe(recipe, ["training.batch_size=8", "training.gradient_accumulation=3"])
    training = load_recipe(recipe, advice_for(before).smaller_batch).training
    assert (training.batch_size, training.gradient_accumulation) == (4, 6)


def test_rules_are_those_that_are_compared(recipe):
    assert set(RULES) == set(ALTERNATIVES)
    for name, rule in ALTERNATIVES.items():
        section = load_recipe(recipe, RULES[name]).objective.weighting
        assert section.kind == rule.kind, name
        if rule.kind == "entropy":
            assert (section.granularity, section.tau) == (rule.granularity, rule.tau), name
    geometric = load_recipe(recipe, advice_for(load_recipe(recipe)).rules[GEOMETRIC]).objective
    assert (geometric.fusion, geometric.weighting.kind) == ("geometric", "uniform")


def test_routes_are_taken(recipe):
    weighting = load_recipe(recipe, routed({"cats": "one", "dogs": "two"})).objective.weighting
    assert (weighting.kind, weighting.domains) == ("domain", {"cats": "one", "dogs": "two"})


def constants() -> list[str]:
    """Overrides that the package spells as they stand, as arguments of `typed`."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "typed":
                found += [a.value for a in node.args if isinstance(a, ast.Constant)]
    return found


@pytest.mark.parametrize("override", constants())
def test_overrides_that_are_spelt_in_the_code_are_taken(recipe, override):
    load_recipe(recipe, [override])


def test_what_a_preflight_prints_is_taken(recipe, monkeypatch, capsys):
    """With a teacher that is sure of everything."""
    changes = ["teachers.0.weight_temperature=0.05", "data.held_out_documents=2"]
    code, out, err = run(["preflight", str(recipe), *changes, "--no-estimate"], monkeypatch, capsys)
    assert code == 0, err
    printed = [shlex.split(match) for match in TYPED.findall(out)]
    assert any("weight_temperature=fit" in word for words in printed for word in words), out
    for words in printed:
        load_recipe(recipe, [*changes, *words])

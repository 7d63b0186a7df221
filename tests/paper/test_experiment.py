"""Which runs there are, and when each is known."""

from collections import Counter
from itertools import pairwise

import pytest

from collegium.losses.weighting import Weighting
from collegium.paper.command import EXPERIMENTS, specification_path
from collegium.paper.experiment import Experiment, Row, plan, set_key
from collegium.paper.specification import in_folder, load_specification
from collegium.paper.table1 import OUR_WEIGHTING, table1
from collegium.recipe.recipe import Recipe
from collegium.recipe.sections.objective import WeightingSection
from tests.support.tiny_experiment import specification


SMALL = load_specification(specification_path("small"))


def rate_loss(run):
    """The middle rate of three is best, whatever the row."""
    return abs(run.learning_rate - 4e-3)


def of(known, name):
    return [(run.seed, run.learning_rate) for run in known.runs[name]]


@pytest.fixture
def tiny(tmp_path):
    return specification(tmp_path)


@pytest.fixture
def table(tiny):
    return table1(tiny)


def test_nothing_finished_is_tuning_alone(tiny, table):
    known = plan(table, tiny, lambda run: None)
    assert not known.chosen
    assert {run.seed for run in known.all_runs} == {0}
    assert of(known, "ours") == [(0, 0.01), (0, 0.02)]
    assert known.runs["ce_longer"] == []  # waits for the rate of `ce`
    assert not {"best_single", "dkd", "tinybert"} & set(known.rows)


def test_the_chosen_rate_goes_on_with_the_other_seeds(tiny, table):
    known = plan(table, tiny, lambda run: {0.01: 2.0, 0.02: 1.0}[run.learning_rate])
    assert set(known.chosen.values()) == {0.02}
    assert of(known, "ours") == [(0, 0.01), (0, 0.02), (1, 0.02)]
    assert of(known, "uniform_calibrated") == [(0, 0.01), (0, 0.02)]  # not a headline: one seed
    assert of(known, "ce_longer") == [(0, 0.02)]
    assert [(run.seed, run.learning_rate) for run in known.measured("ours")] == [(0, 0.02), (1, 0.02)]


def test_a_row_is_tuned_only_when_all_rates_are_finished(tiny, table):
    known = plan(table, tiny, lambda run: 1.0 if run.learning_rate == 0.01 else None)
    assert not known.chosen


def test_rows_that_depend_on_the_best_teacher_come_when_all_single_ones_are_tuned(tiny, table):
    def loss(run, unfinished=()):
        return None if run.row in unfinished else {"single_cats": 3.0, "single_dogs": 2.5}.get(run.row, 2.0)

    assert "best_single" not in plan(table, tiny, lambda run: loss(run, ["single_dogs"])).rows
    known = plan(table, tiny, loss)
    assert {"best_single", "tinybert", "mobilebert", "minilm", "dkd"} <= set(known.rows)
    for name in ("best_single", "dkd"):
        assert [t["name"] for t in known.runs[name][0].recipe["teachers"]] == ["dogs"]


def test_rows_with_the_same_recipe_share_runs(tiny, table):
    known = plan(table, tiny, lambda run: {"single_cats": 3.0}.get(run.row, 2.0))
    mine, theirs = ([run.key for run in known.runs[name]] for name in ("best_single", "single_dogs"))
    assert mine[:2] == theirs
    assert len(mine) == 3  # a headline has another seed
    counts = Counter(run.key for run in known.all_runs)
    assert set(counts.values()) == {1}
    assert len(counts) == len({run.key for runs in known.runs.values() for run in runs})


def test_the_key_is_of_what_decides_alone(tiny):
    rows = [Row("a", "A", "x", {"method": "ce"}), Row("b", "B", "y", {"method": "ce"}, headline=True)]
    rows += [Row("c", "C", "x", {"method": "ce"}, judge="other"), Row("d", "D", "x", {"training.batch_size": 4})]
    known = plan(Experiment("e", "E", lambda best: rows, (), {}), tiny, lambda run: None)
    keys = {name: known.runs[name][0].key for name in "abcd"}
    assert keys["a"] == keys["b"]
    assert len(set(keys.values())) == 3


def test_set_key_makes_what_lies_between():
    recipe = {"training": {"max_steps": 1}}
    set_key(recipe, "training.batch_size", 2)
    set_key(recipe, "a.b.c", 3)
    assert recipe == {"training": {"max_steps": 1, "batch_size": 2}, "a": {"b": {"c": 3}}}


def all_waves(experiment, scale):
    """Plans from nothing to the end, each wave finished before the next."""
    done = set()
    plans = []

    def loss(run):
        return rate_loss(run) if run.key in done else None

    while True:
        known = plan(experiment, scale, loss)
        plans.append(known)
        keys = {run.key for run in known.all_runs}
        if keys <= done:
            return plans
        done |= keys


@pytest.mark.parametrize("name", sorted(EXPERIMENTS))
def test_waves_end_with_every_row_measured_with_one_rate_and_all_its_seeds(name):
    plans = all_waves(EXPERIMENTS[name](SMALL), SMALL)
    last = plans[-1]
    assert set(last.chosen) == set(last.rows)
    for row in last.rows.values():
        measured = last.measured(row.name)
        assert {run.learning_rate for run in measured} == {last.chosen[row.name]}
        seeds = row.num_seeds or (SMALL.headline_seeds if row.headline else SMALL.seeds)
        assert [run.seed for run in measured] == list(range(seeds))
    for earlier, later in pairwise(plans):
        assert {run.key for run in earlier.all_runs} <= {run.key for run in later.all_runs}


@pytest.mark.parametrize("name", sorted(EXPERIMENTS))
def test_the_number_to_come_is_never_too_high_and_right_where_nothing_depends(name):
    plans = all_waves(EXPERIMENTS[name](SMALL), SMALL)
    last = len(plans[-1].all_runs)
    promised = [len(known.all_runs) + known.num_to_come for known in plans]
    assert promised[-1] == last
    assert all(total <= last for total in promised)
    if name == "conditions":
        assert promised == [last] * len(plans)


def test_a_plan_follows_from_what_is_finished_alone(tiny, table):
    everything = plan(table, tiny, lambda run: run.learning_rate).all_runs
    half = {run.key for run in everything[::2]}
    plans = [plan(table, tiny, lambda run: run.learning_rate if run.key in half else None) for _ in range(2)]
    assert [run.key for run in plans[0].all_runs] == [run.key for run in plans[1].all_runs]
    assert plans[0] == plans[1]


AS_MANY_PASSES = {"passes_4000": 1 / 6, "passes_10000": 5 / 12}
OTHER_TEXT = {"ce_more_text", "ce_4000", "ours_4000", "ce_10000", "ours_10000", *AS_MANY_PASSES}
OTHER_TEXT |= {f"switching_{name}" for name in ("uniform", "token", "window:32", "causal:32", "document")}
OTHER_STEPS = {"ce_longer", "ce_more_text", *AS_MANY_PASSES}


def common(recipe, name):
    """The part of a recipe that all rows share."""
    content = recipe.model_dump(mode="json")
    for key in ("method", "teachers", "objective", "cache"):
        del content[key]
    del content["training"]["learning_rate"]
    if name in OTHER_TEXT:
        del content["data"]["sources"]
    if name in OTHER_STEPS:
        del content["training"]["max_steps"]
    if name in AS_MANY_PASSES:
        del content["training"]["warmup_steps"]
    return content


@pytest.mark.parametrize("name", sorted(EXPERIMENTS))
def test_every_row_is_a_valid_recipe_and_has_no_other_student_data_or_budget(name, tmp_path):
    known = plan(EXPERIMENTS[name](SMALL), SMALL, rate_loss)
    by_seed = {}
    for row, runs in known.runs.items():
        for run in runs:
            recipe = Recipe.model_validate(in_folder(run.recipe, tmp_path))
            assert (recipe.seed, recipe.training.learning_rate) == (run.seed, run.learning_rate)
            by_seed.setdefault(run.seed, {})[row] = recipe
    assert set(by_seed) == set(range(SMALL.headline_seeds))
    for recipes in by_seed.values():
        plain = common(recipes["ours"], "ours")
        for row, recipe in recipes.items():
            got = common(recipe, row)
            wanted = {**plain}
            if row in OTHER_TEXT:
                wanted["data"] = {k: v for k, v in plain["data"].items() if k != "sources"}
                assert recipe.data.sources != recipes["ours"].data.sources
            if row in OTHER_STEPS:
                others = {"max_steps"} | ({"warmup_steps"} if row in AS_MANY_PASSES else set())
                wanted["training"] = {k: v for k, v in plain["training"].items() if k not in others}
            if row in AS_MANY_PASSES:
                steps = recipes["ours"].training.max_steps
                assert recipe.training.max_steps == round(AS_MANY_PASSES[row] * steps)
            assert got == wanted, row


@pytest.mark.parametrize("name", sorted(EXPERIMENTS))
def test_judges_are_valid_recipes_whose_teachers_are_not_calibrated(name, tmp_path):
    experiment = EXPERIMENTS[name](SMALL)
    assert {row.judge for row in plan(experiment, SMALL, rate_loss).rows.values()} == set(experiment.judges)
    for judge in experiment.judges.values():
        recipe = Recipe.model_validate(in_folder(judge, tmp_path))
        assert not any(teacher.cached for teacher in recipe.teachers)
        assert {(t.weight_temperature, t.target_temperature) for t in recipe.teachers} == {(1.0, 1.0)}


def test_text_of_equal_compute_grows_with_the_factor():
    runs = plan(table1(SMALL), SMALL, rate_loss).runs
    plain, longer, more = (runs[name][0].recipe for name in ("ce", "ce_longer", "ce_more_text"))
    assert longer["training"]["max_steps"] == more["training"]["max_steps"] == 8 * plain["training"]["max_steps"]
    assert longer["data"] == plain["data"]
    assert {s["max_tokens"] for s in more["data"]["sources"]} == {8 * SMALL.student_tokens}


def test_our_rule_is_the_default_of_recipes_and_of_python():
    section = WeightingSection()
    weighting = Weighting()
    assert {"kind": section.kind, "granularity": section.granularity, "tau": section.tau} == OUR_WEIGHTING
    assert {"kind": weighting.kind, "granularity": weighting.granularity, "tau": weighting.tau} == OUR_WEIGHTING

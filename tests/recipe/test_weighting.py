"""The recipe's section on weighting: kinds, keys that go with them, and what is built from it."""

import pytest

from collegium.assembly.objective import build_rule, build_weighting
from collegium.base.errors import RecipeError
from collegium.losses.joint_weighting import JointWeighting
from collegium.losses.min_norm import MinNormWeighting
from collegium.losses.weighting import Weighting
from collegium.recipe.file import dump_recipe, load_recipe
from tests.support.runs import write_recipe


@pytest.fixture
def path(tmp_path, model_folder):
    return write_recipe(tmp_path, model_folder)


DEFAULT = "window:32"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("uniform", Weighting("uniform")),
        ("most_certain", Weighting("most_certain", DEFAULT)),
        ("{kind: inverse_entropy, granularity: 'causal:64'}", Weighting("inverse_entropy", "causal:64")),
        ("{kind: mt_bert, granularity: token}", Weighting("mt_bert", "token")),
        ("{kind: min_ce, granularity: sequence}", Weighting("min_ce", "sequence")),
        ("avg_ce", Weighting("avg_ce", DEFAULT)),
        ("bayes", Weighting("bayes", decay=0.97)),
        ("{kind: bayes, decay: 1.0}", Weighting("bayes", decay=1.0)),
        ("{kind: static, values: {two: 1, one: 3}}", Weighting("static", values=(3.0, 1.0))),
        ("{kind: domain, domains: {dogs: one, cats: two}}", Weighting("domain", routes=(1, 0))),
        ("{kind: ebkd, granularity: token}", JointWeighting("ebkd", "token")),
        ("ca_mkd", JointWeighting("ca_mkd", DEFAULT)),
        ("min_norm", MinNormWeighting(DEFAULT, 0.6)),
        ("{kind: min_norm, granularity: token, max_weight: 1.0}", MinNormWeighting("token", 1.0)),
    ],
)
def test_what_is_built(path, tmp_path, given, expected):
    recipe = load_recipe(path, [f"objective.weighting={given}"])
    assert build_weighting(recipe.objective.weighting, ["one", "two"], recipe.domains) == expected
    written = tmp_path / "resolved.yaml"
    written.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(written) == recipe


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nonsense", "objective.weighting.kind: "),
        ("static", "`values` (a weight for each teacher) and `kind: static` go together; the kind is 'static'"),
        (
            "{kind: entropy, decay: 0.9}",
            "`decay` (how fast past labels are forgotten) and `kind: bayes` go together",
        ),
        ("{kind: bayes, decay: 1.5}", "objective.weighting.decay: "),
        ("{kind: bayes, granularity: token}", "`kind: bayes` averages nothing: leave out `granularity`"),
        ("{kind: min_ce, tau: 1}", "`kind: min_ce` has no sharpness: leave out `tau`"),
        ("{kind: ebkd, max_weight: 0.5}", "`kind: min_norm` go together; the kind is 'ebkd'"),
        ("{granularity: 'causal:0'}", "objective.weighting.granularity: "),
        ("domain", "`domains` (the teacher of each source) and `kind: domain` go together"),
        (
            "{kind: domain, domains: {cats: one}}",
            "domains names ['cats'], the sources of data are ['cats', 'dogs']",
        ),
        ("{kind: domain, domains: {cats: one, dogs: six}}", "leads to ['six'], the teachers are ['one', 'two']"),
    ],
)
def test_what_does_not_fit_together_is_told(path, given, message):
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, [f"objective.weighting={given}"])
    assert message in str(caught.value)


def test_a_rule_without_a_student_cannot_follow_it(path):
    with pytest.raises(RecipeError, match="min_norm follow the student"):
        build_rule(load_recipe(path, ["objective.weighting=min_norm"]))
    assert build_rule(load_recipe(path)).weighting == Weighting()

"""Recipes: strict, reported all at once, with how to fix it; no torch."""

import subprocess
import sys

import pytest

from collegium.base.errors import RecipeError
from collegium.recipe.file import differences, dump_recipe, load_recipe
from collegium.recipe.methods import filled
from collegium.recipe.recipe import Recipe
from tests.support.runs import write_recipe


@pytest.fixture
def path(tmp_path, model_folder):
    return write_recipe(tmp_path, model_folder)


def error_of(path, *overrides) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    return str(caught.value)


def test_all_mistakes_are_told_at_once(path):
    text = error_of(path, "training.lr=1", "objective.tau=1", "name=-", "student.lora={rnk: 1}")
    assert len(text.splitlines()) == 4
    assert all(line.startswith(str(path)) for line in text.splitlines())
    assert "student.lora.rnk: unknown key; did you mean `rank`?" in text
    assert "objective.tau: unknown key; known are balance, " in text


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("data.sources.0.seperator=x", "data.sources.0.seperator: unknown key; did you mean `separator`?"),
        (
            "objective.weighting={kind: entropy, taw: 1}",
            "objective.weighting.taw: unknown key; did you mean `tau`?",
        ),
        ("student.keep_layer=[0]", "student.keep_layer: unknown key"),
        ("teachers.0.modle=x", "teachers.0.modle: unknown key; did you mean `model`?"),
        ("evaluation.confidance=1", "did you mean `confidence`?"),
    ],
)
def test_misspelt_keys_get_a_suggestion(path, override, hint):
    assert hint in error_of(path, override)


def test_overrides_reach_lists_and_make_sections(path):
    recipe = load_recipe(path, ["teachers.1.weight_temperature=2", "objective.feature.layer_norm=false", "seed=7"])
    assert recipe.teachers[1].weight_temperature == 2.0
    assert recipe.objective.feature.layer_norm is False
    assert recipe.seed == 7


def test_yaml_1_2(path):
    recipe = load_recipe(path, ["training.learning_rate=1e-4", "name=no"])
    assert recipe.training.learning_rate == 1e-4
    assert recipe.name == "no"


def test_presets_of_the_weighting(path):
    paper = load_recipe(path, ["objective.weighting=paper"]).objective.weighting
    assert (paper.kind, paper.granularity, paper.tau) == ("entropy", "token", 1.0)
    default = load_recipe(path).objective.weighting
    assert (default.kind, default.granularity, default.tau) == ("entropy", "window:32", 0.5)


def test_resolved_recipe_is_the_same_recipe(path, tmp_path):
    recipe = load_recipe(path, ["objective.weighting=paper"])
    written = tmp_path / "resolved.yaml"
    written.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(written) == recipe


def test_fingerprint_is_of_what_decides_the_result(path):
    recipe = load_recipe(path)
    assert load_recipe(path, ["output_dir=elsewhere"]).fingerprint == recipe.fingerprint
    assert load_recipe(path, ["data.directory=elsewhere"]).fingerprint == recipe.fingerprint
    for watched in ["name=x", "training.save_every=9", "training.report_to=[wandb]", "evaluation.batch_size=1"]:
        assert load_recipe(path, [watched]).fingerprint == recipe.fingerprint
    assert load_recipe(path, ["seed=1"]).fingerprint != recipe.fingerprint
    assert load_recipe(path, ["training.learning_rate=0.5"]).fingerprint != recipe.fingerprint


def test_differences_name_the_key_and_both_values(path):
    one = load_recipe(path)
    other = load_recipe(path, ["training.max_steps=5", "teachers.1.target_temperature=2", "training.log_every=7"])
    assert differences(one, other) == ["teachers.1.target_temperature: 1.0, 2.0", "training.max_steps: 4, 5"]
    assert differences(one, load_recipe(path, ["objective.weighting={kind: uniform}"])) == [
        "objective.weighting.kind: 'entropy', 'uniform'"
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.max_steps=true", "Input should be a valid integer, got True (bool)"),
        ("training.learning_rate=true", "Input should be a valid number, got True (bool)"),
        ("training.learning_rate=.nan", "Input should be a finite number, got nan (float)"),
        ("objective.weighting.tau=.inf", "Input should be a finite number, got inf (float)"),
        ("data.add_eos=1", "Input should be a valid boolean, got 1 (int)"),
        ("student.dtype=float16", "trained weights need float32 or bfloat16; "),
        ("student.device_map=auto", "student.device_map: unknown key"),
        ("data.sources.0.license=mit", "data.sources.0.license: unknown key"),
        ("data.sources.0.name=mean", "sources may not be named 'mean'"),
        ("data.sources.0.name=common", "sources may not be named 'common'"),
        (f"student={{kind: config, model: x, trust_remote_code: true, revision: {'a' * 40}}}", "`kind: config`"),
        ("student={kind: pruned, model: x}", "student: give at least one size to cut: hidden_size, "),
        ("student={kind: pruned, model: x, num_heads: 4, num_key_value_heads: 3}", "got 4 and 3"),
        ("student={kind: pruned, model: x, hidden_size: 0}", "student.hidden_size: Input should be greater"),
        ("student={kind: pruned, model: x, hiden_size: 8}", "did you mean `hidden_size`?"),
    ],
)
def test_what_is_refused(path, override, message):
    assert message in error_of(path, override)


@pytest.mark.parametrize("name", ["own", "all", "common", "fused", "student", "before", "mean"])
def test_a_teacher_may_have_any_name(path, name):
    assert load_recipe(path, [f"teachers.0.name={name}"]).teachers[0].name == name


def test_lists_and_whole_numbers_are_taken_as_they_are_written(path):
    recipe = load_recipe(
        path,
        [
            "training.learning_rate=1",
            "training.report_to=[wandb]",
            "objective.feature.layer_map=[[0, 1], [1, 2]]",
            "student={kind: layer_drop, model: x, keep_layers: [0, 1], lora: {target_modules: [q_proj]}}",
            "teachers.0.device_map={a: 0}",
        ],
    )
    assert recipe.training.learning_rate == 1.0
    assert recipe.training.save_every == 2
    assert recipe.objective.feature.layer_map == ((0, 1), (1, 2))
    assert recipe.student.keep_layers == (0, 1)


def test_sections_are_frozen(path):
    recipe = load_recipe(path)
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 3  # type: ignore[misc]


def test_no_torch():
    code = "import sys, collegium.recipe.file, collegium.base.errors; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_alias_bomb_is_refused_quickly(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    path = tmp_path / "bomb.yaml"
    path.write_text("\n".join(lines))
    assert "over 20,000 values, anchors counted as often as they are used" in error_of(path)


def test_every_field_is_documented():
    def check(model, seen):
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name}"
        return seen

    check(Recipe, set())


def test_method_fills_in_what_the_recipe_does_not_say(path):
    recipe = load_recipe(path, ["method=paper", "objective={}"])
    assert recipe.objective.weighting.granularity == "token"
    assert recipe.objective.feature_weight == 0.1
    own = load_recipe(path, ["method=paper", "objective={weighting: {kind: uniform}}"])
    assert own.objective.weighting.kind == "uniform"
    assert own.objective.feature_weight == 0.1


def test_unknown_method_is_refused_with_the_known_ones(path):
    assert "method 'xyz' is not known; known are ce, kd, paper" in error_of(path, "method=xyz")
    near = "method 'tinybird' is not known; did you mean `tinybert`? Known are ce, kd, paper"
    assert near in error_of(path, "method=tinybird")


def test_minitron_trains_on_distributions_alone(path):
    objective = load_recipe(path, ["method=minitron", "objective={}"]).objective
    assert (objective.kd_weight, objective.divergence.kind, objective.kd_temperature) == (1.0, "forward_kl", 1.0)


def test_a_section_of_another_kind_is_not_mixed_with_the_methods():
    default = {"d": {"kind": "dkd", "beta": 1, "alpha": 1}}
    assert filled({"d": {"kind": "jsd"}}, default) == {"d": {"kind": "jsd"}}
    assert filled({"d": {"beta": 2}}, default) == {"d": {"kind": "dkd", "beta": 2, "alpha": 1}}


def test_weights_may_be_schedules(path):
    given = "{shape: linear, initial: 0, final: 0.5, end: 0.2}"
    recipe = load_recipe(path, [f"objective.kd_weight={given}", "objective.ce_weight=1"])
    schedule = recipe.objective.kd_weight.schedule
    assert [schedule.at(x) for x in (0.0, 0.1, 0.2, 1.0)] == [0.0, 0.25, 0.5, 0.5]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("objective.kd_weight=-1", "objective.kd_weight: Input should be greater than or equal to 0, got -1"),
        ("objective.kd_weight=2", "objective: kd_weight reaches 2; above 1 give ce_weight too"),
        ("objective.kd_weight={initial: 0, final: 1, stop: 1}", "kd_weight.stop: unknown key; known are"),
        ("objective.kd_weight={initial: 1, final: 0, begin: 1}", "a schedule ends after it begins"),
        ("objective.divergence={kind: jsd, beta: 2}", "objective.divergence.beta: Input should be less than"),
        ("objective.dynamic={}", "give at least one of adoption, selection and objective"),
        ("objective.dynamic={objective: true}", "set feature_weight above 0"),
        ("objective.weighting={kind: entropy, loss_weight: 1}", "`loss_weight` (weight of the router's own loss)"),
    ],
)
def test_mistakes_in_an_objective(path, override, message):
    assert message in error_of(path, override)

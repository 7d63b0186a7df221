"""What a recipe may say about text that the student writes."""

import pytest

from collegium.base.errors import RecipeError
from collegium.recipe.file import load_recipe
from tests.support.runs import write_recipe


SHORT = "on_policy={prompt_length: 8, max_new_tokens: 8}"


@pytest.fixture
def path(tmp_path, model_folder):
    return write_recipe(tmp_path, model_folder)


def test_methods_fill_the_section(path):
    short = ["on_policy.prompt_length=8", "on_policy.max_new_tokens=8"]
    gkd = load_recipe(path, ["method=gkd", "objective={}", *short])
    assert (gkd.objective.divergence.kind, gkd.objective.kd_weight) == ("jsd", 1.0)
    assert (gkd.on_policy.fraction, gkd.on_policy.temperature, gkd.on_policy.loss) == (0.5, 0.9, "divergence")
    minillm = load_recipe(path, ["method=minillm", "objective={}", *short, "on_policy.judge=consensus"])
    assert minillm.objective.divergence.alpha == 0.0
    assert (minillm.on_policy.teacher_share, minillm.on_policy.loss) == (0.2, "policy_gradient")
    assert load_recipe(path).on_policy is None


@pytest.mark.parametrize(
    ("overrides", "hint"),
    [
        ([SHORT, "teachers.1.cached=true"], "on_policy: teacher 'two' is read from a cache.*`cached: false`"),
        ([SHORT, "objective.kd_weight=0"], "set objective.kd_weight above 0"),
        (["on_policy={prompt_length: 30, max_new_tokens: 30}"], "is 60, longer than data.block_size 32"),
        ([SHORT, "on_policy.judge=route"], "judge would have no effect with `loss: divergence`"),
        ([SHORT, "on_policy.gamma=0"], "gamma would have no effect"),
        (
            [SHORT, "on_policy.loss=policy_gradient", "objective.label_smoothing=0.1"],
            "objective.label_smoothing would spread",
        ),
        ([SHORT, "on_policy.teacher_share=1"], "on_policy.teacher_share"),
        (
            [SHORT, "on_policy.teacher_share=0.2", "teachers.1.domains=[cats]"],
            "teacher_share has all teachers write, but teacher 'two' is asked in its domains only",
        ),
        ([SHORT, "on_policy.fraction=0"], "on_policy.fraction"),
        ([SHORT, "on_policy.lambda=0.5"], "on_policy.lambda: unknown key"),
        ([SHORT, "objective.weighting=router"], "which objective.weighting cannot"),
        ([SHORT, "objective.dynamic={selection: entropy}"], "which objective.dynamic cannot"),
        ([SHORT, "objective.balance=uncertainty"], "which objective.balance cannot"),
        ([SHORT, "objective.conflict_limit=0.5"], "which objective.conflict_limit cannot"),
    ],
)
def test_what_cannot_work_is_refused_by_name(path, overrides, hint):
    with pytest.raises(RecipeError, match=hint):
        load_recipe(path, overrides)

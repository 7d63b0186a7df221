"""`objective.feature`: one section or a list, and what is refused before anything is loaded."""

import pytest

from collegium.base.errors import RecipeError
from collegium.recipe.file import dump_recipe, load_recipe, parse_recipe
from collegium.recipe.sections.features import RelationsSection
from tests.support.runs import write_recipe


@pytest.fixture
def path(tmp_path, model_folder):
    return write_recipe(tmp_path, model_folder)


def error_of(path, *overrides):
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, ["objective.feature_weight=1", *overrides])
    return str(caught.value)


def test_one_section_or_a_list(path):
    one = load_recipe(path, ["objective.feature={layer_map: last}"]).objective
    assert [f.kind for f in one.features] == ["hidden_states"]
    assert list(one.named_features) == ["objective.feature"]
    several = load_recipe(
        path,
        ["objective.feature=[{layer_map: last}, {kind: relations, weight: {initial: 1, final: 0}, layer: 0.5}]"],
    )
    assert [f.kind for f in several.objective.features] == ["hidden_states", "relations"]
    assert list(several.objective.named_features) == ["objective.feature.0", "objective.feature.1"]
    assert parse_recipe(dump_recipe(several), path) == several


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("{layr_norm: false}", "objective.feature.layr_norm: unknown key; did you mean `layer_norm`?"),
        (
            "[{kind: relations, num_heads: 2}]",
            "objective.feature.0.num_heads: unknown key; did you mean `num_relation_heads`",
        ),
        (
            "[{}, {kind: feature_maps, map_faktor: 2}]",
            "feature.1.map_faktor: unknown key; did you mean `map_factor`",
        ),
        ("{kind: attention}", "expected tags: 'hidden_states', 'attention_scores', 'attention_maps'"),
        ("[]", "objective.feature: "),
        ("{kind: relations, layer: 2.5}", "objective.feature: layer is 2.5; give a whole number, or a share"),
        (
            "{kind: relations, of: [query]}",
            "objective.feature.of.0: Input should be 'queries', 'keys' or 'values'",
        ),
        ("[{}, {kind: attention_maps, importance: {x: 1}}]", "objective.feature.1.importance names ['x'], the "),
        ("{kind: relations, layer: {x: 1}}", "objective.feature.layer names ['x'], the teachers are"),
    ],
)
def test_what_is_refused(path, override, message):
    assert message in error_of(path, f"objective.feature={override}")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["objective.feature={kind: relations}"],
            "reads queries, keys and values, which no cache",
        ),
        (["objective.feature.layer_map=last"], "reads hidden states, which cache.mode top_k does not hold: set"),
        (["cache.mode=hidden_states"], "reads all layers, of which a cache holds the last: set layer_map: last"),
        (
            ["cache.mode=hidden_states", "objective.feature={layer_map: last, final_norm: false}"],
            "of which a cache holds those after it: set final_norm: true",
        ),
    ],
)
def test_what_a_cache_cannot_give(path, overrides, message):
    text = error_of(path, "teachers.0.cached=true", *overrides)
    assert message in text and "is cached, but objective.feature" in text and "cached: false" in text
    load_recipe(path, ["teachers.0.cached=true", *overrides])  # nothing is read at feature_weight 0


def test_a_cache_made_elsewhere_may_hold_the_last_hidden_state(path):
    stored = "teachers.1={kind: cached, name: far, path: far}"
    load_recipe(path, [stored, "objective.feature_weight=1", "objective.feature.layer_map=last"])
    assert "reads all layers" in error_of(path, stored)


def test_dynamic_objective_weighs_hidden_states_only(path):
    text = error_of(path, "objective.dynamic={objective: true}", "objective.feature={kind: relations}")
    assert "dynamic.objective weighs positions, which `kind: relations` cannot" in text


def test_the_layer_of_relations():
    def layer(given, name="a"):
        return RelationsSection(kind="relations", layer=given).layer_of(name, 24)

    assert [layer("last"), layer(21), layer(0.875), layer(0.001), layer({"a": 3, "b": 0.5}, "b")] == [
        24,
        21,
        21,
        1,
        12,
    ]

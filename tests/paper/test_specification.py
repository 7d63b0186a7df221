"""Specifications say what is wrong with them: which file, which key, and what would do."""

import tomllib
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from collegium.base.errors import RecipeError
from collegium.paper.command import EXPERIMENTS, Place, _check, reproduce, specification_path
from collegium.paper.specification import in_folder, load_specification
from tests.support.tiny_experiment import content


def write(folder: Path, **changes) -> Path:
    path = folder / "scale.yaml"
    with path.open("w") as file:
        YAML(typ="safe", pure=True).dump(content(folder, **changes), file)
    return path


def test_a_good_one_is_read(tmp_path):
    specification = load_specification(write(tmp_path))
    assert specification.experts == ("cats", "dogs")
    assert specification.teachers["dogs"].sources == ("dogs",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"expert": ["cats"]}, r"expert: unknown key; did you mean `experts`\?"),
        ({"zzz": 1}, r"zzz: unknown key; known are .*learning_rates"),
        (
            {"tokenizer": {"vocab_size": 300, "size": 1}},
            r"tokenizer.size: unknown key; known are characters, vocab_size",
        ),
        ({"tokenizer": {"vocab_size": 20}}, r"tokenizer.vocab_size: .*greater than or equal to 258"),
        ({"teachers": {"cats": {"recipe": "a", "model": "b"}}}, r"teachers.cats: give either model .* or recipe"),
        ({"teachers": {"cats": {}}}, r"teachers.cats: give either model"),
        (
            {"teachers": {"cats": {"model": "a", "seeds": 1}}},
            r"cats.seeds: unknown key; did you mean `seed`",
        ),
        ({"experts": ["cats", "cows"]}, r"name \['cows'\], the teachers are \['cats', 'dogs'\]"),
        ({"copies": ["cows"]}, r"name \['cows'\]"),
        ({"bad": "cows"}, r"name \['cows'\]"),
        ({"experts": []}, r"experts: .*at least 1"),
        ({"student_documents": {"cows": 3}}, r"name \['cows'\], the sources are \['cats', 'dogs'\]"),
        ({"licences": {"cows": "free"}}, r"name \['cows'\], the sources"),
        ({"student_tokens": None}, r"student_tokens must keep to them"),
        ({"tokenizer": None}, r"add `tokenizer`"),
        ({"learning_rates": [0.1, 0.1]}, r"learning_rates must differ"),
        ({"recipe": {}}, r"recipe.training.max_steps is missing"),
        ({"recipe": {"training": {"num_epochs": 1}}}, r"recipe.training.max_steps is missing"),
    ],
)
def test_a_bad_one_names_file_and_key(tmp_path, changes, message):
    path = write(tmp_path, **changes)
    with pytest.raises(RecipeError, match=message) as error:
        load_specification(path)
    assert str(error.value).startswith(f"{path}: ")


def test_teachers_read_only_sources_that_there_are(tmp_path):
    path = write(tmp_path, teachers={name: {"recipe": "a", "sources": ["cows"]} for name in ("cats", "dogs")})
    with pytest.raises(RecipeError, match=r"teachers read \['cows'\], the sources are \['cats', 'dogs'\]"):
        load_specification(path)


def test_output_is_replaced_at_the_beginning_of_texts_wherever_they_are():
    given = {"a": "OUTPUT/x", "b": [{"c": "OUTPUT/y/z"}, 3], "d": ("in OUTPUT/x", None), "e": "OUTPUT"}
    assert in_folder(given, Path("/there")) == {
        "a": "/there/x",
        "b": [{"c": "/there/y/z"}, 3],
        "d": ["in OUTPUT/x", None],
        "e": "OUTPUT",
    }


def test_scales_that_ship_are_known_by_name(tmp_path):
    for scale in ("small", "paper"):
        assert load_specification(specification_path(scale)).name == scale
    assert specification_path("mine/other.yaml") == Path("mine/other.yaml")
    with pytest.raises(RecipeError, match="--scale large: is none of paper, small"):
        specification_path("large")
    with pytest.raises(RecipeError, match=r"none\.yaml: cannot be read"):
        reproduce("table1", scale=str(tmp_path / "none.yaml"), output=tmp_path, jobs=1)


def test_experiments_are_named_by_the_error():
    with pytest.raises(RecipeError, match="no experiment 'table2'; there are table1, .*, conditions, and page"):
        reproduce("table2", scale="small", output=Path(), jobs=1)


def bad_recipe(folder: Path) -> dict:
    recipe = content(folder)["recipe"]
    return {**recipe, "training": {**recipe["training"], "learning_rat": 1}}


def test_recipes_are_refused_before_any_work(tmp_path):
    path = write(tmp_path, recipe=bad_recipe(tmp_path))
    with pytest.raises(RecipeError, match=r"scale\.yaml: recipe: training\.learning_rat: unknown key"):
        reproduce("table1", scale=str(path), output=tmp_path / "out", jobs=1)
    assert not (tmp_path / "out").exists()


def test_teachers_recipes_are_refused_before_any_work(tmp_path):
    path = write(tmp_path)
    with pytest.raises(RecipeError, match=r"teacher\.yaml: cannot be read"):
        reproduce("table1", scale=str(path), output=tmp_path / "out", jobs=1)
    (tmp_path / "teacher.yaml").write_text("training: {max_steps: 0}")
    with pytest.raises(RecipeError, match=r"teacher\.yaml, for teacher cats: training\.max_steps: .* got 0"):
        reproduce("table1", scale=str(path), output=tmp_path / "out", jobs=1)
    assert not (tmp_path / "out").exists()


def test_the_wheel_has_every_scale_and_every_teachers_recipe():
    root = Path(__file__).parents[2]
    build = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]
    included = build["targets"]["wheel"]["force-include"]
    shipped = {f"experiments/{path.name}" for path in (root / "experiments").glob("*.yaml")}
    assert shipped
    assert included == {name: f"collegium/paper/{name}" for name in [*shipped, "experiments/teachers"]}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_scale_that_there_is_not_is_answered_by_those_of_the_experiment(experiment):
    with pytest.raises(RecipeError, match="is none of paper, small; give one"):
        specification_path("large", experiment)


@pytest.mark.parametrize("scale", ["small", "paper"])
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_recipe_of_a_shipped_scale_can_be_read(experiment, scale, tmp_path):
    path = specification_path(scale, experiment)
    specification = load_specification(path)
    _check(EXPERIMENTS[experiment](specification), specification, Place(path, tmp_path))

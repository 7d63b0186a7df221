"""Shell completion: names of experiments, starters, formats, methods, keys and teachers. No torch here.

bash splits words at `=`, other shells do not, so a value is completed from `method=ta` and from `ta` after `=`.
A recipe that cannot be read completes to nothing: an error message has no place at a shell's prompt.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer


EXPERIMENTS = ("table1", "figure2", "figure3", "conditions")

FORMATS = ("gguf", "onnx", "safetensors-int8")


def experiments(incomplete: str) -> list[str]:
    """Names of experiments, and `page`, which writes only the results page."""
    return [name for name in (*EXPERIMENTS, "page") if name.startswith(incomplete)]


def formats(incomplete: str) -> list[str]:
    """Names of export formats."""
    return [name for name in FORMATS if name.startswith(incomplete)]


def starters(incomplete: str) -> list[tuple[str, str]]:
    """Kinds of starter recipes, each with what it is for."""
    from collegium.pipeline.starters import STARTERS

    return [(name, help_) for name, help_ in STARTERS.items() if name.startswith(incomplete)]


def teachers_of(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of the teachers in the recipe on the command line."""
    from collegium.base.errors import RecipeError
    from collegium.recipe.file import read_mapping

    try:
        recipe = ctx.params.get("recipe") or ctx.args[0]  # click has parsed only what stands before --teacher
        teachers = read_mapping(Path(recipe)).get("teachers")
    except (RecipeError, IndexError):
        return []
    names = [teacher.get("name") for teacher in teachers or () if isinstance(teacher, dict)]
    return [name for name in names if isinstance(name, str) and name.startswith(incomplete)]


def overrides_of(ctx: typer.Context, incomplete: str) -> list[str]:
    """Keys of a recipe, each with `=`, or the values of a key whose values are names."""
    given = list(ctx.params.get("overrides") or ())
    if given and not incomplete and "=" not in given[-1]:  # click drops a lone `=`
        return values_of(given[-1])
    if len(given) > 1 and given[-1] == "=":
        return [value for value in values_of(given[-2]) if value.startswith(incomplete)]
    key, equals, begun = incomplete.partition("=")
    if equals:
        return [f"{key}={value}" for value in values_of(key) if value.startswith(begun)]
    return [f"{key}=" for key, _ in _keys() if key.startswith(incomplete)]


def values_of(key: str) -> list[str]:
    """Names that a dotted key accepts; none if it accepts any value."""
    return list(dict(_keys()).get(key, ()))


def _keys() -> Iterator[tuple[str, tuple[str, ...]]]:
    from collegium.recipe.schema import recipe_schema

    schema = recipe_schema()
    yield from _below(schema, schema["$defs"], "")


def _below(section: Mapping[str, Any], sections: Mapping[str, Any], prefix: str) -> Iterator[Any]:
    """Yield the dotted keys below a section with the names that each accepts; lists are not entered."""
    for key, found in section.get("properties", {}).items():
        inner = sections[found["$ref"].rpartition("/")[2]] if "$ref" in found else found
        choices = [inner, *inner.get("anyOf", ())]
        names = tuple(dict.fromkeys(str(name) for choice in choices for name in choice.get("enum", ())))
        yield f"{prefix}{key}", names
        for choice in choices:
            entered = sections[choice["$ref"].rpartition("/")[2]] if "$ref" in choice else choice
            yield from _below(entered, sections, f"{prefix}{key}.")

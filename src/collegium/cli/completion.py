"""What a shell completes: names of experiments, starters, methods, keys and teachers. No torch here.

bash cuts words at `=`, other shells do not, so a value is completed from both `method=ta` and `ta` after `=`.
A recipe that cannot be read completes to nothing: a shell is no place for messages.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer


EXPERIMENTS = ("table1", "figure2", "figure3", "conditions")

FORMATS = ("gguf", "onnx", "safetensors-int8")

STARTERS: Mapping[str, str] = {
    "basic": "two teachers, one text",
    "domains": "a general teacher and tuned ones, each for its domain, on your files",
    "families": "teachers with other tokenizers",
    "cached": "teachers scored once, to disk",
    "task": "train and measure on tasks",
    "method": "a method of the literature",
}


def experiments(incomplete: str) -> list[str]:
    """Names of experiments, and what writes only the page."""
    return [name for name in (*EXPERIMENTS, "page") if name.startswith(incomplete)]


def formats(incomplete: str) -> list[str]:
    """Formats that a student is exported to."""
    return [name for name in FORMATS if name.startswith(incomplete)]


def starters(incomplete: str) -> list[tuple[str, str]]:
    """Kinds of starters, each with what it is for."""
    return [(name, help_) for name, help_ in STARTERS.items() if name.startswith(incomplete)]


def teachers_of(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of the recipe's teachers."""
    from collegium.base.errors import RecipeError
    from collegium.recipe.file import read_mapping

    try:
        recipe = ctx.params.get("recipe") or ctx.args[0]  # what was parsed before the option that lacks its value
        teachers = read_mapping(Path(recipe)).get("teachers")
    except (RecipeError, IndexError):
        return []
    names = [teacher.get("name") for teacher in teachers or () if isinstance(teacher, dict)]
    return [name for name in names if isinstance(name, str) and name.startswith(incomplete)]


def overrides_of(ctx: typer.Context, incomplete: str) -> list[str]:
    """Keys of a recipe with `=`, or the values of a key that has names for values."""
    given = list(ctx.params.get("overrides") or ())
    if given and not incomplete and "=" not in given[-1]:  # click takes a lone `=` for nothing
        return values_of(given[-1])
    if len(given) > 1 and given[-1] == "=":
        return [value for value in values_of(given[-2]) if value.startswith(incomplete)]
    key, equals, begun = incomplete.partition("=")
    if equals:
        return [f"{key}={value}" for value in values_of(key) if value.startswith(begun)]
    return [f"{key}=" for key, _ in _keys() if key.startswith(incomplete)]


def values_of(key: str) -> list[str]:
    """Names that may be given to a dotted key; none where anything may be."""
    return list(dict(_keys()).get(key, ()))


def _keys() -> Iterator[tuple[str, tuple[str, ...]]]:
    from collegium.recipe.schema import recipe_schema

    schema = recipe_schema()
    yield from _below(schema, schema["$defs"], "")


def _below(section: Mapping[str, Any], sections: Mapping[str, Any], prefix: str) -> Iterator[Any]:
    """Dotted keys below a section, and the names that each takes; lists and alternatives are not entered."""
    for key, found in section.get("properties", {}).items():
        inner = sections[found["$ref"].rpartition("/")[2]] if "$ref" in found else found
        choices = [inner, *inner.get("anyOf", ())]
        names = tuple(dict.fromkeys(str(name) for choice in choices for name in choice.get("enum", ())))
        yield f"{prefix}{key}", names
        for choice in choices:
            entered = sections[choice["$ref"].rpartition("/")[2]] if "$ref" in choice else choice
            yield from _below(entered, sections, f"{prefix}{key}.")

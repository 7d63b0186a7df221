"""Starter recipes: what `collegium init` writes, with the schema beside it. No torch here.

The schema is a file and not an address on the web, so it always matches the installed version. Every `init` and
`collegium schema --output` writes it again; a recipe is never overwritten.
"""

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from collegium.base.durable import disk_errors, write_text
from collegium.base.errors import RecipeError
from collegium.base.suggestion import did_you_mean
from collegium.base.terminal import say
from collegium.recipe.schema import recipe_schema


SCHEMA_NAME = "recipe.schema.json"

STARTERS: Mapping[str, str] = {
    "basic": "two teachers, one text",
    "domains": "a general teacher and tuned ones, each for its domain, on your files",
    "families": "teachers with other tokenizers",
    "cached": "teachers scored once, to disk",
    "task": "train and measure on tasks",
    "method": "a method of the literature",
}
"""Kinds of starter recipes, each with what it is for. Shells complete these names."""


def write_starter(path: Path, kind: str) -> dict[str, str]:
    """Write a starter recipe and the schema, and return their paths.

    Args:
        path: File to write.
        kind: One of `STARTERS`.

    Raises:
        RecipeError: the file exists already, or there is no such kind.
    """
    text = starter(kind)
    if path.exists():
        raise RecipeError(f"{path}: exists already and is not overwritten; give another name, or delete it")
    schema = path.parent / SCHEMA_NAME
    write_schema(schema)
    with disk_errors(path):
        write_text(path, text)
    say(f"{path}: written ({kind}: {STARTERS[kind]}); edit it, then run `collegium check {path}`")
    return {"file": str(path), "schema": str(schema), "kind": kind}


def starter(kind: str) -> str:
    """Return the text of a starter recipe.

    Raises:
        RecipeError: there is no such kind.
    """
    if kind not in STARTERS:
        raise RecipeError(f"--kind {kind}: unknown; {did_you_mean(kind, STARTERS, always_list=True)}")
    text = (files("collegium.pipeline") / "starter_recipes" / f"{kind}.yaml").read_text(encoding="utf-8")
    return f"# yaml-language-server: $schema={SCHEMA_NAME}\n{text}"


def write_schema(path: Path) -> None:
    """Write the JSON schema of recipes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with disk_errors(path):
        write_text(path, json.dumps(recipe_schema(), indent=1) + "\n")
    say(f"{path}: written")

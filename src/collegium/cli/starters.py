"""What `collegium init` writes: a commented recipe to begin with, and the schema beside it.

The schema is a file and no address on the web, so it is that of the version that is installed. It is written
again by every `init` and `collegium schema --output`; a recipe is never overwritten.
"""

import json
from importlib.resources import files
from pathlib import Path

from collegium.base.durable import disk_errors, write_text
from collegium.base.errors import RecipeError
from collegium.base.suggestion import did_you_mean
from collegium.base.terminal import say
from collegium.cli.completion import STARTERS
from collegium.recipe.schema import recipe_schema


SCHEMA_NAME = "recipe.schema.json"


def begin_recipe(path: Path, kind: str) -> dict[str, str]:
    """Write a starter and the schema; what was written.

    Args:
        path: File to write.
        kind: One of `STARTERS`.

    Raises:
        RecipeError: there is a file already, or no such kind.
    """
    text = starter(kind)
    if path.exists():
        raise RecipeError(f"{path}: is there already and is not overwritten; give another name, or delete it")
    write_schema(path.parent / SCHEMA_NAME)
    with disk_errors(path):
        write_text(path, text)
    say(f"{path}: written ({kind}: {STARTERS[kind]}); edit it, then run `collegium check {path}`")
    return {"file": str(path), "schema": str(path.parent / SCHEMA_NAME), "kind": kind}


def starter(kind: str) -> str:
    """The text of a starter.

    Raises:
        RecipeError: there is no such kind.
    """
    if kind not in STARTERS:
        raise RecipeError(f"--kind {kind}: is not known; {did_you_mean(kind, STARTERS, always_list=True)}")
    text = (files("collegium.cli") / "starter_recipes" / f"{kind}.yaml").read_text(encoding="utf-8")
    return f"# yaml-language-server: $schema={SCHEMA_NAME}\n{text}"


def write_schema(path: Path) -> None:
    """Write the schema of recipes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with disk_errors(path):
        write_text(path, json.dumps(recipe_schema(), indent=1) + "\n")
    say(f"{path}: written")

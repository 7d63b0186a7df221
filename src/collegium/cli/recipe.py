"""Commands on the recipe file: start one, describe it to an editor, check it. None imports torch."""

from pathlib import Path
from typing import Annotated

import typer

from collegium.base.terminal import show_json
from collegium.cli.completion import overrides_of, starters


RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="YAML recipe")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="overrides, such as training.max_steps=100",
        autocompletion=overrides_of,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="print the result as JSON")]


def init(
    file: Annotated[Path, typer.Argument(metavar="[FILE]", help="recipe to write")] = Path("recipe.yaml"),
    *,
    kind: Annotated[
        str,
        typer.Option(help="basic, domains, families, cached, task or method", autocompletion=starters),
    ] = "basic",
    as_json: AsJson = False,
) -> None:
    """Write a commented recipe to start from, and the JSON schema by which editors check it."""
    from collegium.pipeline.starters import write_starter

    result = write_starter(file, kind)
    if as_json:
        show_json(result)


def check(recipe: RecipePath, overrides: Overrides = None, *, as_json: AsJson = False) -> None:
    """Validate a recipe without running it: keys, values, files and packages, in a second and offline.

    `doctor` reads tokenizers and caches too, and `preflight` loads the teachers.
    """
    from collegium.pipeline.check import check as look
    from collegium.pipeline.check import conclude_check
    from collegium.recipe.file import load_recipe

    document = conclude_check(look(load_recipe(recipe, overrides or ())), as_json=as_json)
    if as_json:
        show_json(document)


def schema(
    *,
    output: Annotated[Path | None, typer.Option(help="file to write; stdout if not given")] = None,
    as_json: AsJson = False,
) -> None:
    """Print the JSON schema of recipes, which editors use for completion and checks."""
    from collegium.pipeline.starters import write_schema
    from collegium.recipe.schema import recipe_schema

    if output is None:
        show_json(recipe_schema(), indent=None if as_json else 1)
        return
    write_schema(output)
    if as_json:
        show_json({"file": str(output)})

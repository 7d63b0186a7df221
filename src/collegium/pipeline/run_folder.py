"""Decides which recipe owns a run folder: the one in it, unless nothing was trained there yet. No torch here."""

from pathlib import Path

from collegium.base.digests import sealed_text
from collegium.base.durable import write_text
from collegium.base.errors import RecipeError
from collegium.base.terminal import is_main_rank
from collegium.recipe.file import differences, dump_recipe, load_run_recipe
from collegium.recipe.recipe import Recipe


def claim_run_dir(recipe: Recipe, run_dir: Path) -> None:
    """Write the resolved recipe, after seeing that a run that is there has the same result.

    A run that ended before its first checkpoint, for instance by a mistake in its recipe, is replaced.

    Raises:
        RecipeError: the folder belongs to another recipe.
    """
    other = require_free(recipe, run_dir)
    if not is_main_rank():
        return
    if other is not None and other.fingerprint != recipe.fingerprint and not _has_begun(run_dir):
        # What was chosen for a student's layers, for all that is pruned, and for temperatures.
        for name in ("kept_layers.json", "kept.json", "temperatures.json"):
            (run_dir / name).unlink(missing_ok=True)
    run_dir.mkdir(parents=True, exist_ok=True)
    write_text(run_dir / "recipe.yaml", sealed_text(dump_recipe(recipe)))


def require_free(recipe: Recipe, run_dir: Path) -> Recipe | None:
    """See that the folder may be used; the recipe that is there, if any.

    Raises:
        RecipeError: it belongs to another recipe.
        DataError: the recipe that is there is damaged.
    """
    path = run_dir / "recipe.yaml"
    if not path.exists():
        return None
    try:
        other = load_run_recipe(path)
    except RecipeError as error:
        raise RecipeError(
            f"{run_dir}: holds a run whose recipe this version does not read; "
            f"give another output_dir or name, or delete the folder\n{error}"
        ) from error
    goes_on = not (run_dir / "student").exists() and _is_cut_otherwise(other, recipe)
    if _has_begun(run_dir) and other.fingerprint != recipe.fingerprint and not goes_on:
        changed = "; ".join(differences(other, recipe)[:3])
        raise RecipeError(
            f"{run_dir}: holds a run of another recipe (there and here: {changed}); "
            "give another output_dir or name, or delete the folder"
        )
    return other


def _has_begun(run_dir: Path) -> bool:
    return (run_dir / "student").exists() or any(run_dir.glob("checkpoints/checkpoint-*"))


def _is_cut_otherwise(other: Recipe, recipe: Recipe) -> bool:
    """Whether only the division of a step into batches differs; checkpoints know how many samples that is."""
    split = {"batch_size", "gradient_accumulation"}
    as_here = recipe.training.model_dump(include=split)
    training = other.training.model_copy(update=as_here)
    return other.model_copy(update={"training": training}).fingerprint == recipe.fingerprint

"""What a recipe makes of advice: overrides that its own parser takes, and with which it is still valid."""

import json
from collections.abc import Collection

from collegium.base.errors import RecipeError
from collegium.evaluation.advice import Advice, Overrides
from collegium.recipe.file import with_overrides
from collegium.recipe.recipe import Recipe


RULES: dict[str, Overrides] = {
    "uniform": ("objective.weighting=uniform",),
    "paper (token, tau 1)": ("objective.weighting=paper",),
    "window:32, tau 0.5": ("objective.weighting={kind: entropy, granularity: window:32, tau: 0.5}",),
    "sequence, tau 0.5": ("objective.weighting={kind: entropy, granularity: sequence, tau: 0.5}",),
    "sequence, tau 0.25": ("objective.weighting={kind: entropy, granularity: sequence, tau: 0.25}",),
    "causal:32, tau 0.5": ("objective.weighting={kind: entropy, granularity: causal:32, tau: 0.5}",),
    "most certain, window:32": ("objective.weighting={kind: most_certain, granularity: window:32}",),
    "ebkd (token)": ("objective.weighting={kind: ebkd, granularity: token}",),
    "bayes (past labels)": ("objective.weighting=bayes",),
}
"""By the names that a pre-flight gives its alternatives."""

GEOMETRIC = "geometric uniform"


def advice_for(recipe: Recipe) -> Advice:
    """Overrides for this recipe; those with which it would not be valid are left out."""
    names = [teacher.name for teacher in recipe.teachers]
    rules = {name: (*overrides, "objective.fusion=mixture") for name, overrides in RULES.items()}
    rules[GEOMETRIC] = ("objective.weighting=uniform", "objective.fusion=geometric")
    training = recipe.training
    batch = max(1, training.batch_size // 2)
    accumulation = training.gradient_accumulation * training.batch_size // batch
    return Advice(
        alone=_valid(recipe, {name: _teachers(recipe, {name}) for name in names}),
        without=_valid(recipe, {name: _teachers(recipe, {*names} - {name}) for name in names}),
        calibrated=_valid(recipe, {name: _calibrated(place) for place, name in enumerate(names)}),
        rules=_valid(recipe, {name: _needed(recipe, overrides) for name, overrides in rules.items()}),
        more_documents=_one(recipe, (f"data.held_out_documents={2 * recipe.data.held_out_documents}",)),
        smaller_batch=_one(
            recipe, (f"training.batch_size={batch}", f"training.gradient_accumulation={accumulation}")
        ),
        cached=_one(recipe, tuple(f"teachers.{i}.cached=true" for i in recipe.placed_local_teachers)),
        fewer_checkpoints=_one(recipe, ("training.keep_checkpoints=1",)),
    )


def _calibrated(place: int) -> Overrides:
    return (f"teachers.{place}.weight_temperature=fit",)


def _teachers(recipe: Recipe, kept: Collection[str]) -> Overrides:
    chosen = [section for section in recipe.teachers if section.name in kept]
    sections = [section.model_dump(mode="json", exclude_defaults=True) for section in chosen]
    return (f"teachers={json.dumps(sections, ensure_ascii=False)}",)


def _needed(recipe: Recipe, overrides: Overrides) -> Overrides:
    """Without what the recipe says already."""
    return tuple(o for o in overrides if o != f"objective.fusion={recipe.objective.fusion}")


def _one(recipe: Recipe, overrides: Overrides) -> Overrides:
    return dict(_valid(recipe, {"": overrides})).get("", ())


def _valid(recipe: Recipe, by_name: dict[str, Overrides]) -> dict[str, Overrides]:
    return {name: overrides for name, overrides in by_name.items() if overrides and _is_valid(recipe, overrides)}


def _is_valid(recipe: Recipe, overrides: Overrides) -> bool:
    try:
        return with_overrides(recipe, overrides) != recipe
    except RecipeError:
        return False

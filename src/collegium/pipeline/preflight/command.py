"""What `collegium preflight` does: judge the teachers on held-out text, and try the run for its cost.

Nothing is trained that stays: the trial's folder is removed. What was found is kept in the run folder, where the
report puts it beside what the run took.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from collegium.assembly.cache import build_teachers
from collegium.assembly.calibration import fit_recipe
from collegium.assembly.ingredients import Ingredients
from collegium.assembly.objective import build_rule
from collegium.assembly.tokenizers import compare_teachers, sample_text
from collegium.assembly.training import build_held_out
from collegium.base.durable import write_text
from collegium.base.errors import RecipeError, UserError
from collegium.base.terminal import is_main_rank, say
from collegium.evaluation.cost import Clock, RunCost
from collegium.evaluation.language_modeling import HeldOut
from collegium.evaluation.preflight import Preflight, Resampling, entropy_stretch, run_preflight
from collegium.evaluation.preflight_verdict import cost_verdict, verdict
from collegium.losses.joint_weighting import JointWeighting
from collegium.losses.weighting import Weighting
from collegium.pipeline.comparison import PREFLIGHT
from collegium.pipeline.preflight.as_tree import as_tree
from collegium.pipeline.preflight.estimate.caches import PendingCache, pending_caches
from collegium.pipeline.preflight.estimate.memory import PeakMemory
from collegium.pipeline.preflight.estimate.run import Known, estimate_run
from collegium.pipeline.run import device, prepare
from collegium.recipe.recipe import Recipe
from collegium.signals.contracts import Teacher


ALTERNATIVES: Mapping[str, Weighting | JointWeighting] = {
    "uniform": Weighting("uniform"),
    "paper (token, tau 1)": Weighting("entropy", "token", 1.0),
    "window:32, tau 0.5": Weighting("entropy", "window:32", 0.5),
    "sequence, tau 0.5": Weighting("entropy", "sequence", 0.5),
    "sequence, tau 0.25": Weighting("entropy", "sequence", 0.25),
    "causal:32, tau 0.5": Weighting("entropy", "causal:32", 0.5),
    "most certain, window:32": Weighting("most_certain", "window:32"),
    "ebkd (token)": JointWeighting("ebkd", "token"),
    "bayes (past labels)": Weighting("bayes"),
}
"""Weightings that a pre-flight compares the recipe's own with.

None reads the label that it is judged by: of rules that do (`min_ce`, `ca_mkd`, ...) the loss says nothing.
"""


@dataclass(frozen=True)
class _Loaded:
    """Teachers and held-out text, and what it took to get there."""

    recipe: Recipe
    ingredients: Ingredients
    teachers: list[Teacher]
    held_out: HeldOut
    known: Known


def preflight(
    recipe: Recipe, *, with_estimate: bool = True, start_seconds: float = 0.0
) -> tuple[Preflight, RunCost | None]:
    """Can these teachers help on this text, and what will the run take?

    A teacher that says `cached: true` and has no cache yet runs meanwhile.

    Args:
        recipe: The recipe.
        with_estimate: Whether to try the run.
        start_seconds: What a command takes before it does anything.

    Returns:
        The figures, and the cost; None if it was not asked for, or the run would end in an error, which the
        verdict tells then.

    Raises:
        RecipeError: there is no teacher, or the weights follow the student.
    """
    if not recipe.teachers:
        raise RecipeError("preflight judges teachers, and this recipe has none: add some under `teachers:`")
    chosen = build_rule(recipe)
    ingredients = prepare(recipe)
    pairs = compare_teachers(
        recipe, ingredients.tokenizer, sample_text(recipe, ingredients.tokenizer, ingredients.text)
    )
    pending = pending_caches(recipe, ingredients)
    fitted, temperatures = fit_recipe(_running(recipe, pending), ingredients, device=device())
    loaded = _load(fitted, ingredients, pending, start_seconds)
    cost, cost_lines = _cost(loaded) if with_estimate else (None, ())  # first: memory is as in a run
    evaluation = recipe.evaluation
    result = run_preflight(
        loaded.held_out,
        chosen,
        ALTERNATIVES,
        temperatures=temperatures,
        tokenizers=pairs,
        resampling=Resampling(evaluation.confidence, evaluation.bootstrap_samples, recipe.seed),
    )
    reads_entropies = entropy_stretch(chosen) is not None
    lines = verdict(result, confidence=evaluation.confidence, reads_entropies=reads_entropies)
    result = replace(result, verdict=(*lines, *cost_lines))
    if is_main_rank():  # beside what the run will take, once it is known
        told = {"recipe": recipe.fingerprint, **as_tree(result, cost)}
        write_text(recipe.run_dir / PREFLIGHT, json.dumps(told, indent=1))
    return result, cost


def _running(recipe: Recipe, pending: list[PendingCache]) -> Recipe:
    """The recipe with these teachers running."""
    return _with_cached(recipe, {cache.section.name for cache in pending}, cached=False)


def _with_cached(recipe: Recipe, names: Collection[str], *, cached: bool) -> Recipe:
    teachers = tuple(s.model_copy(update={"cached": cached}) if s.name in names else s for s in recipe.teachers)
    return recipe.model_copy(update={"teachers": teachers})


def _load(fitted: Recipe, ingredients: Ingredients, pending: list[PendingCache], start_seconds: float) -> _Loaded:
    """Load the teachers."""
    clock, memory = Clock(), PeakMemory()
    with clock.timed("teachers"):
        teachers = build_teachers(fitted, ingredients, device=device())
    held_out = build_held_out(fitted, ingredients, teachers, device=device())
    known = Known({"start": start_seconds, **clock.seconds}, memory, pending)
    return _Loaded(fitted, ingredients, teachers, held_out, known)


def _cost(loaded: _Loaded) -> tuple[RunCost | None, tuple[str, ...]]:
    say("trying some steps of the run, to tell what it takes")
    try:
        cost = estimate_run(
            _with_cached(loaded.recipe, {cache.section.name for cache in loaded.known.pending}, cached=True),
            loaded.ingredients,
            loaded.teachers,
            loaded.held_out,
            loaded.known,
            device=device(),
        )
    except UserError as error:
        return None, (f"The run itself would end in an error: {error}",)
    return cost, cost_verdict(cost)

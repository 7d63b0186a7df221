"""The work of `collegium preflight`: judge the teachers on held-out text, and try the run for its cost.

Nothing is trained that stays: the trial's folder is removed. What was found is kept in the run folder, where the
report puts it beside what the run took.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace

from collegium.assembly.objective import build_rule
from collegium.assembly.run import Run
from collegium.assembly.tokenizer_comparison import compare_teachers, sample_text
from collegium.base.digests import write_sealed
from collegium.base.errors import RecipeError, UserError
from collegium.base.progress import Phase
from collegium.base.terminal import is_main_rank
from collegium.evaluation.cost import Clock, RunCost
from collegium.evaluation.preflight import Preflight, Resampling, entropy_stretch, run_preflight
from collegium.evaluation.preflight_verdict import cost_verdict, verdict
from collegium.losses.joint_weighting import JointWeighting
from collegium.losses.weighting import Weighting
from collegium.pipeline.cost import PREFLIGHT
from collegium.pipeline.preflight.advice import advice_for
from collegium.pipeline.preflight.as_json import preflight_as_json
from collegium.pipeline.preflight.estimate.caches import PendingCache, pending_caches
from collegium.pipeline.preflight.estimate.memory import PeakMemory
from collegium.pipeline.preflight.estimate.run import Known, estimate_run
from collegium.recipe.recipe import Recipe


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


def preflight(
    recipe: Recipe, *, with_estimate: bool = True, start_seconds: float = 0.0
) -> tuple[Preflight, RunCost | None]:
    """Judge whether these teachers can help on this text, and what the run will take.

    A teacher that says `cached: true` and has no cache yet runs meanwhile.

    Args:
        recipe: The recipe.
        with_estimate: Whether to try the run.
        start_seconds: What a command takes before it does anything.

    Returns:
        The figures, and the cost; None if it was not asked for, or the run would end in an error, which the
        verdict says then.

    Raises:
        RecipeError: there is no teacher, or the weights follow the student.
    """
    if not recipe.teachers:
        raise RecipeError("preflight judges teachers, and this recipe has none: add some under `teachers:`")
    chosen = build_rule(recipe)
    run = Run(recipe)
    pairs = compare_teachers(run, sample_text(run, run.text))
    pending = pending_caches(run)
    missing = {cache.section.name for cache in pending}
    trial = run.derive(recipe=_with_cached(recipe, missing, cached=False))
    known = _load(trial, pending, start_seconds)
    cost, cost_lines = _cost(trial, known) if with_estimate else (None, ())  # first: memory is as in a run
    evaluation = recipe.evaluation
    with Phase("judging the teachers"):
        result = run_preflight(
            trial.held_out,
            chosen,
            ALTERNATIVES,
            temperatures=trial.temperatures,
            tokenizers=pairs,
            resampling=Resampling(evaluation.confidence, evaluation.bootstrap_samples, recipe.seed),
        )
    reads_entropies = entropy_stretch(chosen) is not None
    advice = advice_for(recipe)
    lines = verdict(result, advice, confidence=evaluation.confidence, reads_entropies=reads_entropies)
    result = replace(result, verdict=(*lines, *cost_lines))
    if is_main_rank():  # beside what the run will take, once it is known
        found = {"recipe": recipe.fingerprint, **preflight_as_json(result, cost)}
        write_sealed(recipe.run_dir / PREFLIGHT, found, indent=1)
    return result, cost


def _with_cached(recipe: Recipe, names: Collection[str], *, cached: bool) -> Recipe:
    teachers = tuple(s.model_copy(update={"cached": cached}) if s.name in names else s for s in recipe.teachers)
    return recipe.model_copy(update={"teachers": teachers})


def _load(run: Run, pending: list[PendingCache], start_seconds: float) -> Known:
    """Load the teachers, and measure what that takes."""
    run.make("fitted")
    memory = PeakMemory()
    clock = Clock()
    with clock.timed("teachers"):
        run.make("teachers")
    run.make("held_out")
    return Known({"start": start_seconds, **clock.seconds}, memory, pending)


def _cost(run: Run, known: Known) -> tuple[RunCost | None, tuple[str, ...]]:
    recipe = _with_cached(run.fitted, {cache.section.name for cache in known.pending}, cached=True)
    try:
        with Phase("trying the run, to see what it takes"):
            cost = estimate_run(run.derive(recipe=recipe, teachers=run.teachers, held_out=run.held_out), known)
    except UserError as error:
        return None, (f"The run itself would end in an error: {error}",)
    return cost, cost_verdict(cost, advice_for(run.recipe))

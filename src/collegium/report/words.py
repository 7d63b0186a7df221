"""Sentences about a run and what came of it; every number is one of `evaluation.json`."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from collegium.base.terminal import duration
from collegium.base.typed import typed
from collegium.recipe.recipe import Recipe
from collegium.report.card.public_recipe import public_path
from collegium.report.evaluation import ActualCost, Evaluation
from collegium.report.interval import Difference
from collegium.report.perplexity import perplexity_of, shown_perplexity


OVERCONFIDENT = 0.5
"""Nats by which a teacher's loss is above its entropy before it is said."""


def verdict(evaluation: Evaluation) -> list[str]:
    """Sentences that say what the figures of a finished run mean."""
    return [
        *_against_before(evaluation),
        *_against_best_teacher(evaluation),
        *_fused_against_best(evaluation),
        *_calibration(evaluation),
        *_forgotten(evaluation),
    ]


def _against_before(evaluation: Evaluation) -> Iterator[str]:
    found = evaluation.differences.before
    before = None if evaluation.before is None else evaluation.before.mean.nll
    after = evaluation.mean.nll
    if found is None or before is None or after is None:
        return
    gap = found.all
    words = "lowered" if gap.value < 0 else "raised"
    yield (
        f"Training {words} the student's perplexity from {shown_perplexity(before)} to {shown_perplexity(after)} "
        f"(mean over domains): {gap.shown(3, sign='+')} nats per token {_interval(gap, evaluation.confidence)}, "
        f"{_growth(gap)} in perplexity{_chance(gap, evaluation.confidence)}."
    )


def _against_best_teacher(evaluation: Evaluation) -> Iterator[str]:
    losses = _teacher_losses(evaluation)
    if not losses or evaluation.mean.nll is None:
        return
    best = min(losses, key=losses.__getitem__)
    found = evaluation.differences.teachers.get(best)
    if found is None:
        return
    gap = found.all
    word = "below" if gap.value < 0 else "above"
    yield (
        f"The student's loss is {abs(gap.value):.3f} nats {word} that of the best single teacher, {best} "
        f"(perplexity {shown_perplexity(losses[best])}): {gap.shown(3, sign='+')} "
        f"{_interval(gap, evaluation.confidence)}{_chance(gap, evaluation.confidence)}."
    )


def _teacher_losses(evaluation: Evaluation) -> dict[str, float]:
    teachers = {} if evaluation.teachers is None else evaluation.teachers.mean.teachers
    return {name: figures.nll for name, figures in teachers.items() if figures.nll is not None}


def _fused_against_best(evaluation: Evaluation) -> Iterator[str]:
    if evaluation.teachers is None or len(evaluation.teachers.mean.teachers) < 2:
        return
    mean = evaluation.teachers.mean
    if mean.fused_nll is None:
        return
    losses = _teacher_losses(evaluation)
    compared = f"No teacher covers all text, so none could teach alone; together they have {mean.fused_nll:.3f}."
    if losses:
        best = min(losses.values())
        word = "better" if mean.fused_nll < best else "no better"
        compared = (
            f"What the teachers say together is {word} than the best of them alone ({mean.fused_nll:.3f} and "
            f"{best:.3f} nats)."
        )
    weights = {name: own.weight or 0.0 for name, own in mean.teachers.items()}
    first = max(weights, key=weights.__getitem__)
    effective = math.nan if mean.effective_teachers is None else mean.effective_teachers
    conflict = math.nan if mean.conflict is None else mean.conflict
    yield (
        f"{compared} {first} carried most of it, {weights[first]:.0%} of the weight; in effect "
        f"{effective:.1f} of {len(weights)} teachers decided, with a conflict of {conflict:.2f} nats."
    )


def _calibration(evaluation: Evaluation) -> Iterator[str]:
    figures = {} if evaluation.teachers is None else evaluation.teachers.mean.teachers
    if len(figures) < 2:
        return
    gaps = {name: (own.weight_nll or 0.0) - (own.entropy or 0.0) for name, own in figures.items()}
    overconfident = {name: gap for name, gap in gaps.items() if gap > OVERCONFIDENT}
    if overconfident:
        listed = _listed([f"{name} by {gap:.2f}" for name, gap in overconfident.items()])
        places = [place for place, name in enumerate(figures) if name in overconfident]
        fit = typed(*(f"teachers.{place}.weight_temperature=fit" for place in places))
        yield (
            f"Overconfident, in nats: {listed}. Where certainty sets the weights, the surest of these has more "
            f"than it earns. What fits that: {fit}."
        )


def _forgotten(evaluation: Evaluation) -> Iterator[str]:
    if evaluation.continual is not None and evaluation.continual.mean.forgetting is not None:
        value = evaluation.continual.mean.forgetting
        yield f"Of what it knew before, the student forgot {value:+.3f} nats per token."


def _growth(gap: Difference) -> str:
    growth = perplexity_of(gap.value) - 1.0
    return f"{growth:+.0%}" if math.isfinite(growth) else "beyond all numbers"


def _interval(gap: Difference, confidence: float) -> str:
    if not gap.has_ends:
        return "[interval not known: one document]"
    return f"[{gap.ends(3, between=', ', sign='+')}, {confidence:.0%} over documents]"


def _chance(gap: Difference, confidence: float) -> str:
    if not gap.has_enough:
        return f"; {gap.too_few}"
    return ", which may be chance" if gap.may_be_chance(confidence) else ""


def summary(recipe: Recipe, evaluation: Evaluation) -> str:
    """Describe the run in one paragraph."""
    training = recipe.training
    cost = None if evaluation.cost is None else evaluation.cost.actual
    length = f"{training.max_steps:,} steps" if training.max_steps else f"{training.num_epochs:g} passes"
    took = "" if cost is None else f" It took {duration(sum(cost.seconds.values()))}{_resumed(cost)}."
    documents = sum(domain.documents for domain in evaluation.domains.values())
    tokens_held_out = sum(domain.tokens for domain in evaluation.domains.values())
    return (
        f"{_student(recipe)}, {_taught(recipe)} It was trained for {length}{_read(evaluation)} "
        f"{_sources(recipe)}.{took}{_licences(evaluation)} Everything below is measured on "
        f"{tokens_held_out:,} tokens of {documents:,} held-out documents that no "
        "training text repeats."
    )


def _read(evaluation: Evaluation) -> str:
    """Tokens that the trainer counted; a run of an earlier version did not count."""
    training = (evaluation.lineage or {}).get("training") or {}
    if training.get("tokens") is None or training.get("predicted") is None:
        return " on"
    return f", on {training['tokens']:,} tokens ({training['predicted']:,} of them predicted) of"


def _licences(evaluation: Evaluation) -> str:
    """Licences of the teachers."""
    teachers = (evaluation.lineage or {}).get("teachers") or []
    by_licence: dict[str, list[str]] = {}
    for teacher in teachers:
        by_licence.setdefault(teacher.get("licence") or "not stated", []).append(str(teacher["name"]))
    if not by_licence:
        return ""
    listed = [f"{licence} ({_listed(names)})" for licence, names in by_licence.items()]
    return f" Licences of the teachers: {'; '.join(listed)}."


def _resumed(cost: ActualCost) -> str:
    return " since it was last resumed" if cost.resumed else ""


def _student(recipe: Recipe) -> str:
    student = recipe.student
    how = {
        "config": "with new weights, of the shape of",
        "pretrained": "that began as",
        "layer_drop": "of some layers of",
        "pruned": "cut out of",
        "continued": "that goes on from",
    }[student.kind]
    return f"A student {how} {public_path(student.model)}"


def _taught(recipe: Recipe) -> str:
    names = [teacher.name for teacher in recipe.teachers]
    if not names:
        return "learnt from text alone."
    objective = recipe.objective
    weighting = objective.weighting
    rule = f"{weighting.kind} weights" + (f" over {weighting.granularity}" if weighting.kind == "entropy" else "")
    if len(names) == 1:
        return f"learnt from the teacher {names[0]} (kd_weight {_schedule(objective.kd_weight)})."
    return (
        f"learnt from {len(names)} teachers, {_listed(names)}, fused as a {objective.fusion} by {rule} "
        f"(kd_weight {_schedule(objective.kd_weight)})."
    )


def _schedule(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else "by a schedule"


def _sources(recipe: Recipe) -> str:
    return _listed([source.name for source in recipe.data.sources])


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"

"""What was run and what came of it, in plain words; every number is one of `evaluation.json`."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from collegium.base.terminal import duration
from collegium.recipe.recipe import Recipe
from collegium.report.card.public_recipe import public_path


Content = Mapping[str, Any]

OVERCONFIDENT = 0.5
"""Nats by which a teacher's loss is above its entropy before it is said."""


def verdict(evaluation: Content) -> list[str]:
    """What the evaluation of a finished run says, a sentence each."""
    return [
        *_against(evaluation, "student before", "Training"),
        *_teachers(evaluation),
        *_against_fused(evaluation),
        *_calibration(evaluation),
        *_forgotten(evaluation),
    ]


def _against(evaluation: Content, other: str, subject: str) -> Iterator[str]:
    gap = evaluation.get("differences", {}).get(other, {}).get("all")
    before, after = (_mean(evaluation.get("before", {}), "nll"), _mean(evaluation, "nll"))
    if gap is None or before is None or after is None:
        return
    share = math.expm1(gap["value"])
    words = "lowered" if gap["value"] < 0 else "raised"
    yield (
        f"{subject} {words} the student's perplexity from {_perplexity(before)} to {_perplexity(after)} (mean "
        f"over domains): {gap['value']:+.3f} nats per token {_interval(gap, evaluation)}, {share:+.0%} in "
        f"perplexity{_chance(gap, evaluation)}."
    )


def _teachers(evaluation: Content) -> Iterator[str]:
    losses = _teacher_losses(evaluation)
    own = _mean(evaluation, "nll")
    if not losses or own is None:
        return
    best = min(losses, key=losses.__getitem__)
    gap = evaluation.get("differences", {}).get(f"teacher {best}", {}).get("all")
    if gap is None:
        return
    word = "below" if gap["value"] < 0 else "above"
    yield (
        f"The student's loss is {abs(gap['value']):.3f} nats {word} that of the best single teacher, {best} "
        f"(perplexity {_perplexity(losses[best])}): {gap['value']:+.3f} {_interval(gap, evaluation)}"
        f"{_chance(gap, evaluation)}."
    )


def _teacher_losses(evaluation: Content) -> dict[str, float]:
    mean = evaluation.get("teachers", {}).get("mean", {})
    prefix, suffix = "teacher/", "/nll"
    return {
        name.removeprefix(prefix).removesuffix(suffix): value
        for name, value in mean.items()
        if name.startswith(prefix) and name.endswith(suffix)
    }


def _against_fused(evaluation: Content) -> Iterator[str]:
    losses, teachers = _teacher_losses(evaluation), evaluation.get("teachers", {}).get("mean", {})
    fused = teachers.get("rule/fused/nll")
    if fused is None or len(losses) < 2:
        return
    best = min(losses.values())
    word = "better" if fused < best else "no better"
    weights = {name: teachers.get(f"teacher/{name}/weight", 0.0) for name in losses}
    first = max(weights, key=weights.__getitem__)
    yield (
        f"What the teachers say together is {word} than the best of them alone ({fused:.3f} and {best:.3f} nats). "
        f"{first} carried most of it, {weights[first]:.0%} of the weight; in effect "
        f"{teachers.get('effective_teachers', math.nan):.1f} of {len(losses)} teachers decided, with a conflict "
        f"of {teachers.get('conflict', math.nan):.2f} nats."
    )


def _calibration(evaluation: Content) -> Iterator[str]:
    mean, names = evaluation.get("teachers", {}).get("mean", {}), list(_teacher_losses(evaluation))
    told = {name: [mean.get(f"teacher/{name}/{key}", 0.0) for key in ("weight_nll", "entropy")] for name in names}
    gaps = {name: loss - entropy for name, (loss, entropy) in told.items()}
    sure = {name: gap for name, gap in gaps.items() if gap > OVERCONFIDENT}
    if sure and len(names) > 1:
        listed = _listed([f"{name} by {gap:.2f}" for name, gap in sure.items()])
        yield (
            f"Surer than they are right, in nats: {listed}. Where certainty sets the weights, the surest of these "
            "has more than it earns: `weight_temperature: fit` mends that."
        )


def _forgotten(evaluation: Content) -> Iterator[str]:
    value = (evaluation.get("continual") or {}).get("mean", {}).get("forgetting")
    if isinstance(value, int | float):
        yield f"Of what it knew before, the student forgot {value:+.3f} nats per token."


def _mean(section: Content, name: str) -> float | None:
    value = section.get("mean", {}).get(name)
    return float(value) if isinstance(value, int | float) else None


def _perplexity(nll: float) -> str:
    return f"{math.exp(nll):.1f}"


def _interval(gap: Content, evaluation: Content) -> str:
    low, high = gap.get("low"), gap.get("high")
    if low is None or high is None or math.isnan(low):
        return "[interval not known: one document]"
    return f"[{low:+.3f}, {high:+.3f}, {evaluation['confidence']:.0%} over documents]"


def _chance(gap: Content, evaluation: Content) -> str:
    p_value = gap.get("p_value")
    if p_value is None or math.isnan(p_value):
        return ""
    return "" if p_value < 1 - evaluation["confidence"] else ", which may be chance"


def summary(recipe: Recipe, evaluation: Content) -> str:
    """What was run, in one paragraph."""
    training, cost = recipe.training, (evaluation.get("cost") or {}).get("actual")
    length = f"{training.max_steps:,} steps" if training.max_steps else f"{training.num_epochs:g} passes"
    block = training.batch_size * training.gradient_accumulation * recipe.data.block_size
    tokens = f", {training.max_steps * block:,} tokens a device" if training.max_steps else ""
    took = "" if cost is None else f" It took {duration(sum(cost['seconds'].values()))}{_resumed(cost)}."
    return (
        f"{_student(recipe)}, {_taught(recipe)} It was trained for {length} of {block:,} tokens{tokens}, on "
        f"{_sources(recipe)}.{took}{_licences(evaluation)} Everything below is measured on "
        f"{_total(evaluation, 'tokens')} tokens of {_total(evaluation, 'documents')} held-out documents that no "
        "training text repeats."
    )


def _licences(evaluation: Content) -> str:
    """Of the teachers, by licence."""
    teachers = (evaluation.get("lineage") or {}).get("teachers") or []
    by_licence: dict[str, list[str]] = {}
    for teacher in teachers:
        by_licence.setdefault(teacher.get("licence") or "not stated", []).append(str(teacher["name"]))
    if not by_licence:
        return ""
    told = [f"{licence} ({_listed(names)})" for licence, names in by_licence.items()]
    return f" Licences of the teachers: {'; '.join(told)}."


def _total(evaluation: Content, key: str) -> str:
    return f"{sum(domain[key] for domain in evaluation['domains'].values()):,}"


def _resumed(cost: Content) -> str:
    return " since it was last resumed" if cost.get("resumed") else ""


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
    objective, weighting = recipe.objective, recipe.objective.weighting
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

"""Plain sentences about the figures of a pre-flight: what to do, and what not to expect."""

import math
from collections.abc import Iterator

from collegium.base.terminal import duration, size
from collegium.evaluation.cost import RunCost
from collegium.evaluation.preflight import Preflight
from collegium.report.interval import Difference


OVERCONFIDENT = 0.5
"""Nats by which a teacher's mean loss may be above its mean entropy before it is called overconfident."""

WORTHWHILE = 0.005
"""Nats of loss below which a gain is called none."""

IDLE = 0.02
"""Mean weight in its best domain below which a teacher is called idle."""

HARDLY_BETTER = 1.1
"""How many times as often as by chance certainty must be right before it is called a guide."""


def verdict(result: Preflight, *, confidence: float = 0.95, reads_entropies: bool = True) -> tuple[str, ...]:
    """A sentence or two for each thing that matters.

    Args:
        result: The figures.
        confidence: Of the intervals; a difference counts where its p-value is below 1 minus this.
        reads_entropies: Whether the recipe's weights follow entropies, so that certainty matters.
    """
    lines = [_gain(result, confidence)]
    if len(result.teachers) > 1:
        lines += _better_rule(result, confidence)
        lines += _routing(result)
    lines += _overconfident(result)
    if len(result.teachers) > 1:
        lines += _certainty(result) if reads_entropies else ()
        lines += _idle(result)
        lines.append(
            f"In effect {result.effective_teachers['mean']:.1f} of {len(result.teachers)} teachers decide. "
            f"They contradict each other by {result.conflict['mean']:.2f} nats "
            f"({result.conflict_95['mean']:.2f} at the worst twentieth of the tokens)."
        )
    return tuple(lines)


def _gain(result: Preflight, confidence: float) -> str:
    gain = result.gains["recipe"]
    name = result.best_teacher
    chosen = result.rules["recipe"]["mean"]
    single = result.teachers[name]["mean"]
    if len(result.teachers) == 1:
        return f"There is one teacher, so nothing is fused: its loss is {single:.3f} nats."
    figures = f"{chosen:.3f} nats, the best single teacher ({name!r}) {single:.3f}"
    if abs(gain.value) <= WORTHWHILE:
        return (
            f"Fusion makes no difference here: the fused target has {figures}. The best teacher alone is cheaper."
        )
    shown = f"the difference is {gain.shown(3, sign='+')} {_interval(gain, confidence)}"
    if not _beyond_chance(gain, confidence):
        reason = "there are too few held-out documents to tell" if math.isnan(gain.p_value) else "within chance"
        leaning = "may help" if gain.value > 0 else "may do harm"
        return (
            f"Fusion {leaning} here: the fused target has {figures}; {shown}, {reason}: "
            "hold out more documents (data.held_out_documents) to know."
        )
    if gain.value > 0:
        return f"Fusion can help: the fused target has {figures}; {shown}, beyond chance."
    return (
        f"Fusion will not help here: the fused target has {figures}; {shown}, beyond chance. Distil from "
        f"{name!r} alone, or choose another weighting."
    )


def _better_rule(result: Preflight, confidence: float) -> Iterator[str]:
    name = max(result.better, key=lambda rule: result.better[rule].value)
    gain = result.better[name]
    if gain.value > WORTHWHILE and _beyond_chance(gain, confidence):
        found = result.rules[name]["mean"]
        own = result.rules["recipe"]["mean"]
        yield (
            f"Rule {name!r} makes a better target here: {found:.3f} against {own:.3f} nats, "
            f"{gain.shown(3, sign='+')} {_interval(gain, confidence)}: try "
            f"objective.{'fusion and weighting' if name.startswith('geometric') else 'weighting'} so."
        )


def _routing(result: Preflight) -> Iterator[str]:
    gain = result.rules["recipe"]["mean"] - result.oracle["mean"]
    if gain > WORTHWHILE and len(result.oracle) > 2:
        best = {d: min(result.teachers, key=lambda n: result.teachers[n][d]) for d in result.oracle if d != "mean"}
        routes = ", ".join(f"{domain}: {name}" for domain, name in best.items())
        yield (
            f"The best teacher of each domain ({routes}) has {result.oracle['mean']:.3f} nats, {gain:.3f} less "
            "than the fused target: where the domain of every text is known, take objective.weighting.kind domain."
        )


def _overconfident(result: Preflight) -> Iterator[str]:
    for name, row in result.calibration_gap.items():
        if row["mean"] > OVERCONFIDENT:
            yield (
                f"Teacher {name!r} is overconfident by {row['mean']:.2f} nats and will get more weight than it "
                "earns: set its weight_temperature to `fit`, or raise it."
            )


def _certainty(result: Preflight) -> Iterator[str]:
    stretch = next((s for s in result.certainty if s not in ("token", "sequence")), "sequence")
    found = result.certainty[stretch]
    right = found.right["mean"]
    chance = found.chance["mean"]
    if not right >= HARDLY_BETTER * chance and not math.isnan(right):
        yield (
            f"Over {stretch} the least uncertain teacher is the best one {right:.0%} of the time, {chance:.0%} by "
            "chance: weights by entropy know little here. Fit temperatures, or use `uniform` or `bayes`."
        )
    elif not math.isnan(right):
        yield (
            f"Over {stretch} the least uncertain teacher is the best one {right:.0%} of the time, {chance:.0%} by "
            "chance: weights by entropy have something to go by."
        )


def _idle(result: Preflight) -> Iterator[str]:
    for name, row in result.weights.items():
        if max(row.values()) < IDLE:
            yield (
                f"Teacher {name!r} has {row['mean']:.1%} of the weight, at most {max(row.values()):.1%}: "
                "leave it out and save its time."
            )


def _interval(gain: Difference, confidence: float) -> str:
    if not gain.has_ends:
        return "(no interval: a domain has one document)"
    return f"[{gain.ends(3, between=', ', sign='+')}] ({confidence:.0%} over documents)"


def _beyond_chance(gain: Difference, confidence: float) -> bool:
    return gain.p_value < 1.0 - confidence


def cost_verdict(cost: RunCost) -> tuple[str, ...]:
    """Sentences about the cost of a run, and whether this machine has what it takes."""
    memory = "" if cost.memory_bytes is None else f"{size(cost.memory_bytes)} of memory and "
    lines = [
        f"On this machine the run takes about {duration(cost.total_seconds)} ({cost.num_steps:,} steps of "
        f"{cost.step_seconds:.2g} s), {memory}{size(cost.total_disk_bytes)} of disk."
    ]
    if cost.memory_bytes and cost.memory_available and cost.memory_bytes > cost.memory_available:
        lines.append(
            f"It needs {size(cost.memory_bytes)} of memory, and {size(cost.memory_available)} can be had: lower "
            "training.batch_size (and raise gradient_accumulation), or cache teachers."
        )
    if cost.needed_bytes > cost.disk_free:
        lines.append(
            f"It has {size(cost.needed_bytes)} to write, and {size(cost.disk_free)} are free: make room, or lower "
            "training.keep_checkpoints."
        )
    return tuple(lines)

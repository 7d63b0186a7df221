"""Plain sentences about the figures of a pre-flight: what to do, and what not to expect."""

import math
from collections.abc import Iterator

from collegium.base.terminal import duration, size
from collegium.evaluation.advice import NO_ADVICE, Advice, routed, shown
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


def verdict(
    result: Preflight, advice: Advice = NO_ADVICE, *, confidence: float = 0.95, reads_entropies: bool = True
) -> tuple[str, ...]:
    """A sentence or two for each thing that matters.

    Args:
        result: The figures.
        advice: Overrides that follow from them.
        confidence: Of the intervals; a difference counts where its p-value is below 1 minus this.
        reads_entropies: Whether the recipe's weights follow entropies, so that certainty matters.
    """
    lines = [_text(result), _gain(result, advice, confidence)]
    if len(result.teachers) > 1:
        lines += _better_rule(result, advice, confidence)
        lines += _routing(result)
    lines += _overconfident(result, advice)
    if len(result.teachers) > 1:
        lines += _certainty(result, advice) if reads_entropies else ()
        lines += _idle(result, advice)
        lines.append(
            f"In effect {result.effective_teachers['mean']:.1f} of {len(result.teachers)} teachers decide. "
            f"They contradict each other by {result.conflict['mean']:.2f} nats "
            f"({result.conflict_95['mean']:.2f} at the worst twentieth of the tokens)."
        )
    return tuple(lines)


def _text(result: Preflight) -> str:
    counts = ", ".join(
        f"{domain} {documents:,} documents of {result.tokens[domain]:,} tokens"
        for domain, documents in result.documents.items()
    )
    return f"Measured on held-out text: {counts}."


def _gain(result: Preflight, advice: Advice, confidence: float) -> str:
    name = result.best_teacher
    chosen = result.rules["recipe"]["mean"]
    if name is None:
        parts = (f"{who} ({_covered(result, who)})" for who in result.teachers)
        return (
            f"No teacher covers all text, so none could teach alone: {', '.join(parts)}. "
            f"The fused target has {chosen:.3f} nats."
        )
    single = result.teachers[name]["mean"]
    if len(result.teachers) == 1:
        return f"There is one teacher, so nothing is fused: its loss is {single:.3f} nats."
    gain = result.gains["recipe"]
    figures = f"{chosen:.3f} nats, the best single teacher ({name!r}) {single:.3f}"
    difference = f"the difference is {gain.shown(3, sign='+')} {_interval(gain, confidence)}"
    if not gain.has_enough:
        return (
            f"The fused target has {figures}; {difference}, {gain.too_few} in each domain: hold out more"
            f"{shown(advice.more_documents)}."
        )
    alone = advice.alone.get(name)
    if abs(gain.value) <= WORTHWHILE:
        return (
            f"Fusion makes no difference here: the fused target has {figures}. The best teacher alone is cheaper"
            f"{shown(alone)}."
        )
    if not gain.is_beyond_chance(confidence):
        leaning = "may help" if gain.value > 0 else "may do harm"
        return (
            f"Fusion {leaning} here: the fused target has {figures}; {difference}, within chance: hold out more "
            f"documents to know{shown(advice.more_documents)}."
        )
    if gain.value > 0:
        return f"Fusion can help: the fused target has {figures}; {difference}, beyond chance."
    return (
        f"Fusion will not help here: the fused target has {figures}; {difference}, beyond chance. Choose another "
        f"weighting, or distil from {name!r} alone{shown(alone)}."
    )


def _covered(result: Preflight, name: str) -> str:
    domains = [domain for domain in result.documents if name in result.covering(domain)]
    return f"covers {', '.join(domains)}" if domains else "covers no domain"


def _better_rule(result: Preflight, advice: Advice, confidence: float) -> Iterator[str]:
    name = max(result.better, key=lambda rule: result.better[rule].value)
    gain = result.better[name]
    if gain.value > WORTHWHILE and gain.is_beyond_chance(confidence):
        found = result.rules[name]["mean"]
        own = result.rules["recipe"]["mean"]
        yield (
            f"Rule {name!r} makes a better target here: {found:.3f} against {own:.3f} nats, "
            f"{gain.shown(3, sign='+')} {_interval(gain, confidence)}; try it{shown(advice.rules.get(name))}."
        )


def _routing(result: Preflight) -> Iterator[str]:
    gain = result.rules["recipe"]["mean"] - result.oracle["mean"]
    covering = {domain: result.covering(domain) for domain in result.documents}
    if gain > WORTHWHILE and len(covering) > 1 and all(covering.values()):
        best = {d: min(names, key=lambda name: result.teachers[name][d]) for d, names in covering.items()}
        routes = ", ".join(f"{domain}: {name}" for domain, name in best.items())
        yield (
            f"The best teacher of each domain ({routes}) has {result.oracle['mean']:.3f} nats, {gain:.3f} less "
            f"than the fused target: where the domain of every text is known, ask it alone{shown(routed(best))}."
        )


def _overconfident(result: Preflight, advice: Advice) -> Iterator[str]:
    for name, row in result.calibration_gap.items():
        if row["mean"] > OVERCONFIDENT:
            yield (
                f"Teacher {name!r} is overconfident by {row['mean']:.2f} nats and will get more weight than it "
                f"earns: fit the temperature of its weight{shown(advice.calibrated.get(name))}."
            )


def _certainty(result: Preflight, advice: Advice) -> Iterator[str]:
    stretch = next((s for s in result.certainty if s not in ("token", "sequence")), "sequence")
    found = result.certainty[stretch]
    right = found.right["mean"]
    chance = found.chance["mean"]
    often = f"Over {stretch} the least uncertain teacher is the best one {right:.0%} of the time"
    if not right >= HARDLY_BETTER * chance and not math.isnan(right):
        yield (
            f"{often}, {chance:.0%} by chance: weights by entropy know little here. Fit temperatures, or weigh "
            f"otherwise{shown(advice.rules.get('uniform'))}."
        )
    elif not math.isnan(right):
        yield f"{often}, {chance:.0%} by chance: weights by entropy have something to go by."


def _idle(result: Preflight, advice: Advice) -> Iterator[str]:
    for name, row in result.weights.items():
        is_needed = any(result.covering(domain) == [name] for domain in result.documents)
        if max(row.values()) < IDLE and not is_needed:
            yield (
                f"Teacher {name!r} has {row['mean']:.1%} of the weight, at most {max(row.values()):.1%}: "
                f"leave it out and save its time{shown(advice.without.get(name))}."
            )


def _interval(gain: Difference, confidence: float) -> str:
    if not gain.has_ends:
        return "(no interval: a domain has one document)"
    return f"[{gain.ends(3, between=', ', sign='+')}] ({confidence:.0%} over documents)"


def cost_verdict(cost: RunCost, advice: Advice = NO_ADVICE) -> tuple[str, ...]:
    """Sentences about the cost of a run, and whether this machine has what it takes."""
    memory = "" if cost.memory_bytes is None else f"{size(cost.memory_bytes)} of memory and "
    lines = [
        f"On this machine the run takes about {duration(cost.total_seconds)} ({cost.num_steps:,} steps of "
        f"{cost.step_seconds:.2g} s), {memory}{size(cost.total_disk_bytes)} of disk."
    ]
    if cost.memory_bytes and cost.memory_available and cost.memory_bytes > cost.memory_available:
        lines.append(
            f"It needs {size(cost.memory_bytes)} of memory, and {size(cost.memory_available)} can be had: "
            f"lower the batch of a device{shown(advice.smaller_batch)}, or cache teachers{shown(advice.cached)}."
        )
    if cost.needed_bytes > cost.disk_free:
        lines.append(
            f"It has {size(cost.needed_bytes)} to write, and {size(cost.disk_free)} are free: make room, or keep "
            f"fewer checkpoints{shown(advice.fewer_checkpoints)}."
        )
    return tuple(lines)

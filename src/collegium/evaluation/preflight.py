"""Whether fusing these teachers can help on this text, told before any training.

For each domain: the loss of every teacher, of every way to fuse them, and of an oracle that picks the
best teacher of each domain; how certain teachers are against how right they are; how much they
disagree. It is a veto, not a ranking: in our pilot it foretold every failure, but not the order of the
rules that worked.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from collegium.alignment.verdict import Comparison
from collegium.contracts import Positions, TeacherStats
from collegium.evaluation.language_modeling import DocumentSums, HeldOut, Rule
from collegium.functional.calibration import FittedTemperature
from collegium.functional.fusion import geometric_logprobs


OVERCONFIDENT = 0.5
"""Nats by which a teacher's mean loss may be above its mean entropy before it is called over-confident."""

WORTHWHILE = 0.005
"""Nats of loss below which a gain is called none."""


@dataclass(frozen=True)
class Preflight:
    """Figures in nats per token, by domain and as `mean` over domains.

    Attributes:
        teachers: Loss of each teacher.
        rules: Loss of each fused target.
        oracle: Loss of the best teacher of each domain.
        calibration_gap: Mean loss minus mean entropy of each teacher, both at its weight temperature; 0 is
            calibrated, above is over-confident.
        conflict: Jensen-Shannon divergence among teachers, by the recipe's rule.
        temperatures: What was fitted on training text, by teacher and key of the recipe.
        verdict: What follows, in words.
        tokenizers: Each teacher's beside the student's.
    """

    teachers: dict[str, dict[str, float]]
    rules: dict[str, dict[str, float]]
    oracle: dict[str, float]
    calibration_gap: dict[str, dict[str, float]]
    conflict: dict[str, float]
    temperatures: dict[str, dict[str, FittedTemperature]]
    verdict: tuple[str, ...]
    tokenizers: tuple[Comparison, ...] = ()


def run_preflight(
    held_out: HeldOut,
    chosen: Rule,
    alternatives: Mapping[str, Callable[[TeacherStats, Positions], Tensor]],
    temperatures: Mapping[str, Mapping[str, FittedTemperature]] | None = None,
    tokenizers: Sequence[Comparison] = (),
) -> Preflight:
    """Measure teachers and rules on held-out text.

    Args:
        held_out: Held-out text with its teachers.
        chosen: The recipe's own rule.
        alternatives: Weightings to compare with, by name; each is tried with the mixture.
        temperatures: What was fitted before, to be told with the rest.
        tokenizers: What was found of them, likewise.
    """
    rules = {
        "recipe": chosen,
        **{name: Rule(weighting) for name, weighting in alternatives.items()},
    }
    rules["geometric uniform"] = Rule(alternatives["uniform"], geometric_logprobs)
    sums = held_out.measure_targets(rules, conflict_of=chosen)
    names = [teacher.name for teacher in held_out.teachers]
    teachers = {name: _row(sums, f"teacher/{name}/nll") for name in names}
    entropies = {name: _row(sums, f"teacher/{name}/entropy") for name in names}
    weight_losses = {name: _row(sums, f"teacher/{name}/weight_nll") for name in names}
    gaps = {
        name: {domain: weight_losses[name][domain] - entropies[name][domain] for domain in teachers[name]}
        for name in names
    }
    rule_losses = {name: _row(sums, f"rule/{name}/nll") for name in rules}
    oracle = {domain: min(teachers[name][domain] for name in names) for domain in sums}
    oracle["mean"] = sum(oracle.values()) / len(oracle)
    return Preflight(
        teachers=teachers,
        rules=rule_losses,
        oracle=oracle,
        calibration_gap=gaps,
        conflict=_row(sums, "conflict"),
        temperatures={
            name: {key: fit for key, fit in fits.items() if fit.positions}  # not those read from a cache of lists
            for name, fits in (temperatures or {}).items()
        },
        verdict=tuple(verdict(teachers, rule_losses, gaps)),
        tokenizers=tuple(tokenizers),
    )


def verdict(
    teachers: Mapping[str, Mapping[str, float]],
    rules: Mapping[str, Mapping[str, float]],
    gaps: Mapping[str, Mapping[str, float]],
) -> Sequence[str]:
    """What the figures mean, a sentence each."""
    best_teacher = min(teachers, key=lambda name: teachers[name]["mean"])
    single = teachers[best_teacher]["mean"]
    best_rule = min(rules, key=lambda name: rules[name]["mean"])
    chosen, best = rules["recipe"]["mean"], rules[best_rule]["mean"]
    lines = [_gain_line(best_teacher, single, chosen)]
    if len(teachers) > 1 and best < chosen - WORTHWHILE:
        lines.append(f"Rule {best_rule!r} makes a better target here: {best:.3f} against {chosen:.3f} nats.")
    for name, row in gaps.items():
        if row["mean"] > OVERCONFIDENT:
            lines.append(
                f"Teacher {name!r} is over-confident by {row['mean']:.2f} nats and will get more weight than it "
                f"earns: set its weight_temperature to `fit`, or raise it."
            )
    return lines


def _gain_line(best_teacher: str, single: float, chosen: float) -> str:
    gain = single - chosen
    if gain > WORTHWHILE:
        return (
            f"Fusion can help: the fused target has {chosen:.3f} nats, the best single teacher "
            f"({best_teacher!r}) {single:.3f}."
        )
    if gain > -WORTHWHILE:
        return (
            f"Fusion makes no difference here: {chosen:.3f} nats, as the best single teacher ({best_teacher!r})."
        )
    return (
        f"Fusion will not help here: the fused target has {chosen:.3f} nats, but teacher {best_teacher!r} alone "
        f"{single:.3f}; distil from it alone, or choose another weighting."
    )


def _row(sums: Mapping[str, DocumentSums], name: str) -> dict[str, float]:
    row = {domain: table.mean(name) for domain, table in sums.items()}
    return {**row, "mean": sum(row.values()) / len(row)}

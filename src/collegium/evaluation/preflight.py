"""Figures that say before any training whether fusing these teachers can help on this text.

For each domain: the loss of every teacher, of every way to fuse them, and of choices with hindsight; how
certain teachers are against how right they are; how much they contradict each other. It is a veto, not a
ranking: in our pilot it predicted every failure, but not the order of the rules that worked.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from collegium.alignment.verdict import Comparison
from collegium.evaluation.language_modeling import HeldOut, Rule
from collegium.evaluation.statistics import holm
from collegium.evaluation.stratified import stratified_difference
from collegium.evaluation.summary import COVERS
from collegium.evaluation.target_figures import TargetFigures, measure_target_figures
from collegium.losses.calibration import FittedTemperature
from collegium.losses.fusion import geometric_logprobs
from collegium.losses.joint_weighting import JointWeighting
from collegium.losses.weighting import Weighting
from collegium.report import metric_names as metrics
from collegium.report.interval import Difference
from collegium.signals.contracts import Positions, TeacherStats


Row = dict[str, float]
"""A figure by domain, and as the plain `mean` over domains."""


@dataclass(frozen=True)
class Certainty:
    """Shares of tokens where the least uncertain teacher is the best one, over one stretch of text.

    Attributes:
        right: Share of the tokens whose stretch has it so, where at least two teachers say something.
        chance: Share that a teacher taken at random would have, 1/K for K teachers.
    """

    right: Row
    chance: Row


@dataclass(frozen=True)
class Preflight:
    """Figures in nats per token unless said otherwise; `Row` has them by domain and as `mean`.

    A teacher's own figures are of the tokens where it speaks. They are NaN in a domain where it never does, and
    its mean loss is NaN if it does not cover all text, since means over different text cannot be compared.

    Attributes:
        documents: Held-out documents that predict something, by domain.
        tokens: Their predicted tokens.
        heard: Share of these where each teacher speaks.
        teachers: Loss of each teacher.
        rules: Loss of each fused target.
        oracle: Loss of the best teacher of each domain, among those that cover it: what routing by domain reaches.
        oracle_document: Loss of the best teacher of each document (its part in a block); reads labels.
        oracle_token: Loss of the best teacher at each token, below which no mixture can be; reads labels.
        calibration_gap: Mean loss minus mean entropy of each teacher, both at its weight temperature; 0 is
            calibrated, above is overconfident.
        ece: Expected calibration error of each teacher's most probable token, as a share of the tokens; not of
            lists of draws.
        certainty: By stretch of text; the recipe's own too, if its weights follow entropies.
        conflict: Jensen-Shannon divergence among teachers, under the recipe's weights.
        conflict_95: The same at the 95th percentile of positions.
        pairs: Jensen-Shannon divergence of each two teachers, mean over domains; ln 2 = 0.693 at most. NaN where
            they never speak of the same text.
        weights: Mean weight of each teacher under the recipe's rule.
        effective_teachers: exp(entropy of the weights): 1 where one has all, K where all have the same.
        gains: Loss of the best single teacher minus that of each fused target, mean over domains; above 0 is a
            gain. Intervals are over documents. Empty if no teacher covers all text.
        better: Loss of the recipe's target minus that of each other; p-values adjusted for their number (Holm).
        temperatures: What was fitted on training text, by teacher and key of the recipe.
        verdict: What follows, in words.
        tokenizers: Each teacher's beside the student's.
    """

    documents: dict[str, int]
    tokens: dict[str, int]
    heard: dict[str, Row]
    teachers: dict[str, Row]
    rules: dict[str, Row]
    oracle: Row
    oracle_document: Row
    oracle_token: Row
    calibration_gap: dict[str, Row]
    ece: dict[str, Row]
    certainty: dict[str, Certainty]
    conflict: Row
    conflict_95: Row
    pairs: dict[str, dict[str, float]]
    weights: dict[str, Row]
    effective_teachers: Row
    gains: dict[str, Difference]
    better: dict[str, Difference]
    temperatures: dict[str, dict[str, FittedTemperature]]
    verdict: tuple[str, ...] = ()
    tokenizers: tuple[Comparison, ...] = ()

    @property
    def complete(self) -> list[str]:
        """Teachers that cover all text: only these could teach alone."""
        return [name for name, row in self.heard.items() if min(row.values()) >= COVERS]

    @property
    def best_teacher(self) -> str | None:
        """The one of these with the least loss, mean over domains; None if there is none."""
        return min(self.complete, key=lambda name: self.teachers[name]["mean"], default=None)

    def covering(self, domain: str) -> list[str]:
        """Teachers that cover a domain."""
        return [name for name, row in self.heard.items() if row[domain] >= COVERS]


@dataclass(frozen=True)
class Resampling:
    """Settings of intervals; see `collegium.evaluation.statistics`."""

    confidence: float = 0.95
    num_samples: int = 2000
    seed: int = 0


def run_preflight(
    held_out: HeldOut,
    chosen: Rule,
    alternatives: Mapping[str, Callable[[TeacherStats, Positions], Tensor]],
    *,
    temperatures: Mapping[str, Mapping[str, FittedTemperature]] | None = None,
    tokenizers: Sequence[Comparison] = (),
    resampling: Resampling = Resampling(),
) -> Preflight:
    """Measure teachers and rules on held-out text; the verdict is left to `preflight_verdict`.

    Args:
        held_out: Held-out text with its teachers.
        chosen: The recipe's own rule.
        alternatives: Weightings to compare with, by name; each is tried with the mixture.
        temperatures: What was fitted before, to be reported with the rest.
        tokenizers: What was found of them, likewise.
        resampling: Of the documents.
    """
    rules = {"recipe": chosen, **{name: Rule(weighting) for name, weighting in alternatives.items()}}
    rules["geometric uniform"] = Rule(alternatives["uniform"], geometric_logprobs)
    stretches = stretches_of(chosen)
    found = measure_target_figures(held_out, rules, chosen, stretches=stretches)
    names = [teacher.name for teacher in held_out.teachers]
    heard = {name: _with_mean({d: f.sums.heard(name) for d, f in found.items()}) for name in names}
    complete = {name for name, row in heard.items() if min(row.values()) >= COVERS}
    teachers = {name: _of_teacher(found, name, metrics.NLL, name in complete) for name in names}
    best = min(complete, key=lambda name: (teachers[name]["mean"], names.index(name)), default=None)
    gains = {}
    if best is not None:
        filled = metrics.of_teacher(best, metrics.NLL_FILLED)
        gains = {name: _difference(found, filled, metrics.rule_nll(name), resampling) for name in rules}
    return Preflight(
        documents={domain: int((figures.sums.tokens > 0).sum()) for domain, figures in found.items()},
        tokens={domain: int(figures.sums.tokens.sum()) for domain, figures in found.items()},
        heard=heard,
        teachers=teachers,
        rules={name: _means(found, metrics.rule_nll(name)) for name in rules},
        oracle=_with_mean({domain: _best_of_domain(domain, teachers, heard) for domain in found}),
        oracle_document=_means(found, metrics.ORACLE_DOCUMENT),
        oracle_token=_means(found, metrics.ORACLE_TOKEN),
        calibration_gap={name: _gap(found, name) for name in names},
        ece={name: row for name in names if (row := _calibration_error(found, name)) is not None},
        certainty={stretch: _certainty(found, stretch) for stretch in stretches},
        conflict=_means(found, metrics.CONFLICT),
        conflict_95=_with_mean({domain: figures.conflict_quantile(0.95) for domain, figures in found.items()}),
        pairs=_pairs(found, names),
        weights={name: _means(found, metrics.of_teacher(name, metrics.WEIGHT)) for name in names},
        effective_teachers=_means(found, metrics.EFFECTIVE_TEACHERS),
        gains=gains,
        better=_better(found, [name for name in rules if name != "recipe"], resampling),
        temperatures={
            name: {key: fit for key, fit in fits.items() if fit.positions}  # not those read from a cache of lists
            for name, fits in (temperatures or {}).items()
        },
        tokenizers=tuple(tokenizers),
    )


def stretches_of(rule: Rule) -> tuple[str, ...]:
    """Over which stretches certainty is judged: tokens, documents, and the rule's own if it reads entropies."""
    own = entropy_stretch(rule)
    return tuple(dict.fromkeys(("token", *([] if own is None else [own]), "sequence")))


def entropy_stretch(rule: Rule) -> str | None:
    """The stretch over which a rule averages the entropies that set its weights; None if it reads none."""
    weighting = rule.weighting
    return weighting.entropy_stretch if isinstance(weighting, Weighting | JointWeighting) else None


def _means(found: Mapping[str, TargetFigures], name: str) -> Row:
    return _with_mean({domain: figures.sums.mean(name) for domain, figures in found.items()})


def _with_mean(row: Mapping[str, float]) -> Row:
    """Adds the plain mean over the domains of which something is known."""
    known = [value for value in row.values() if not math.isnan(value)]
    return {**row, "mean": sum(known) / len(known) if known else math.nan}


def _of_teacher(found: Mapping[str, TargetFigures], name: str, figure: str, is_complete: bool) -> Row:
    """A figure where the teacher speaks; its mean is of all text, or of none."""
    row = _means(found, metrics.of_teacher(name, figure))
    return row if is_complete else {**row, "mean": math.nan}


def _best_of_domain(domain: str, teachers: Mapping[str, Row], heard: Mapping[str, Row]) -> float:
    """The least loss of a teacher that covers a domain; NaN if none does."""
    return min((row[domain] for name, row in teachers.items() if heard[name][domain] >= COVERS), default=math.nan)


def _gap(found: Mapping[str, TargetFigures], name: str) -> Row:
    losses = _means(found, metrics.of_teacher(name, metrics.WEIGHT_NLL))
    entropies = _means(found, metrics.of_teacher(name, metrics.ENTROPY))
    return {domain: losses[domain] - entropies[domain] for domain in losses}


def _calibration_error(found: Mapping[str, TargetFigures], name: str) -> Row | None:
    """arXiv:1706.04599, equation 3, in bins of equal width; None for lists of draws."""
    key = metrics.of_teacher(name, metrics.CONFIDENCE_GAPS)
    row = {}
    for domain, figures in found.items():
        sums = figures.sums.sums
        if key not in sums:
            return None
        heard = float(sums[metrics.of_teacher(name, metrics.HEARD)].sum())
        row[domain] = float(sums[key].sum(0).abs().sum()) / heard if heard else math.nan
    return _with_mean(row)


def _certainty(found: Mapping[str, TargetFigures], stretch: str) -> Certainty:
    def share(part: str) -> Row:
        above = metrics.certainty(stretch, part)
        count = metrics.certainty(stretch, "count")
        return _with_mean({domain: figures.ratio(above, count) for domain, figures in found.items()})

    return Certainty(right=share("right"), chance=share("chance"))


def _pairs(found: Mapping[str, TargetFigures], names: Sequence[str]) -> dict[str, dict[str, float]]:
    domains = []
    for figures in found.values():
        sums = figures.sums.sums
        domains.append((sums[metrics.PAIRS].sum(0) / sums[metrics.PAIR_COUNTS].sum(0)).tolist())

    def mean(i: int, j: int) -> float:
        return _with_mean({str(number): matrix[i][j] for number, matrix in enumerate(domains)})["mean"]

    return {one: {other: mean(i, j) for j, other in enumerate(names)} for i, one in enumerate(names)}


def _better(
    found: Mapping[str, TargetFigures], names: Sequence[str], resampling: Resampling
) -> dict[str, Difference]:
    own = metrics.rule_nll("recipe")
    differences = [_difference(found, own, metrics.rule_nll(name), resampling) for name in names]
    adjusted = holm([difference.p_value for difference in differences])
    return {name: replace(d, p_value=float(p)) for name, d, p in zip(names, differences, adjusted, strict=True)}


def _difference(
    found: Mapping[str, TargetFigures], figure: str, baseline: str, resampling: Resampling
) -> Difference:
    """One figure minus another, mean over domains; documents are drawn within each domain."""
    columns: list[dict[str, tuple[Tensor, Tensor]]] = [{}, {}]
    for domain, figures in found.items():
        predicts = figures.sums.tokens > 0  # a document of one token does not
        for column, name in zip(columns, (figure, baseline), strict=True):
            column[domain] = (figures.sums.sums[name][predicts], figures.sums.tokens[predicts])
    return stratified_difference(
        *columns,
        confidence=resampling.confidence,
        num_samples=resampling.num_samples,
        seed=resampling.seed,
    )

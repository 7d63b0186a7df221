"""Figures of teachers and fused targets at each position of held-out text, as a pre-flight needs them.

Some of it must be known before any student exists: whether the teacher that is certain is the one that is
right, how much teachers contradict each other, how many of them count, and what a choice with hindsight
would reach. Sums are kept per document, so that intervals can resample documents.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from collegium.evaluation.language_modeling import (
    CONFIDENCE_BINS,
    DocumentSums,
    HeldOut,
    HeldOutBatch,
    HeldOutDomain,
    Rule,
    covered_weights,
    rule_nll,
    teacher_logprobs,
)
from collegium.evaluation.teachers_alone import teachers_alone
from collegium.losses.calibration import confidence_gaps
from collegium.losses.chunks import chunks
from collegium.losses.divergences import entropy
from collegium.losses.fusion import mixture_logprobs
from collegium.losses.stretches import Stretches
from collegium.report import metric_names as names
from collegium.signals.contracts import Positions, TeacherStats
from collegium.signals.signals import TopKSignal


@dataclass(frozen=True)
class TargetFigures:
    """Figures of one domain.

    Attributes:
        sums: Per document, by the names of `metric_names`: of each teacher its losses, entropy, weight, gaps of
            confidence and the positions where it is heard; the loss of each rule; the oracles; of each stretch
            how often certain teachers are right; conflict, effective teachers, and pairs with their counts.
        conflicts: Of every position, [N].
    """

    sums: DocumentSums
    conflicts: Tensor

    def ratio(self, above: str, below: str) -> float:
        """Sum of one figure over the sum of another; NaN where that is 0."""
        return float(self.sums.sums[above].sum() / self.sums.sums[below].sum())

    def conflict_quantile(self, share: float) -> float:
        """Conflict below which this share of the positions lies."""
        return float(torch.quantile(self.conflicts, share)) if len(self.conflicts) < 2**24 else self._far(share)

    def _far(self, share: float) -> float:
        """The same for more positions than `torch.quantile` takes."""
        rank = 1 + round(share * (len(self.conflicts) - 1))
        return float(self.conflicts.kthvalue(rank).values)


def measure_target_figures(
    held_out: HeldOut,
    rules: Mapping[str, Rule],
    chosen: Rule,
    *,
    stretches: Sequence[str],
    with_pairs: bool = True,
) -> dict[str, TargetFigures]:
    """Measure teachers, rules and the oracles, by domain.

    A teacher's own figures are of where it speaks; the oracles take the mean of the others where one is absent.

    Args:
        held_out: Text with at least one teacher.
        rules: Ways to fuse, each measured by its loss.
        chosen: The one whose weights and conflict are reported.
        stretches: Granularities over which certainty is compared with being right.
        with_pairs: Whether to compare each two teachers, which takes a mixture for each.
    """
    return {
        name: _figures_of(domain, rules, chosen, stretches, with_pairs)
        for name, domain in held_out.domains.items()
    }


@torch.no_grad()
def _figures_of(
    domain: HeldOutDomain,
    rules: Mapping[str, Rule],
    chosen: Rule,
    stretches: Sequence[str],
    with_pairs: bool,
) -> TargetFigures:
    conflicts = []
    teachers = [teacher.name for teacher in domain.teachers]

    def figures() -> Iterator[tuple[HeldOutBatch, dict[str, Tensor]]]:
        for held_out in domain.batches():
            stats = held_out.stats
            assert stats is not None, "targets are measured with teachers"
            values = teachers_alone(teachers, stats)
            losses = torch.stack([values[names.of_teacher(name, names.NLL_FILLED)] for name in teachers], -1)
            values |= oracles(losses, held_out.positions)
            for name, rule in rules.items():
                weights = covered_weights(rule.weighting(stats, held_out.positions))
                values[names.rule_nll(name)] = rule_nll(rule.fusion, weights, held_out, domain.chunk_size)
            for stretch in stretches:
                found = certain_is_right(stats, held_out.positions, stretch)
                values |= {names.certainty(stretch, key): figure for key, figure in found.items()}
            weights = covered_weights(chosen.weighting(stats, held_out.positions))
            values |= {names.of_teacher(name, names.WEIGHT): weights[:, m] for m, name in enumerate(teachers)}
            values[names.EFFECTIVE_TEACHERS] = effective_teachers(weights)
            values |= _compared(held_out, stats, weights, teachers, domain.chunk_size, with_pairs)
            conflicts.append(values[names.CONFLICT].float().cpu())
            yield held_out, values

    return TargetFigures(domain.sum_by_document(figures()), torch.cat(conflicts))


def oracles(losses: Float[Tensor, "N M"], positions: Positions) -> dict[str, Float[Tensor, " N"]]:
    """Losses of choices that read the labels, and that no rule can make beforehand.

    That of the document takes the teacher with the least loss on the whole of each document (its part in the
    block); that of the token the one with the least at each token, which is a lower bound for every mixture:
    sum_m w_m p_m(y) <= max_m p_m(y).
    """
    rows = slice(0, len(positions))
    best = Stretches(positions, "sequence").sums(losses.double(), rows).argmin(-1, keepdim=True)
    return {names.ORACLE_DOCUMENT: losses.gather(-1, best).squeeze(-1), names.ORACLE_TOKEN: losses.amin(-1)}


def certain_is_right(stats: TeacherStats, positions: Positions, stretch: str) -> dict[str, Float[Tensor, " N"]]:
    """Ask whether the teacher with the least entropy over a stretch of text has the least loss there.

    Equal ones share: `right` is the part of the least uncertain teachers that is among the best, `chance` the
    part of all teachers that is, 1/K where one is best. `count` is 1 where at least two teachers say something.
    """
    valid = stats.valid.double()
    figures = (stats.entropy * valid, stats.cross_entropy * valid, valid)
    sums = Stretches(positions, stretch).sums(torch.cat(figures, -1), slice(0, len(positions)))
    entropies, losses, counts = sums.chunk(3, -1)
    known = counts > 0
    means = [(x / counts.clamp_min(1e-9)).masked_fill(~known, torch.inf) for x in (entropies, losses)]
    certain, best = (known & (mean == mean.amin(-1, keepdim=True)) for mean in means)
    compared = known.sum(-1) >= 2
    right = (certain & best).sum(-1) / certain.sum(-1).clamp_min(1)
    chance = best.sum(-1) / known.sum(-1).clamp_min(1)
    return {"right": right * compared, "chance": chance * compared, "count": compared.double()}


def effective_teachers(weights: Float[Tensor, "N M"]) -> Float[Tensor, " N"]:
    """exp(H(w)): 1 where one teacher has all the weight, M where all have the same."""
    entropies: Tensor = torch.special.entr(weights).sum(-1)
    return entropies.exp()


def jensen_shannon(logprobs: Sequence[Float[Tensor, "n V"]]) -> Float[Tensor, "n M M"]:
    """Jensen-Shannon divergence of each pair of distributions, in nats; ln 2 at most."""
    own = [entropy(p) for p in logprobs]
    found = own[0].new_zeros((len(own[0]), len(own), len(own)))
    half = own[0].new_full((len(own[0]), 2), 0.5)
    for i in range(len(own)):
        for j in range(i):
            mixed = mixture_logprobs([logprobs[i], logprobs[j]], half)
            found[:, i, j] = found[:, j, i] = (entropy(mixed) - (own[i] + own[j]) / 2).clamp_min(0.0)
    return found


def _compared(
    held_out: HeldOutBatch,
    stats: TeacherStats,
    weights: Tensor,
    teachers: Sequence[str],
    chunk_size: int,
    with_pairs: bool,
) -> dict[str, Tensor]:
    """Figures that need all teachers' distributions at once."""
    parts = []
    for rows in chunks(len(weights), chunk_size):
        logprobs = list(teacher_logprobs(held_out, rows))
        part = _calibration(held_out, stats, teachers, logprobs, rows)
        own = torch.stack([entropy(p) for p in logprobs], -1)  # [n M]
        mixed = mixture_logprobs(logprobs, weights[rows])
        part[names.CONFLICT] = entropy(mixed) - (weights[rows] * own).sum(-1)
        if with_pairs:
            both = stats.valid[rows].unsqueeze(-1) & stats.valid[rows].unsqueeze(-2)
            part[names.PAIRS] = jensen_shannon(logprobs) * both
            part[names.PAIR_COUNTS] = both.double()
        parts.append(part)
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _calibration(
    held_out: HeldOutBatch,
    stats: TeacherStats,
    teachers: Sequence[str],
    logprobs: Sequence[Tensor],
    rows: slice,
) -> dict[str, Tensor]:
    """Bins of confidence of each teacher; drawn lists know no most probable token."""
    labels = held_out.positions.labels[rows]
    part = {}
    for m, (name, signal) in enumerate(zip(teachers, held_out.signals, strict=True)):
        heard = stats.valid[rows, m]
        if not (isinstance(signal, TopKSignal) and signal.drawn):
            top, best = logprobs[m].max(-1)
            gaps = confidence_gaps(top.exp(), (best == labels).to(top.dtype), CONFIDENCE_BINS)
            part[names.of_teacher(name, names.CONFIDENCE_GAPS)] = gaps * heard.unsqueeze(-1)
    return part

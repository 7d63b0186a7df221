"""Intervals and tests of plain means over domains or tasks, documents drawn within each.

Each domain counts the same, however many documents it has, and however long they are.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from collegium.evaluation.resampling import (
    CorpusFigure,
    Floats,
    check_pair,
    check_resampling,
    difference,
    interval,
    paired_columns,
    resampled_ratios,
    resampled_scores,
)
from collegium.report.interval import Difference, Interval


def stratified_difference(
    ours: Mapping[str, tuple[ArrayLike, ArrayLike]],
    baseline: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    confidence: float,
    num_samples: int,
    seed: int,
) -> Difference:
    """Plain mean over domains of a ratio of sums, minus the baseline's; documents are drawn within each domain.

    The p-value is that of `paired_bootstrap_difference`; it and the interval are NaN if a domain has one document.

    Args:
        ours: Numerators and denominators of each document, by domain.
        baseline: The baseline's, of the same documents.
        confidence: Share of the interval.
        num_samples: Resamples.
        seed: Of the resamples.

    Raises:
        ValueError: Domains or arguments that do not fit together.
    """
    if not ours or set(ours) != set(baseline):
        raise ValueError(f"domains {sorted(ours)} against {sorted(baseline)}: give the same, and at least one")
    check_resampling(confidence, num_samples)
    drawn = np.zeros(num_samples)
    value = 0.0
    counts = []
    for number, domain in enumerate(sorted(ours)):
        columns = paired_columns(ours[domain], baseline[domain])
        counts.append(len(columns))
        ratios = resampled_ratios(columns, confidence, num_samples, seed + number)
        totals = columns.sum(axis=0)
        drawn += (ratios[:, 0] - ratios[:, 1]) / len(ours)
        value += (totals[0] / totals[1] - totals[2] / totals[3]) / len(ours)
    return difference(value, drawn, confidence, min(counts))


def stratified_figure_difference(
    ours: Mapping[str, CorpusFigure],
    baseline: Mapping[str, CorpusFigure],
    *,
    confidence: float,
    num_samples: int,
    seed: int,
) -> Difference:
    """Plain mean over groups of a figure, minus the baseline's; documents are drawn within each group, paired.

    The p-value is that of `paired_bootstrap_difference`.

    Args:
        ours: Figure of each group, such as a task.
        baseline: The baseline's, of the same documents in the same order.
        confidence: Share of the interval.
        num_samples: Resamples.
        seed: Of the resamples.

    Raises:
        ValueError: groups or arguments that do not fit together.
    """
    values, samples = _stratified_scores(ours, baseline, confidence, num_samples, seed)
    fewest = min(len(figure.statistics) for figure in ours.values())
    return difference(values[0] - values[1], samples[:, 0] - samples[:, 1], confidence, fewest)


def stratified_figure_ratio(
    ours: Mapping[str, CorpusFigure],
    reference: Mapping[str, CorpusFigure],
    *,
    confidence: float,
    num_samples: int,
    seed: int,
) -> Interval:
    """Plain mean over groups of a figure, as a share of the reference's.

    Args:
        ours: See `stratified_figure_difference`.
        reference: Its mean must be above 0.
        confidence: Share of the interval.
        num_samples: Resamples.
        seed: Of the resamples.

    Raises:
        ValueError: groups or arguments that do not fit together.
    """
    values, samples = _stratified_scores(ours, reference, confidence, num_samples, seed)
    if not values[1] > 0.0:
        raise ValueError(f"the reference's mean is {values[1]}; a share needs one above 0")
    ratios = samples[:, 0] / np.maximum(samples[:, 1], np.finfo(np.float64).tiny)
    return interval(values[0] / values[1], ratios, confidence)


def _stratified_scores(
    ours: Mapping[str, CorpusFigure],
    other: Mapping[str, CorpusFigure],
    confidence: float,
    num_samples: int,
    seed: int,
) -> tuple[Floats, Floats]:
    """Plain means over groups of both systems, [2], and those of each resample, [num_samples 2]."""
    if not ours or set(ours) != set(other):
        raise ValueError(f"groups {sorted(ours)} against {sorted(other)}: give the same, and at least one")
    values = np.zeros(2)
    samples = np.zeros((num_samples, 2))
    for number, name in enumerate(sorted(ours)):
        pair = [ours[name], other[name]]
        check_pair(*pair)
        values += np.array([figure.value for figure in pair]) / len(ours)
        samples += resampled_scores(pair, confidence, num_samples, seed + number) / len(ours)
    return values, samples

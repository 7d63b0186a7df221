"""Intervals and tests over documents: how sure a figure is, and whether two systems differ.

A document, not a token, is what is resampled: tokens of one document go together, so intervals
over tokens come out too narrow. Figures are ratios of sums over documents (nats over tokens, bits
over bytes), so long documents count for more, as in the figure itself.
"""

import numpy as np
from numpy.typing import ArrayLike

from collegium.evaluation.resampling import (
    CorpusFigure,
    Floats,
    check_pair,
    difference,
    interval,
    paired_columns,
    ratio_columns,
    resampled_ratios,
    resampled_scores,
)
from collegium.report.interval import Difference, Interval


def bootstrap_ratio(
    numerators: ArrayLike,
    denominators: ArrayLike,
    *,
    confidence: float,
    num_samples: int,
    seed: int,
) -> Interval:
    """Percentile bootstrap over documents of sum(numerators) / sum(denominators).

    It is too narrow for few documents: where 95 % are asked, intervals over 10, 30 and 100
    documents with normal noise held the truth in 88, 93 and 94 % of 1,000 simulations.

    Args:
        numerators: One a document, such as its summed negative log-likelihood.
        denominators: One a document, above 0, such as its number of predicted tokens.
        confidence: Share of the interval, such as 0.95.
        num_samples: Resamples; with 2,000 chance moves the ends by about 2 % of the width.
        seed: Of the resamples.

    Raises:
        ValueError: Arguments that do not fit together or hold NaN or Inf.
    """
    columns = ratio_columns(numerators, denominators)
    ratios = resampled_ratios(columns, confidence, num_samples, seed)[:, 0]
    return interval(columns[:, 0].sum() / columns[:, 1].sum(), ratios, confidence)


def paired_bootstrap_difference(
    numerators: ArrayLike,
    denominators: ArrayLike,
    baseline_numerators: ArrayLike,
    baseline_denominators: ArrayLike,
    *,
    confidence: float,
    num_samples: int,
    seed: int,
) -> Difference:
    """Ratio of sums minus the baseline's, each resample drawing the same documents for both.

    What makes a document hard for one system makes it hard for the other and cancels, so this sees
    differences far smaller than two separate intervals do. The p-value inverts the interval:
    2 min(P(d* <= 0), P(d* >= 0)), each counted with one more for the data themselves, so it is at
    least 2 / (num_samples + 1).

    Args:
        numerators: One a document. See `bootstrap_ratio`.
        denominators: One a document, above 0.
        baseline_numerators: The baseline's, the same documents in the same order.
        baseline_denominators: The baseline's; they may differ, as with another tokenizer.
        confidence: Share of the interval.
        num_samples: Resamples.
        seed: Of the resamples.

    Raises:
        ValueError: Arguments that do not fit together or hold NaN or Inf.
    """
    columns = paired_columns((numerators, denominators), (baseline_numerators, baseline_denominators))
    ratios = resampled_ratios(columns, confidence, num_samples, seed)
    totals = columns.sum(axis=0)
    value = totals[0] / totals[1] - totals[2] / totals[3]
    return difference(value, ratios[:, 0] - ratios[:, 1], confidence, len(columns))


def bootstrap_figure(figure: CorpusFigure, *, confidence: float, num_samples: int, seed: int) -> Interval:
    """Percentile bootstrap over documents of any figure that follows from sums over them.

    Args:
        figure: With one document or more.
        confidence: Share of the interval.
        num_samples: Resamples; each calls `figure.score` once.
        seed: Of the resamples.

    Raises:
        ValueError: there is no document, or the other arguments are out of range.
    """
    samples = resampled_scores([figure], confidence, num_samples, seed)[:, 0]
    return interval(figure.value, samples, confidence)


def paired_figure_difference(
    figure: CorpusFigure, baseline: CorpusFigure, *, confidence: float, num_samples: int, seed: int
) -> Difference:
    """The figure minus the baseline's, each resample drawing the same documents for both (Koehn 2004).

    The p-value is that of `paired_bootstrap_difference`.

    Args:
        figure: Of one system.
        baseline: Of another, on the same documents in the same order.
        confidence: Share of the interval.
        num_samples: Resamples.
        seed: Of the resamples.

    Raises:
        ValueError: they are not of equally many documents, or there is none.
    """
    check_pair(figure, baseline)
    scores = resampled_scores([figure, baseline], confidence, num_samples, seed)
    apart = scores[:, 0] - scores[:, 1]
    return difference(figure.value - baseline.value, apart, confidence, len(figure.statistics))


def holm(p_values: ArrayLike) -> Floats:
    """Holm's step-down adjustment, in the order given: compare the result with one level for all.

    Holds the chance of any false finding below that level, whatever the tests' dependence. NaN (no
    test was made) stays NaN and does not count as a test.

    Raises:
        ValueError: A p-value outside [0, 1].
    """
    given = np.asarray(p_values, dtype=np.float64)
    if given.ndim != 1 or np.any((given < 0) | (given > 1)):
        raise ValueError(f"p-values must be one list of numbers in [0, 1], got {given.tolist()}")
    adjusted = np.full_like(given, np.nan)
    made = np.flatnonzero(~np.isnan(given))
    order = made[np.argsort(given[made], kind="stable")]
    steps = given[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted

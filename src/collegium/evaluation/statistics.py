"""Intervals and tests over documents: how sure a figure is, and whether two systems differ.

A document, not a token, is what is drawn anew: tokens of one document go together, so intervals
over tokens come out too narrow. Figures are ratios of sums over documents (nats over tokens, bits
over bytes), so long documents count for more, as in the figure itself.

Resampling gathers a bounded number of rows at a time: 2,000 resamples of 100,000 documents take
about a second and 30 MB, not gigabytes. The same arguments give the same result, bit for bit.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


MAX_ROWS = 1 << 20
"""Rows gathered at once; changes speed and memory, not the random draws."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A figure and its confidence interval.

    Attributes:
        value: The figure on all documents.
        low: Lower end; NaN if there was only one document, whose spread is unknown.
        high: Upper end; NaN likewise.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference(Interval):
    """How far a figure is above a baseline's.

    Attributes:
        p_value: Two-sided; below 1 - confidence exactly where the interval leaves out 0, up to the
            resolution of the resamples. NaN if there was only one document.
    """

    p_value: float


@dataclass(frozen=True)
class CorpusFigure:
    """A figure of a corpus that follows from sums over its documents, but is no ratio of two of them.

    BLEU and the expected calibration error are such: the mean of what they are of single documents means little.

    Attributes:
        statistics: Of each document, [D K]; those of a corpus are their sum over its documents.
        score: The figure from such a sum, [K].
        signature: How it was computed, if that has a name.
    """

    statistics: Floats
    score: Callable[[Floats], float]
    signature: str | None = None

    @property
    def value(self) -> float:
        """Of all documents."""
        return self.score(self.statistics.sum(axis=0))


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
    columns = np.stack(_sums("", numerators, denominators), axis=1)
    ratios = _resampled_ratios(columns, confidence, num_samples, seed)[:, 0]
    low, high = _percentile_ends(ratios, confidence)
    return Interval(float(columns[:, 0].sum() / columns[:, 1].sum()), low, high)


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
    columns = _paired_columns((numerators, denominators), (baseline_numerators, baseline_denominators))
    ratios = _resampled_ratios(columns, confidence, num_samples, seed)
    differences = ratios[:, 0] - ratios[:, 1]
    low, high = _percentile_ends(differences, confidence)
    totals = columns.sum(axis=0)
    return Difference(float(totals[0] / totals[1] - totals[2] / totals[3]), low, high, _two_sided(differences))


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
    _check_resampling(confidence, num_samples)
    drawn, value = np.zeros(num_samples), 0.0
    for number, domain in enumerate(sorted(ours)):
        columns = _paired_columns(ours[domain], baseline[domain])
        ratios = _resampled_ratios(columns, confidence, num_samples, seed + number)
        totals = columns.sum(axis=0)
        drawn += (ratios[:, 0] - ratios[:, 1]) / len(ours)
        value += (totals[0] / totals[1] - totals[2] / totals[3]) / len(ours)
    low, high = _percentile_ends(drawn, confidence)
    return Difference(float(value), low, high, _two_sided(drawn))


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
    samples = _resampled_scores([figure], confidence, num_samples, seed)[:, 0]
    return Interval(figure.value, *_percentile_ends(samples, confidence))


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
    if len(figure.statistics) != len(baseline.statistics):
        raise ValueError(
            f"{len(figure.statistics)} documents, but {len(baseline.statistics)} of the baseline: "
            "a paired comparison needs the same documents in the same order"
        )
    scores = _resampled_scores([figure, baseline], confidence, num_samples, seed)
    differences = scores[:, 0] - scores[:, 1]
    ends = _percentile_ends(differences, confidence)
    return Difference(figure.value - baseline.value, *ends, _two_sided(differences))


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


def _sums(prefix: str, numerators: ArrayLike, denominators: ArrayLike) -> tuple[Floats, Floats]:
    above = np.asarray(numerators, dtype=np.float64)
    below = np.asarray(denominators, dtype=np.float64)
    names = f"{prefix}numerators and {prefix}denominators"
    if above.ndim != 1 or above.shape != below.shape or not len(above):
        raise ValueError(
            f"{names} must be two lists of the same length, one entry a document and at least one, "
            f"got shapes {above.shape} and {below.shape}"
        )
    bad = ~np.isfinite(above) | ~np.isfinite(below) | ~(below > 0)
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        raise ValueError(
            f"{names} must be finite and the denominators above 0, but document {first} has "
            f"{above[first]} / {below[first]}; leave out documents where nothing was counted"
        )
    return above, below


def _paired_columns(ours: tuple[ArrayLike, ArrayLike], baseline: tuple[ArrayLike, ArrayLike]) -> Floats:
    """Numerators and denominators of both, [D 4]."""
    sums, others = _sums("", *ours), _sums("baseline_", *baseline)
    if len(sums[0]) != len(others[0]):
        raise ValueError(
            f"{len(sums[0])} documents, but {len(others[0])} of the baseline: "
            "a paired comparison needs the same documents in the same order"
        )
    return np.stack([*sums, *others], axis=1)


def _resampled_ratios(columns: Floats, confidence: float, num_samples: int, seed: int) -> Floats:
    """Ratios of each resample, [num_samples systems]; columns alternate numerator, denominator."""
    _check_resampling(confidence, num_samples)
    num_documents = len(columns)
    if num_documents == 1:
        return np.full((num_samples, columns.shape[1] // 2), np.nan)
    generator = np.random.default_rng(seed)
    sums = np.empty((num_samples, columns.shape[1]))
    step = max(1, MAX_ROWS // num_documents)
    for start in range(0, num_samples, step):
        rows = min(step, num_samples - start)
        drawn = generator.integers(num_documents, size=(rows, num_documents))
        for column in range(columns.shape[1]):
            sums[start : start + rows, column] = columns[:, column][drawn].sum(axis=1)
    ratios: Floats = sums[:, 0::2] / sums[:, 1::2]
    return ratios


def _resampled_scores(figures: Sequence[CorpusFigure], confidence: float, num_samples: int, seed: int) -> Floats:
    """Scores of each resample, [num_samples systems]."""
    _check_resampling(confidence, num_samples)
    num_documents = len(figures[0].statistics)
    if num_documents == 0:
        raise ValueError("there is no document to resample")
    if num_documents == 1:
        return np.full((num_samples, len(figures)), np.nan)
    generator = np.random.default_rng(seed)
    scores = np.empty((num_samples, len(figures)))
    for row in range(num_samples):
        drawn = generator.integers(num_documents, size=num_documents)
        times = np.bincount(drawn, minlength=num_documents).astype(np.float64)
        scores[row] = [figure.score(times @ figure.statistics) for figure in figures]
    return scores


def check_confidence(confidence: float) -> None:
    """Refuse what is no share.

    Raises:
        ValueError: It is not between 0 and 1.
    """
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence is {confidence}; it must lie between 0 and 1, such as 0.95")


def _check_resampling(confidence: float, num_samples: int) -> None:
    check_confidence(confidence)
    if num_samples < 1:
        raise ValueError(f"num_samples is {num_samples}; it must be 1 or more, such as 2000")


def _percentile_ends(samples: Floats, confidence: float) -> tuple[float, float]:
    low, high = np.quantile(samples, [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0])
    return float(low), float(high)


def _two_sided(differences: Floats) -> float:
    if np.isnan(differences).any():
        return math.nan
    at_most = np.count_nonzero(differences <= 0) + 1
    at_least = np.count_nonzero(differences >= 0) + 1
    return min(1.0, 2.0 * int(min(at_most, at_least)) / (len(differences) + 1))

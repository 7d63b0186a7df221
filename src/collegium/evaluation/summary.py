"""Sums per document, made into figures with intervals."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from collegium.evaluation.language_modeling import DocumentSums
from collegium.evaluation.resampling import CorpusFigure
from collegium.evaluation.statistics import bootstrap_figure, bootstrap_ratio, paired_bootstrap_difference
from collegium.report import metric_names as names
from collegium.report.figures import (
    ConfidenceBins,
    DomainFigures,
    FusionFigures,
    PairedDifferences,
    StudentFigures,
    StudentMeasured,
    TeachersMeasured,
)
from collegium.report.interval import Difference, Interval
from collegium.report.perplexity import perplexity_of


COVERS = 0.9
"""Share of a domain's tokens where a teacher must speak to cover it. The rest of a teacher with another tokenizer
counts as the mean of the others in paired differences."""

ALL = "all"
"""All documents together, beside the domains; no domain is called so."""


def summarize(
    tables: Mapping[str, DocumentSums], *, confidence: float, num_samples: int, seed: int
) -> StudentMeasured:
    """Figures of a student: per domain with intervals, and their plain means over domains.

    Perplexities are exponentials of the losses beside them. The calibration error is of the student's most
    probable token, in 15 bins of confidence.
    """
    options = {"confidence": confidence, "num_samples": num_samples, "seed": seed}
    figures = {name: _student_intervals(table, options) for name, table in tables.items()}
    mean = _means(figures)
    if names.NLL in mean:
        mean[names.PERPLEXITY] = perplexity_of(mean[names.NLL])
    domains = {
        name: DomainFigures(
            documents=int((table.tokens > 0).sum()),
            tokens=int(table.tokens.sum()),
            bytes=int(table.num_bytes.sum()),
            figures=StudentFigures.of(figures[name]),
            confidence_bins=_confidence_bins(table),
        )
        for name, table in tables.items()
    }
    return StudentMeasured(domains, StudentFigures.of(mean))


def summarize_teachers(
    tables: Mapping[str, DocumentSums], *, confidence: float, num_samples: int, seed: int
) -> TeachersMeasured:
    """Figures of the teachers, alone and fused, likewise."""
    options = {"confidence": confidence, "num_samples": num_samples, "seed": seed}
    figures = {name: _intervals(table, options) for name, table in tables.items()}
    mean = _means(figures)
    for name in names.by_teacher(mean):
        if not covers_all(tables, name):  # means over different text cannot be compared
            mean.pop(names.of_teacher(name, names.NLL), None)
    domains = {
        name: DomainFigures(
            documents=int((table.tokens > 0).sum()),
            tokens=int(table.tokens.sum()),
            bytes=int(table.num_bytes.sum()),
            figures=FusionFigures.of(figures[name]),
        )
        for name, table in tables.items()
    }
    return TeachersMeasured(domains, FusionFigures.of(mean))


def _means(figures: Mapping[str, Mapping[str, Interval]]) -> dict[str, float]:
    """Plain means over the domains that have a figure: a teacher may say nothing about some."""
    mean = {}
    for metric in dict.fromkeys(metric for domain in figures.values() for metric in domain):
        values = [domain[metric].value for domain in figures.values() if metric in domain]
        mean[metric] = sum(values) / len(values)
    return mean


def covers_all(tables: Mapping[str, DocumentSums], teacher: str) -> bool:
    """True if a teacher speaks of nearly all tokens of every domain, so that it could teach alone."""
    return all(table.heard(teacher) >= COVERS for table in tables.values())


def _intervals(table: DocumentSums, options: Mapping[str, Any]) -> dict[str, Interval]:
    """Figures that are known: a teacher that says nothing of a domain has none there."""
    found = {}
    for name, sums in table.sums.items():
        counts = table.counts(name).numpy()
        has_some = counts > 0  # a document of one token predicts nothing
        if has_some.any():
            found[name] = bootstrap_ratio(sums.numpy()[has_some], counts[has_some], **options)
    return found


def _student_intervals(table: DocumentSums, options: Mapping[str, Any]) -> dict[str, Interval]:
    figures = _intervals(table, options)
    if (nll := figures.get(names.NLL)) is not None:
        figures[names.PERPLEXITY] = Interval(*map(perplexity_of, (nll.value, nll.low, nll.high)))
        num_bytes = table.num_bytes.numpy()
        has_bytes = (table.tokens.numpy() > 0) & (num_bytes > 0)
        bits = table.sums[names.NLL].numpy()[has_bytes] / math.log(2)
        figures[names.BITS_PER_BYTE] = bootstrap_ratio(bits, num_bytes[has_bytes], **options)
    if table.confidence_gaps is not None:
        figures[names.ECE] = bootstrap_figure(calibration_error(table), **options)
    return figures


def _confidence_bins(table: DocumentSums) -> ConfidenceBins | None:
    if table.confidence_gaps is None or table.confidence_counts is None:
        return None
    gaps = table.confidence_gaps.sum(0)
    counts = table.confidence_counts.sum(0)
    return ConfidenceBins(tuple(counts.int().tolist()), _rounded(gaps / counts.clamp_min(1)))


def _rounded(values: torch.Tensor) -> tuple[float, ...]:
    return tuple(round(float(value), 5) for value in values)


def calibration_error(table: DocumentSums) -> CorpusFigure:
    """Expected calibration error of a student's most probable token (arXiv:1706.04599, equation 3).

    Over documents that are resampled the bins scatter more, and the error is a sum of absolute values: so
    the interval lies higher than it should where the error is near 0.
    """
    assert table.confidence_gaps is not None, "of students"
    has_tokens = table.tokens > 0
    columns = [table.confidence_gaps[has_tokens], table.tokens[has_tokens, None]]
    return CorpusFigure(torch.cat(columns, -1).numpy(), lambda sums: float(np.abs(sums[:-1]).sum() / sums[-1]))


def compare(
    tables: Mapping[str, DocumentSums],
    baseline: Mapping[str, DocumentSums],
    *,
    figure: str = names.NLL,
    confidence: float,
    num_samples: int,
    seed: int,
) -> dict[str, Difference]:
    """Difference of one figure between two systems on the same documents, per domain and over `all`."""
    ours = _columns(tables, figure)
    theirs = _columns(baseline, figure)
    return {
        name: paired_bootstrap_difference(
            *ours[name], *theirs[name], confidence=confidence, num_samples=num_samples, seed=seed
        )
        for name in ours
    }


def paired_differences(found: Mapping[str, Difference]) -> PairedDifferences:
    """The result of `compare` as `evaluation.json` holds it."""
    domains = {name: gap for name, gap in found.items() if name != ALL}
    fewest = min(gap.documents or 0 for gap in domains.values())
    return PairedDifferences(replace(found[ALL], documents=fewest), domains)


def _columns(tables: Mapping[str, DocumentSums], figure: str) -> dict[str, tuple[Any, Any]]:
    """Sums of the figure and tokens of each document that predicts something, per domain and of all."""
    columns = {}
    for name, table in tables.items():
        has_tokens = table.tokens > 0
        columns[name] = (table.sums[figure][has_tokens].numpy(), table.tokens[has_tokens].numpy())
    parts = list(columns.values())
    return {**columns, ALL: (np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts]))}

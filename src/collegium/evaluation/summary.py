"""Sums per document, made into figures with intervals: what `evaluation.json` holds."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from collegium.evaluation.language_modeling import DocumentSums
from collegium.evaluation.resampling import CorpusFigure, Difference, Interval
from collegium.evaluation.statistics import bootstrap_figure, bootstrap_ratio, paired_bootstrap_difference


def summarize(
    tables: Mapping[str, DocumentSums], *, confidence: float, num_samples: int, seed: int
) -> dict[str, Any]:
    """Figures of one model: per domain with intervals, and their plain mean over domains.

    `nll` and `kl/...` are nats per token; `perplexity` is the exponential of the domain's nll. `ece` is of a
    student's most probable token, in 15 bins of confidence.
    """
    options = {"confidence": confidence, "num_samples": num_samples, "seed": seed}
    domains = {name: _domain(table, options) for name, table in tables.items()}
    mean = {}
    for name in dict.fromkeys(name for domain in domains.values() for name in domain["figures"]):
        values = [d["figures"][name]["value"] for d in domains.values() if name in d["figures"]]
        if name != "perplexity":  # not of the domains that a teacher says nothing about
            mean[name] = sum(values) / len(values)
    if "nll" in mean:
        mean["perplexity"] = math.exp(mean["nll"])
    return {"confidence": confidence, "domains": domains, "mean": mean}


def _domain(table: DocumentSums, options: Mapping[str, Any]) -> dict[str, Any]:
    tokens = table.tokens.numpy()
    has_tokens = tokens > 0  # a document of one token predicts nothing
    figures = {
        name: bootstrap_ratio(sums.numpy()[has_tokens], tokens[has_tokens], **options)
        for name, sums in table.sums.items()
    }
    if "nll" in figures:
        nll = figures["nll"]
        figures["perplexity"] = Interval(math.exp(nll.value), math.exp(nll.low), math.exp(nll.high))
        num_bytes = table.num_bytes.numpy()
        has_bytes = has_tokens & (num_bytes > 0)
        bits = table.sums["nll"].numpy()[has_bytes] / math.log(2)
        figures["bits_per_byte"] = bootstrap_ratio(bits, num_bytes[has_bytes], **options)
    if table.confidence_gaps is not None:
        figures["ece"] = bootstrap_figure(calibration_error(table), **options)
    domain: dict[str, Any] = {
        "documents": int(has_tokens.sum()),
        "tokens": int(tokens.sum()),
        "bytes": int(table.num_bytes.sum()),
        "figures": {name: asdict(interval) for name, interval in figures.items()},
    }
    if table.confidence_gaps is not None and table.confidence_counts is not None:
        gaps, counts = table.confidence_gaps.sum(0), table.confidence_counts.sum(0)
        domain["confidence_bins"] = {"tokens": counts.int().tolist(), "gaps": _rounded(gaps / counts.clamp_min(1))}
    return domain


def _rounded(values: torch.Tensor) -> list[float]:
    return [round(float(value), 5) for value in values]


def calibration_error(table: DocumentSums) -> CorpusFigure:
    """Expected calibration error of a student's most probable token (arXiv:1706.04599, equation 3).

    Over documents that are drawn anew the bins scatter more, and the error is a sum of absolute values: so
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
    figure: str = "nll",
    confidence: float,
    num_samples: int,
    seed: int,
) -> dict[str, Difference]:
    """Difference of one figure between two systems on the same documents, per domain and over all."""
    ours, theirs = _columns(tables, figure), _columns(baseline, figure)
    return {
        name: paired_bootstrap_difference(
            *ours[name], *theirs[name], confidence=confidence, num_samples=num_samples, seed=seed
        )
        for name in ours
    }


def _columns(tables: Mapping[str, DocumentSums], figure: str) -> dict[str, tuple[Any, Any]]:
    """Sums of the figure and tokens of each document that predicts something, per domain and of all."""
    columns = {}
    for name, table in tables.items():
        has_tokens = table.tokens > 0
        columns[name] = (table.sums[figure][has_tokens].numpy(), table.tokens[has_tokens].numpy())
    parts = list(columns.values())
    return {**columns, "all": (np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts]))}

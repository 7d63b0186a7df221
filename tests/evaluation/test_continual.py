"""Forgetting, learning and transfer against sums written out."""

from dataclasses import asdict

import pytest
import torch

from collegium.evaluation.continual import continual_figures
from collegium.evaluation.language_modeling import DocumentSums


OPTIONS = {"confidence": 0.95, "num_samples": 200, "seed": 0}


def tables(**losses):
    """Losses per token of three documents of 1, 2 and 3 tokens, by domain."""
    tokens = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    return {
        name: DocumentSums(tokens, tokens * 4, {"nll": tokens * torch.tensor(values, dtype=torch.float64)})
        for name, values in losses.items()
    }


def mean(values):
    return (values[0] + 2 * values[1] + 3 * values[2]) / 6


FINAL = {"old": [2.0, 3.0, 4.0], "older": [5.0, 5.0, 5.0], "new": [1.0, 1.0, 2.0]}
NEWEST = {"old": [1.5, 3.0, 3.0], "older": [4.0, 6.0, 5.0], "new": [3.0, 2.0, 4.0]}
OLDEST = {"old": [9.0, 9.0, 9.0], "older": [3.0, 4.0, 4.0], "new": [5.0, 5.0, 5.0]}
START = {name: [7.0, 7.5, 8.0] for name in FINAL}


def figures(**changes):
    past = {"second": tables(**NEWEST), "first": tables(**OLDEST)}
    learned = {"second": ["old", "older"], "first": ["older"]}
    return continual_figures(tables(**FINAL), past, learned, tables(**START), **{**OPTIONS, **changes})


def test_figures_are_differences_of_means_over_tokens():
    domains = figures().domains
    assert domains["old"].best_past_run == "second" and domains["older"].best_past_run == "first"
    assert domains["old"].forgetting.value == pytest.approx(mean(FINAL["old"]) - mean(NEWEST["old"]))
    assert domains["older"].forgetting.value == pytest.approx(mean(FINAL["older"]) - mean(OLDEST["older"]))
    assert domains["new"].learning.value == pytest.approx(mean(NEWEST["new"]) - mean(FINAL["new"]))
    assert domains["new"].forward_transfer.value == pytest.approx(mean(START["new"]) - mean(NEWEST["new"]))
    assert domains["old"].learning is None and domains["new"].forgetting is None


def test_means_are_over_the_domains_that_have_the_figure():
    result = figures()
    domains, means = result.domains, result.mean
    both = [domains[name].forgetting.value for name in ("old", "older")]
    assert means.forgetting == pytest.approx(sum(both) / 2)
    assert means.learning == domains["new"].learning.value
    assert means.final == pytest.approx(sum(mean(values) for values in FINAL.values()) / 3)
    assert result.runs == ("second", "first")


def test_a_student_that_stayed_as_it_was_forgot_nothing():
    same = continual_figures(
        tables(**NEWEST), {"run": tables(**NEWEST)}, {"run": list(NEWEST)}, tables(**START), **OPTIONS
    )
    for domain in same.domains.values():
        assert asdict(domain.forgetting) == pytest.approx(
            {"value": 0, "low": 0, "high": 0, "p_value": 1.0, "documents": domain.forgetting.documents}
        )
    assert same.mean.learning is None

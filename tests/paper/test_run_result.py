"""Figures of runs against plain loops."""

import math

import numpy as np
import pytest

from collegium.paper.run_result import TEST, VALIDATION, RunResult, averaged
from tests.support.tiny_experiment import outcome, table


@pytest.fixture
def tables():
    return {"cats": table(9, 1), "dogs": table(6, 2, nll=2.0)}


@pytest.fixture
def result(tables):
    return RunResult(outcome(tables))


@pytest.mark.parametrize("documents", [0, 1, 2, 7, 64])
def test_validation_and_test_share_no_document_and_leave_none_out(documents):
    numbers = list(range(documents))
    assert not set(numbers[VALIDATION]) & set(numbers[TEST])
    assert sorted(numbers[VALIDATION] + numbers[TEST]) == numbers


@pytest.mark.parametrize(("split", "rest"), [(VALIDATION, 0), (TEST, 1)])
def test_means_equal_plain_loops(result, tables, split, rest):
    means = []
    for domain in ("cats", "dogs"):
        nll = tokens = 0
        for number, count in enumerate(tables[domain]["tokens"]):
            if number % 2 == rest:
                nll, tokens = nll + tables[domain]["figures"]["nll"][number], tokens + count
        means.append(nll / tokens)
        assert result.by_domain("nll", split)[domain] == pytest.approx(means[-1], rel=1e-12)
    assert result.mean("nll", split) == pytest.approx((means[0] + means[1]) / 2, rel=1e-12)


def test_bits_per_byte_equals_a_plain_loop(result, tables):
    values = []
    for content in tables.values():
        odd = range(1, len(content["tokens"]), 2)
        bits = sum(content["figures"]["nll"][i] for i in odd) / math.log(2)
        values.append(bits / sum(content["bytes"][i] for i in odd))
    assert result.bits_per_byte == pytest.approx(sum(values) / 2, rel=1e-12)


def test_calibration_error_equals_a_plain_loop(result, tables):
    values = []
    for content in tables.values():
        odd = range(1, len(content["tokens"]), 2)
        bins = [abs(sum(content["confidence_gaps"][i][b] for i in odd)) for b in range(5)]
        values.append(sum(bins) / sum(content["tokens"][i] for i in odd))
    assert result.ece == pytest.approx(sum(values) / 2, rel=1e-12)


def test_calibration_error_is_none_where_it_was_not_measured(tables):
    del tables["dogs"]["confidence_gaps"]
    assert RunResult(outcome(tables)).ece is None


def test_each_domain_is_measured_against_its_expert(result, tables):
    by_domain = result.by_domain("kl/expert", VALIDATION)
    for domain in tables:
        figures, tokens = tables[domain]["figures"][f"teacher/{domain}/kl"], tables[domain]["tokens"]
        assert by_domain[domain] == pytest.approx(sum(figures[::2]) / sum(tokens[::2]))


def test_results_of_before_name_the_expert_otherwise(tables):
    new = RunResult(outcome(tables)).by_domain("kl/expert")
    for domain, content in tables.items():
        content["figures"][f"kl/{domain}"] = content["figures"].pop(f"teacher/{domain}/kl")
    old = RunResult(outcome(tables))
    assert old.has("kl/expert") and old.by_domain("kl/expert") == new


def test_has_is_of_all_domains(tables):
    del tables["dogs"]["figures"]["accuracy"], tables["dogs"]["figures"]["teacher/dogs/kl"]
    result = RunResult(outcome(tables))
    assert result.has("nll")
    assert not result.has("accuracy")
    assert not result.has("kl/expert")


def test_averages_over_seeds_are_of_test_documents():
    results = [RunResult(outcome({"cats": table(7, seed)})) for seed in range(3)]
    sums, tokens = averaged(results, "nll")["cats"]
    for place, number in enumerate((1, 3, 5)):
        values = [r.content["tables"]["cats"]["figures"]["nll"][number] for r in results]
        assert sums[place] == pytest.approx(sum(values) / 3)
        assert tokens[place] == results[0].content["tables"]["cats"]["tokens"][number]
    assert np.shape(sums) == (3,)

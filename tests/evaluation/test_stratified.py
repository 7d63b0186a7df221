"""Differences of means over domains, documents drawn within each."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collegium.evaluation.resampling import CorpusFigure
from collegium.evaluation.statistics import paired_bootstrap_difference
from collegium.evaluation.stratified import (
    stratified_difference,
    stratified_figure_difference,
    stratified_figure_ratio,
)


HOW = {"confidence": 0.9, "num_samples": 80, "seed": 4}
REPEATABLE = settings(deadline=None, max_examples=60, derandomize=True)


@st.composite
def systems(draw):
    """Two systems on the same documents of one to three domains."""
    found = {}, {}
    for domain in ("web", "code", "law")[: draw(st.integers(1, 3))]:
        size = draw(st.integers(2, 6))
        tokens = draw(st.lists(st.integers(1, 90), min_size=size, max_size=size))
        for system in found:
            system[domain] = draw(st.lists(st.floats(0, 400), min_size=size, max_size=size)), tokens
    return found


def test_one_domain_is_the_paired_bootstrap_draw_for_draw():
    chance = np.random.default_rng(0)
    tokens = chance.integers(5, 90, 12)
    ours, theirs = (tokens * chance.normal(3, 0.3, 12) for _ in range(2))
    assert stratified_difference({"web": (ours, tokens)}, {"web": (theirs, tokens)}, **HOW) == (
        paired_bootstrap_difference(ours, tokens, theirs, tokens, **HOW)
    )


def test_equals_plain_loops_over_domains_and_documents():
    ours = {"a": ([3.0, 5.0, 2.0], [1.0, 2.0, 2.0]), "b": ([9.0, 4.0], [3.0, 1.0])}
    baseline = {"a": ([2.0, 6.0, 2.0], [1.0, 2.0, 2.0]), "b": ([8.0, 4.5], [3.0, 1.0])}
    drawn = []
    generators = [np.random.default_rng(4 + number) for number in range(2)]
    picks = [g.integers(size, size=(80, size)) for g, size in zip(generators, (3, 2), strict=True)]
    for sample in range(80):
        total = 0.0
        for domain, rows in zip("ab", picks, strict=True):
            ratios = [
                sum(system[domain][0][i] for i in rows[sample]) / sum(system[domain][1][i] for i in rows[sample])
                for system in (ours, baseline)
            ]
            total += (ratios[0] - ratios[1]) / 2
        drawn.append(total)
    got = stratified_difference(ours, baseline, **HOW)
    assert got.value == pytest.approx(((10 - 10) / 5 + (13 - 12.5) / 4) / 2)
    assert (got.low, got.high) == pytest.approx(tuple(np.quantile(drawn, [0.05, 0.95])))
    signs = sum(d <= 1e-12 for d in drawn), sum(d >= -1e-12 for d in drawn)
    assert got.p_value == pytest.approx(min(1, 2 * (min(signs) + 1) / 81))


@REPEATABLE
@given(systems())
def test_swapping_systems_negates_whatever_the_order_of_their_domains(pair):
    ours, theirs = pair
    got = stratified_difference(ours, theirs, **HOW)
    swapped = stratified_difference(dict(reversed(theirs.items())), ours, **HOW)
    assert (swapped.value, swapped.low, swapped.high) == pytest.approx((-got.value, -got.high, -got.low), abs=1e-9)
    assert swapped.p_value == got.p_value


@REPEATABLE
@given(systems())
def test_identical_systems_do_not_differ(pair):
    got = stratified_difference(pair[0], pair[0], **HOW)
    assert (got.value, got.low, got.high, got.p_value) == (0.0, 0.0, 0.0, 1.0)


def test_a_domain_counts_the_same_however_long_its_documents():
    ours = {"long": ([4000.0, 4000.0], [1000, 1000]), "short": ([2.0, 2.0], [1, 1])}
    baseline = {"long": ([3000.0, 3000.0], [1000, 1000]), "short": ([5.0, 5.0], [1, 1])}
    assert stratified_difference(ours, baseline, **HOW).value == pytest.approx((1 - 3) / 2)


def test_a_single_document_has_no_spread():
    one = {"web": ([1.0], [2]), "law": ([1.0, 2.0], [2, 2])}
    got = stratified_difference(one, one, **HOW)
    assert got.value == 0.0
    assert all(math.isnan(number) for number in (got.low, got.high, got.p_value))


@pytest.mark.parametrize("baseline", [{}, {"law": ([1.0], [1])}, {"web": ([1.0], [1]), "law": ([1.0], [1])}])
def test_refuses_other_domains(baseline):
    with pytest.raises(ValueError, match="give the same, and at least one"):
        stratified_difference({"web": ([1.0], [1])}, baseline, **HOW)


def test_refuses_no_domain_other_documents_and_a_number_of_samples_that_is_none():
    web = {"web": ([1.0, 2.0], [1, 1])}
    with pytest.raises(ValueError, match="at least one"):
        stratified_difference({}, {}, **HOW)
    with pytest.raises(ValueError, match="2 documents, but 1 of the baseline"):
        stratified_difference(web, {"web": ([1.0], [1])}, **HOW)
    with pytest.raises(ValueError, match="num_samples is -1"):
        stratified_difference(web, web, **{**HOW, "num_samples": -1})


def figures(system):
    """The same system as figures that follow from sums."""
    columns = {domain: np.stack([np.array(part) for part in parts], axis=1) for domain, parts in system.items()}
    return {domain: CorpusFigure(rows, lambda total: total[0] / total[1]) for domain, rows in columns.items()}


@REPEATABLE
@given(systems())
def test_figures_that_are_ratios_differ_as_ratios_do(pair):
    ours, theirs = pair
    got = stratified_figure_difference(figures(ours), figures(theirs), **HOW)
    assert got.value == pytest.approx(stratified_difference(ours, theirs, **HOW).value, abs=1e-9)
    swapped = stratified_figure_difference(figures(theirs), figures(ours), **HOW)
    assert (swapped.low, swapped.high) == pytest.approx((-got.high, -got.low), abs=1e-9)


def test_a_share_of_itself_is_one_and_of_nothing_is_refused():
    ours = figures({"a": ([3.0, 5.0], [4, 6]), "b": ([1.0, 2.0], [2, 3])})
    got = stratified_figure_ratio(ours, ours, **HOW)
    assert (got.value, got.low, got.high) == pytest.approx((1.0, 1.0, 1.0))
    double = figures({"a": ([6.0, 10.0], [4, 6]), "b": ([2.0, 4.0], [2, 3])})
    assert stratified_figure_ratio(double, ours, **HOW).low == pytest.approx(2.0)
    nothing = figures({"a": ([0.0, 0.0], [4, 6]), "b": ([0.0, 0.0], [2, 3])})
    with pytest.raises(ValueError, match="one above 0"):
        stratified_figure_ratio(ours, nothing, **HOW)


def test_figures_of_other_groups_or_documents_are_refused():
    ours = figures({"a": ([3.0, 5.0], [4, 6])})
    with pytest.raises(ValueError, match="give the same"):
        stratified_figure_difference(ours, figures({"b": ([3.0, 5.0], [4, 6])}), **HOW)
    with pytest.raises(ValueError, match="2 documents, but 1"):
        stratified_figure_difference(ours, figures({"a": ([3.0], [4])}), **HOW)

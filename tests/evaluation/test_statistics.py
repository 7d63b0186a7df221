import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collegium.evaluation import resampling
from collegium.evaluation.statistics import bootstrap_ratio, holm, paired_bootstrap_difference


REPEATABLE = settings(deadline=None, max_examples=60, derandomize=True)
FEW = {"confidence": 0.9, "num_samples": 60, "seed": 3}


def documents(*, size, seed, shift=0.0):
    """Summed losses and token counts; the true ratio is 3 + shift."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(20, 400, size)
    return tokens * (3.0 + shift + rng.normal(0, 0.4, size)), tokens


@st.composite
def sums(draw, systems=1):
    size = draw(st.integers(2, 12))
    numerator, denominator = st.floats(-50, 50), st.integers(1, 500)
    columns = [
        np.array(draw(st.lists(kind, min_size=size, max_size=size)), dtype=float)
        for _ in range(systems)
        for kind in (numerator, denominator)
    ]
    return columns


def exact_resamples(*columns):
    """All n^n resamples of n documents, each as likely as the next: rows of summed columns."""
    size = len(columns[0])
    return np.array(
        [
            [sum(column[i] for i in drawn) for column in columns]
            for drawn in itertools.product(range(size), repeat=size)
        ]
    )


def test_equals_plain_loops_over_the_same_draws():
    numerators, denominators = documents(size=9, seed=0)
    drawn = np.random.default_rng(5).integers(9, size=(200, 9))
    ratios = sorted(sum(numerators[i] for i in row) / sum(denominators[i] for i in row) for row in drawn)
    got = bootstrap_ratio(numerators, denominators, confidence=0.9, num_samples=200, seed=5)
    assert got.value == pytest.approx(sum(numerators) / sum(denominators), rel=1e-12)
    place = 0.05 * 199
    below = int(place)
    low = ratios[below] + (place - below) * (ratios[below + 1] - ratios[below])
    assert got.low == pytest.approx(low, rel=1e-12)
    assert ratios[188] <= got.high <= ratios[190]


def test_agrees_with_all_resamples_of_four_documents():
    numerators, denominators = [3.0, 10.0, 8.0, 1.0], [2.0, 4.0, 7.0, 1.0]
    every = exact_resamples(numerators, denominators)
    exact = np.quantile(every[:, 0] / every[:, 1], [0.1, 0.9])
    got = bootstrap_ratio(numerators, denominators, confidence=0.8, num_samples=50_000, seed=0)
    assert [got.low, got.high] == pytest.approx(exact, abs=0.02)


def test_p_value_agrees_with_all_resamples_of_five_documents():
    ours, theirs = np.array([2.0, 3.0, 2.5, 4.0, 1.0]), np.array([2.2, 2.9, 3.5, 4.1, 1.3])
    tokens = np.array([1.0, 2.0, 1.0, 3.0, 1.0])
    every = exact_resamples(ours, theirs, tokens)
    differences = (every[:, 0] - every[:, 1]) / every[:, 2]
    exact = 2 * min((differences <= 0).mean(), (differences >= 0).mean())
    got = paired_bootstrap_difference(ours, tokens, theirs, tokens, confidence=0.95, num_samples=50_000, seed=0)
    assert 0.01 < exact < 0.5
    assert got.p_value == pytest.approx(exact, abs=0.01)


def test_width_agrees_with_the_delta_method():
    numerators, denominators = documents(size=400, seed=1)
    got = bootstrap_ratio(numerators, denominators, confidence=0.95, num_samples=4000, seed=0)
    residuals = numerators - got.value * denominators
    deviation = math.sqrt((residuals**2).sum()) / denominators.sum()
    assert (got.high - got.low) / (2 * 1.96 * deviation) == pytest.approx(1.0, abs=0.06)


def test_interval_covers_the_truth_as_often_as_it_says():
    covered = 0
    for seed in range(200):
        numerators, denominators = documents(size=60, seed=seed)
        got = bootstrap_ratio(numerators, denominators, confidence=0.95, num_samples=400, seed=seed)
        covered += got.low <= 3.0 <= got.high
    assert 180 <= covered <= 198


def test_equal_systems_are_rarely_told_apart():
    rejected = 0
    for seed in range(200):
        ours, tokens = documents(size=60, seed=seed)
        theirs = ours + tokens * np.random.default_rng(seed + 1000).normal(0, 0.1, 60)
        got = paired_bootstrap_difference(
            ours, tokens, theirs, tokens, confidence=0.95, num_samples=400, seed=seed
        )
        rejected += got.p_value < 0.05
    assert 2 <= rejected <= 22


def test_pairing_sees_what_two_intervals_do_not():
    ours, tokens = documents(size=60, seed=0)
    theirs = ours + tokens * np.random.default_rng(1).normal(0.05, 0.05, 60)
    options = {"confidence": 0.95, "num_samples": 1000, "seed": 0}
    difference = paired_bootstrap_difference(ours, tokens, theirs, tokens, **options)
    apart = [bootstrap_ratio(losses, tokens, **options) for losses in (ours, theirs)]
    assert apart[0].high > apart[1].low
    assert difference.high < 0
    assert difference.p_value == 2 / 1001


def test_one_document_has_no_spread():
    one = bootstrap_ratio([6.0], [2.0], **FEW)
    assert one.value == 3.0
    assert math.isnan(one.low) and math.isnan(one.high)
    two = paired_bootstrap_difference([6.0], [2.0], [5.0], [2.0], **FEW)
    assert two.value == 0.5
    assert all(math.isnan(number) for number in (two.low, two.high, two.p_value))


def test_same_systems_do_not_differ():
    numerators, denominators = documents(size=20, seed=0)
    got = paired_bootstrap_difference(numerators, denominators, numerators, denominators, **FEW)
    assert (got.value, got.low, got.high, got.p_value) == (0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize("max_rows", [1, 7, 1000])
def test_memory_bound_does_not_change_the_result(monkeypatch, max_rows):
    numerators, denominators = documents(size=7, seed=0)
    whole = bootstrap_ratio(numerators, denominators, **FEW)
    monkeypatch.setattr(resampling, "MAX_ROWS", max_rows)
    assert bootstrap_ratio(numerators, denominators, **FEW) == whole


def test_seed_decides():
    numerators, denominators = documents(size=30, seed=0)
    first, again, other = (
        bootstrap_ratio(numerators, denominators, confidence=0.95, num_samples=100, seed=seed)
        for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


@given(sums())
@REPEATABLE
def test_ends_lie_between_the_extreme_documents(columns):
    numerators, denominators = columns
    got = bootstrap_ratio(numerators, denominators, **FEW)
    ratios = numerators / denominators
    slack = 1e-9 * (1 + abs(ratios).max())
    assert ratios.min() - slack <= got.low <= got.high <= ratios.max() + slack


@given(sums(), st.floats(0.01, 100), st.floats(-10, 10))
@REPEATABLE
def test_follows_a_change_of_unit_and_of_origin(columns, scale, shift):
    numerators, denominators = columns
    got = bootstrap_ratio(numerators, denominators, **FEW)
    moved = bootstrap_ratio(scale * numerators + shift * denominators, denominators, **FEW)
    for name in ("value", "low", "high"):
        expected = scale * getattr(got, name) + shift
        assert getattr(moved, name) == pytest.approx(expected, rel=1e-9, abs=1e-7)


@given(sums(systems=2))
@REPEATABLE
def test_swapping_the_systems_changes_the_sign_alone(columns):
    there = paired_bootstrap_difference(*columns, **FEW)
    back = paired_bootstrap_difference(*columns[2:], *columns[:2], **FEW)
    assert back.value == -there.value
    assert back.low == pytest.approx(-there.high, rel=1e-12, abs=1e-12)
    assert back.high == pytest.approx(-there.low, rel=1e-12, abs=1e-12)
    assert back.p_value == there.p_value


@given(sums(systems=2))
@REPEATABLE
def test_p_value_and_interval_agree(columns):
    got = paired_bootstrap_difference(*columns, confidence=0.9, num_samples=300, seed=3)
    assert 2 / 301 <= got.p_value <= 1
    if got.p_value < 0.1 - 4 / 301:
        assert got.low > 0 or got.high < 0
    if got.p_value > 0.1 + 4 / 301:
        assert got.low <= 0 <= got.high


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
@REPEATABLE
def test_holm_is_the_closed_test_of_bonferroni(p_values):
    indices = range(len(p_values))
    subsets = [chosen for size in range(1, len(p_values) + 1) for chosen in itertools.combinations(indices, size)]
    expected = [max(min(1.0, len(s) * min(p_values[j] for j in s)) for s in subsets if i in s) for i in indices]
    assert holm(p_values).tolist() == expected


def test_holm_by_hand_and_with_a_test_that_was_not_made():
    assert holm([0.01, 0.04, 0.03]).tolist() == [0.03, 0.06, 0.06]
    adjusted = holm([0.04, math.nan, 0.01])
    assert adjusted[[0, 2]].tolist() == [0.04, 0.02]
    assert math.isnan(adjusted[1])
    assert holm([]).tolist() == []


@pytest.mark.parametrize(
    ("numerators", "denominators", "options", "message"),
    [
        ([1.0, 2.0], [1.0], {}, r"same length.*\(2,\) and \(1,\)"),
        ([], [], {}, "at least one"),
        ([[1.0]], [[1.0]], {}, r"shapes \(1, 1\)"),
        ([1.0, 2.0], [1.0, 0.0], {}, r"document 1 has 2\.0 / 0\.0.*leave out"),
        ([1.0, math.nan], [1.0, 1.0], {}, "document 1 has nan"),
        ([1.0, 1.0], [math.inf, 1.0], {}, "document 0 has 1.0 / inf"),
        ([1.0, 2.0], [1.0, 1.0], {"confidence": 95}, "confidence is 95.*such as 0.95"),
        ([1.0, 2.0], [1.0, 1.0], {"num_samples": 0}, "num_samples is 0"),
    ],
)
def test_tells_what_does_not_fit(numerators, denominators, options, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_ratio(numerators, denominators, **{**FEW, **options})


def test_tells_what_does_not_fit_the_baseline():
    with pytest.raises(ValueError, match="2 documents, but 3 of the baseline"):
        paired_bootstrap_difference([1, 2], [1, 1], [1, 2, 3], [1, 1, 1], **FEW)
    with pytest.raises(ValueError, match=r"baseline_numerators.*document 0"):
        paired_bootstrap_difference([1, 2], [1, 1], [1, 2], [-1, 1], **FEW)


@pytest.mark.parametrize("p_values", [[-0.1], [1.5], [[0.1]]])
def test_holm_tells_what_is_no_p_value(p_values):
    with pytest.raises(ValueError, match="p-values"):
        holm(p_values)

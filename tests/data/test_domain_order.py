"""Samples by domain: proportions kept, no repeats before an epoch ends, the same from any start."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collegium.data.order import DomainOrder, apportion


@st.composite
def mixes(draw):
    """Domains of indices and proportions of three rounds."""
    sizes = draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    domains = [list(range(start, start + size)) for start, size in zip(starts, sizes, strict=True)]
    weights = st.lists(st.floats(0.01, 1.0), min_size=len(sizes), max_size=len(sizes))
    rounds = [[w / sum(row) for w in row] for row in draw(st.lists(weights, min_size=3, max_size=3))]
    return domains, rounds


@settings(deadline=None)
@given(mixes(), st.integers(1, 20), st.integers(0, 9), st.integers(0, 60))
def test_starting_anywhere_goes_on_alike(mix, round_size, seed, start):
    domains, rounds = mix
    total = 3 * round_size - 1
    whole = list(DomainOrder(domains, rounds, round_size=round_size, seed=seed, total=total))
    rest = DomainOrder(domains, rounds, round_size=round_size, seed=seed, total=total, start=start)
    assert len(whole) == total
    assert list(rest) == whole[start:] and len(rest) == len(whole[start:])


@settings(deadline=None)
@given(mixes(), st.integers(1, 20), st.integers(0, 9))
def test_rounds_have_their_proportions_and_domains_their_epochs(mix, round_size, seed):
    domains, rounds = mix
    order = list(DomainOrder(domains, rounds, round_size=round_size, seed=seed, total=3 * round_size))
    domain_of = {index: i for i, domain in enumerate(domains) for index in domain}
    for number, shares in enumerate(rounds):
        drawn = Counter(domain_of[i] for i in order[number * round_size : (number + 1) * round_size])
        assert all(abs(drawn[i] - share * round_size) < 1 for i, share in enumerate(shares))
    for i, domain in enumerate(domains):
        own = [index for index in order if domain_of[index] == i]
        for start in range(0, len(own) - len(domain) + 1, len(domain)):
            assert sorted(own[start : start + len(domain)]) == domain


def test_a_round_is_read_when_it_begins():
    rounds = [[1.0, 0.0]]
    order = iter(DomainOrder([[0, 1], [2, 3]], rounds, round_size=2, seed=0, total=6))
    assert {next(order), next(order)} == {0, 1}
    rounds.append([0.0, 1.0])
    assert {next(order), next(order)} == {2, 3}
    with pytest.raises(LookupError, match="round 2 is asked for, but proportions of 2 rounds are known"):
        next(order)


def test_order_is_pinned():
    # A change here changes every run that is resumed.
    order = DomainOrder([range(4), range(4, 10)], [[0.5, 0.5], [0.25, 0.75]], round_size=8, seed=1, total=16)
    assert list(order) == [5, 0, 8, 4, 1, 7, 2, 3, 2, 0, 6, 9, 5, 8, 6, 7]


@given(st.lists(st.floats(0.001, 1.0), min_size=1, max_size=6), st.integers(1, 100))
def test_apportioned_counts_sum_up(weights, total):
    shares = [w / sum(weights) for w in weights]
    counts = apportion(shares, total)
    assert counts.sum() == total
    assert all(abs(count - share * total) < 1 for count, share in zip(counts, shares, strict=True))


def test_empty_domains_are_refused():
    with pytest.raises(ValueError, match=r"domains of \[2, 0\]"):
        DomainOrder([[0, 1], []], [], round_size=4, seed=0, total=8)

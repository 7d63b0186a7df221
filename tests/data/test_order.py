"""The order of samples: complete epochs, and the same from any start."""

from hypothesis import given, settings
from hypothesis import strategies as st

from collegium.data.order import StatelessOrder


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(0, 5), st.integers(0, 100), st.integers(0, 100))
def test_starting_anywhere_goes_on_alike(num_samples, seed, total, start):
    whole = list(StatelessOrder(num_samples, seed=seed, total=total))
    rest = StatelessOrder(num_samples, seed=seed, total=total, start=start)
    assert list(rest) == whole[start:]
    assert len(rest) == len(whole[start:])


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(0, 5))
def test_every_epoch_has_every_sample_once(num_samples, seed):
    order = list(StatelessOrder(num_samples, seed=seed, total=3 * num_samples))
    for epoch in range(3):
        part = order[epoch * num_samples : (epoch + 1) * num_samples]
        assert sorted(part) == list(range(num_samples))


def test_epochs_and_seeds_differ_and_total_does_not_matter():
    order = list(StatelessOrder(100, seed=0, total=200))
    assert order[:100] != order[100:]
    assert order[:100] != list(StatelessOrder(100, seed=1, total=100))
    assert order[:100] != list(range(100))
    assert list(StatelessOrder(100, seed=0, total=50)) == order[:50]


def test_order_is_pinned():
    # A change here changes every run that is resumed.
    order = list(StatelessOrder(8, seed=1, total=12))
    assert order == [5, 0, 1, 4, 2, 6, 3, 7, 6, 1, 4, 0]

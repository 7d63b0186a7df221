import datasets
from hypothesis import given, settings
from hypothesis import strategies as st

from collegium.data.blocks import PackedBlocks
from collegium.export.held_out import held_out_segments


def blocks_of(rows, first):
    """Blocks with these lengths of segments; tokens are numbered from `first`."""
    columns = {"input_ids": [], "segment_lengths": []}
    for lengths in rows:
        columns["input_ids"].append(list(range(first, first + sum(lengths))))
        columns["segment_lengths"].append(list(lengths))
        first += sum(lengths)
    return PackedBlocks(datasets.Dataset.from_dict(columns))


def test_segments_of_all_domains_in_turn():
    blocks = {"a": blocks_of([[3, 2], [4]], 0), "b": blocks_of([[1, 2]], 100)}
    assert held_out_segments(blocks, 1000) == [[0, 1, 2], [101, 102], [3, 4], [5, 6, 7, 8]]


def test_the_last_one_is_cut():
    assert held_out_segments({"a": blocks_of([[3, 5]], 0)}, 4) == [[0, 1, 2], [3, 4, 5]]
    assert held_out_segments({"a": blocks_of([[3, 5]], 0)}, 2) == [[0, 1, 2]]


rows = st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=4), min_size=1, max_size=4)


@settings(max_examples=30, deadline=None)
@given(rows, rows, st.integers(1, 40))
def test_as_many_positions_as_asked_for_or_all(one, two, wanted):
    segments = held_out_segments({"a": blocks_of(one, 0), "b": blocks_of(two, 1000)}, wanted)
    available = sum(length - 1 for lengths in [*one, *two] for length in lengths)
    assert sum(len(tokens) - 1 for tokens in segments) == min(wanted, available)
    assert all(len(tokens) > 1 and tokens == list(range(tokens[0], tokens[-1] + 1)) for tokens in segments)

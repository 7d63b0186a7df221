"""Positions a chunk at a time, so that [n V] tensors stay small."""

from collections.abc import Iterator


def chunks(num_positions: int, chunk_size: int) -> Iterator[slice]:
    """Consecutive slices of at most `chunk_size` positions; an empty one where there are none.

    So a batch that predicts nothing runs the same code, and its loss of 0 has a gradient of 0 for
    every parameter, as DDP needs on each rank.
    """
    for start in range(0, max(num_positions, 1), chunk_size):
        yield slice(start, min(start + chunk_size, num_positions))

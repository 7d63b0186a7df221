"""The order in which samples are seen: a function of seed and position, with no state.

A run that resumes at position p, with any number of processes, sees exactly the samples that the
uninterrupted run sees from p on.
"""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


class StatelessOrder(Sampler[int]):
    """Indices of a data set, shuffled anew in each epoch.

    Args:
        num_samples: Size of the data set.
        seed: Seed of all permutations.
        total: Positions in all, over as many epochs as that takes.
        start: Position to begin at.
    """

    def __init__(self, num_samples: int, *, seed: int, total: int, start: int = 0) -> None:
        if num_samples < 1:
            raise ValueError(f"there is no order of {num_samples} samples: at least one is needed")
        self._num_samples = num_samples
        self._seed = seed
        self._total = total
        self._start = start

    def __len__(self) -> int:
        return max(0, self._total - self._start)

    def __iter__(self) -> Iterator[int]:
        position = self._start
        while position < self._total:
            epoch, offset = divmod(position, self._num_samples)
            order = np.random.default_rng([self._seed, epoch]).permutation(self._num_samples)
            for index in order[offset : offset + self._total - position]:
                yield int(index)
                position += 1

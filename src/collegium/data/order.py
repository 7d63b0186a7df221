"""The order in which samples are seen: a function of seed and position, with no state but proportions of domains.

A run that resumes at position p, with any number of processes, sees exactly the samples that the
uninterrupted run sees from p on.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler


class StatelessOrder(Sampler[int]):
    """Indices of a data set, shuffled again in each epoch.

    Args:
        num_samples: Size of the data set.
        seed: Seed of all permutations.
        total: Positions in all, over as many epochs as that takes.
        start: Position to begin at.
        shuffled: False takes the samples in their own order, in each epoch.
    """

    def __init__(self, num_samples: int, *, seed: int, total: int, start: int = 0, shuffled: bool = True) -> None:
        if num_samples < 1:
            raise ValueError(f"there is no order of {num_samples} samples: at least one is needed")
        self._num_samples = num_samples
        self._seed = seed
        self._total = total
        self._start = start
        self._shuffled = shuffled

    def __len__(self) -> int:
        return max(0, self._total - self._start)

    def __iter__(self) -> Iterator[int]:
        position = self._start
        while position < self._total:
            epoch, offset = divmod(position, self._num_samples)
            order = np.arange(self._num_samples)
            if self._shuffled:
                order = np.random.default_rng([self._seed, epoch]).permutation(self._num_samples)
            for index in order[offset : offset + self._total - position]:
                yield int(index)
                position += 1


class DomainOrder(Sampler[int]):
    """Indices drawn by the domains' proportions, which are set again for each round.

    A round holds each domain in its proportion, exactly but for rounding, shuffled. Within a domain the
    samples come in a shuffled order, each once before any comes again, whatever the rounds were. All that
    follows from the seed and from the proportions of the rounds so far, so these are all that a run must
    remember to continue where it was.

    Args:
        domains: Indices of the samples of each domain.
        rounds: Proportions of each round, summing to 1. The caller appends to this list; the order reads a
            round's when its first sample is asked for.
        round_size: Samples of a round.
        seed: Seed of all permutations.
        total: Positions in all.
        start: Position to begin at.

    Raises:
        ValueError: a domain is empty.
    """

    def __init__(
        self,
        domains: Sequence[Sequence[int]],
        rounds: Sequence[Sequence[float]],
        *,
        round_size: int,
        seed: int,
        total: int,
        start: int = 0,
    ) -> None:
        if not domains or not all(len(domain) for domain in domains) or round_size < 1:
            sizes = [len(domain) for domain in domains]
            raise ValueError(f"rounds of {round_size} samples from domains of {sizes}: all must be at least 1")
        self._domains = domains
        self._rounds = rounds
        self._round_size = round_size
        self._seed = seed
        self._total = total
        self._start = start

    def __len__(self) -> int:
        return max(0, self._total - self._start)

    def __iter__(self) -> Iterator[int]:
        drawn = np.zeros(len(self._domains), np.int64)
        orders = [_DomainStream(domain, [self._seed, i]) for i, domain in enumerate(self._domains)]
        for number in range(-(-self._total // self._round_size)):
            first = number * self._round_size
            stop = min(self._total - first, self._round_size)
            counts = apportion(self._proportions(number), self._round_size)
            if first + stop > self._start:
                begin = max(0, self._start - first)
                kinds = np.repeat(np.arange(len(counts)), counts)
                kinds = np.random.default_rng([self._seed, len(counts), number]).permutation(kinds)
                offsets = drawn + np.bincount(kinds[:begin], minlength=len(counts))
                for kind in kinds[begin:stop]:
                    yield orders[kind][int(offsets[kind])]
                    offsets[kind] += 1
            drawn += counts

    def _proportions(self, number: int) -> Sequence[float]:
        if number >= len(self._rounds):
            raise LookupError(
                f"round {number} is asked for, but proportions of {len(self._rounds)} rounds are known"
            )
        return self._rounds[number]


class _DomainStream:
    """The endless order of one domain's samples; the permutation of the last epoch asked for is kept."""

    def __init__(self, samples: Sequence[int], seed: list[int]) -> None:
        self._samples = samples
        self._seed = seed
        self._epoch = -1
        self._order = np.zeros(0, np.int64)

    def __getitem__(self, position: int) -> int:
        epoch, offset = divmod(position, len(self._samples))
        if epoch != self._epoch:
            self._order = np.random.default_rng([*self._seed, epoch]).permutation(len(self._samples))
            self._epoch = epoch
        return int(self._samples[self._order[offset]])


def apportion(proportions: Sequence[float], total: int) -> npt.NDArray[np.int64]:
    """Whole numbers that sum to `total`, in these proportions; what is left goes to the largest remainders."""
    shares = np.asarray(proportions, np.float64)
    exact = shares / shares.sum() * total
    counts: npt.NDArray[np.int64] = np.floor(exact).astype(np.int64)
    largest = np.argsort(counts - exact, kind="stable")
    counts[largest[: total - int(counts.sum())]] += 1
    return counts

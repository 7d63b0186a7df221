"""Teachers that spoil a run in silence: overconfident, saying nothing, or there twice.

Everything is read off what is logged anyway, so it costs nothing: a teacher's weight, its entropy and loss at its
weight temperature, its loss and its KL to the student. Lines of the log are taken together until they are of
`POSITIONS` predicted positions, since a few tokens say little; then each fault is said once, by name.
"""

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

from collegium.base.typed import typed
from collegium.report import metric_names as names


POSITIONS = 2000
"""Predicted positions of a window."""

OVERCONFIDENT = 0.5
"""Nats by which a teacher's loss is above its entropy before it is called overconfident."""

MORE_THAN_ITS_SHARE = 1.2
"""Times an equal share of the weight that an overconfident teacher must have to matter."""

UNIFORM = 0.98
"""Share of log V above which an entropy is that of a teacher that says nothing."""

EQUAL = 1e-4
"""Nats by which figures of equal distributions may differ."""


class TeacherWatch:
    """Watches the teachers of a training.

    Args:
        teachers: Names, in the recipe's order.
        vocab_size: Tokens over which they predict.
    """

    def __init__(self, teachers: Sequence[str], vocab_size: int) -> None:
        self._teachers = tuple(teachers)
        self._vocab_size = vocab_size
        self._lines: deque[tuple[int, Mapping[str, float]]] = deque()
        self._said: set[tuple[str, ...]] = set()
        self._read = 0

    def add(self, logged: Mapping[str, float], read: Mapping[str, int]) -> list[str]:
        """Take in a line of the log, and return what has not been said yet.

        Args:
            logged: Means since the last line, by metric.
            read: Counts of the text that was read so far.
        """
        predicted = read.get(names.read("predicted"), self._read)
        self._lines.append((predicted - self._read, logged))
        self._read = predicted
        while sum(count for count, _ in self._lines) - self._lines[0][0] >= POSITIONS:
            self._lines.popleft()
        if sum(count for count, _ in self._lines) < POSITIONS:
            return []
        found = [*self._certain(), *self._silent(), *self._like_the_student(), *self._alike()]
        new = {key: sentence for key, sentence in found if key not in self._said}
        self._said |= set(new)
        return list(new.values())

    def _mean(self, metric: str) -> float:
        """Mean over the window; NaN where it was not logged, such as of a teacher that never spoke."""
        known = [(count, line[metric]) for count, line in self._lines if metric in line]
        total = sum(count for count, _ in known)
        return sum(count * value for count, value in known) / total if total else math.nan

    def _of(self, teacher: str, metric: str) -> float:
        return self._mean(names.of_teacher(teacher, metric))

    def _certain(self) -> Iterator[tuple[tuple[str, ...], str]]:
        for place, name in enumerate(self._teachers):
            entropy = self._of(name, names.ENTROPY)
            loss = self._of(name, names.WEIGHT_CROSS_ENTROPY)
            weight = self._of(name, names.WEIGHT)
            matters = len(self._teachers) > 1 and weight > MORE_THAN_ITS_SHARE / len(self._teachers)
            if matters and loss - entropy > OVERCONFIDENT:
                fit = typed(f"teachers.{place}.weight_temperature=fit")
                effective = self._mean(names.EFFECTIVE_TEACHERS)
                yield (
                    ("overconfident", name),
                    f"teacher {name!r} is overconfident: an entropy of {entropy:.2f} nats, a loss of {loss:.2f} "
                    f"and {weight:.0%} of the weight; in effect {effective:.1f} of {len(self._teachers)} teachers "
                    f"decide. Stop, and fit the temperature of its weight: {fit}",
                )

    def _silent(self) -> Iterator[tuple[tuple[str, ...], str]]:
        most = math.log(self._vocab_size)
        for name in self._teachers:
            entropy = self._of(name, names.ENTROPY)
            if entropy > UNIFORM * most:
                yield (
                    ("uniform", name),
                    f"teacher {name!r} says nothing: its entropy is {entropy:.2f} nats, that of chance over all "
                    f"{self._vocab_size:,} tokens {most:.2f}. See that its weights are those that you meant, "
                    "or leave it out of `teachers`",
                )

    def _like_the_student(self) -> Iterator[tuple[tuple[str, ...], str]]:
        for name in self._teachers:
            divergence = self._of(name, names.KL)
            if abs(divergence) < EQUAL:
                yield (
                    ("student", name),
                    f"teacher {name!r} is the student: a KL of {divergence:.1e} nats between them. It teaches "
                    "nothing: give it another model, or leave it out of `teachers`",
                )

    def _alike(self) -> Iterator[tuple[tuple[str, ...], str]]:
        for one, other in combinations(self._teachers, 2):
            pairs = ((self._of(one, m), self._of(other, m)) for m in (names.CROSS_ENTROPY, names.KL))
            if all(abs(mine - theirs) < EQUAL for mine, theirs in pairs):
                yield (
                    ("alike", one, other),
                    f"teachers {one!r} and {other!r} predict the same: one of them takes time and weight for "
                    "nothing. Give one another model, or leave it out of `teachers`",
                )

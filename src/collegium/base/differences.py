"""Differences between two JSON documents, down to the single value. No torch here."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple


ABSENT = "absent"


class Difference(NamedTuple):
    """One value in which two documents differ.

    Attributes:
        path: Keys that lead to it.
        before: Its value in the first document; `ABSENT` if it is not there.
        after: Its value in the second.
    """

    path: tuple[str, ...]
    before: Any
    after: Any


def differences(
    before: Mapping[str, Any], after: Mapping[str, Any], path: tuple[str, ...] = ()
) -> Iterator[Difference]:
    """Values in which two documents differ, in the order of their keys; lists are compared as a whole."""
    for key in sorted(before.keys() | after.keys()):
        one = before.get(key, ABSENT)
        other = after.get(key, ABSENT)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            yield from differences(one, other, (*path, key))
        elif one != other or isinstance(one, bool) != isinstance(other, bool):
            yield Difference((*path, key), one, other)

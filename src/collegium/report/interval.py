"""A figure with its confidence interval, and the one way in which its ends are written."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import BeforeValidator, ConfigDict, PlainSerializer


def _or_unknown(value: object) -> object:
    return math.nan if value is None else value


def _or_null(value: float) -> float | None:
    return value if math.isfinite(value) else None


Number = Annotated[float, BeforeValidator(_or_unknown), PlainSerializer(_or_null, return_type=float | None)]
"""A number that JSON says as null where it is not known."""


class Stored:
    """Kept in JSON: a key that nobody knows is refused there."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")


ENOUGH_DOCUMENTS = 10
"""Documents of each domain below which no difference is called anything: a percentile interval of 95 % over ten
holds the truth in 88 % of cases, and over three in far fewer."""


@dataclass(frozen=True, eq=False)
class Interval(Stored):
    """A figure and its confidence interval.

    Attributes:
        value: The figure on all documents.
        low: Lower end; NaN if there was only one document, whose spread is unknown.
        high: Upper end; NaN likewise.
    """

    value: Number
    low: Number = math.nan
    high: Number = math.nan

    def __eq__(self, other: object) -> bool:
        """The same numbers; unlike floats, one that is not known equals another."""
        return type(self) is type(other) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[float | None, ...]:
        return tuple(None if value is None else _or_null(value) for value in vars(self).values())

    @property
    def is_known(self) -> bool:
        """True if there is a figure."""
        return math.isfinite(self.value)

    @property
    def has_ends(self) -> bool:
        """True if its spread is known."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    def shown(self, digits: int, *, sign: str = "") -> str:
        """The figure alone.

        Args:
            digits: Behind the point.
            sign: `+` to write it before positive figures too.
        """
        return f"{self.value:{sign}.{digits}f}"

    def ends(self, digits: int, *, between: str, sign: str = "") -> str:
        """Both ends, see `shown`; `not known` for one that is not."""
        ends = (f"{end:{sign}.{digits}f}" if math.isfinite(end) else "not known" for end in (self.low, self.high))
        return between.join(ends)

    def with_ends(self, digits: int) -> str:
        """The figure and its interval on one line."""
        return f"{self.shown(digits)} [{self.ends(digits, between=', ')}]"


@dataclass(frozen=True, eq=False)
class Difference(Interval):
    """A figure minus a baseline's, with its confidence interval.

    Attributes:
        p_value: Two-sided; below 1 - confidence exactly where the interval leaves out 0, up to the
            resolution of the resamples. NaN if there was only one document.
        documents: It rests on so many; of the domain with the fewest where domains are weighed alike. None in
            files of versions that did not keep it.
    """

    p_value: Number = math.nan
    documents: int | None = None

    @property
    def has_enough(self) -> bool:
        """True if there are documents enough for a verdict."""
        return self.documents is None or self.documents >= ENOUGH_DOCUMENTS

    @property
    def too_few(self) -> str:
        """The words for a difference of which nothing can be said."""
        return f"too few documents to tell: {self.documents}, {ENOUGH_DOCUMENTS} are needed"

    def may_be_chance(self, confidence: float) -> bool:
        """True if a test was made and does not distinguish it from 0."""
        return not math.isnan(self.p_value) and self.p_value >= 1 - confidence

    def is_beyond_chance(self, confidence: float) -> bool:
        """True if a test distinguishes it from 0, on documents enough."""
        return self.has_enough and self.p_value < 1 - confidence

"""Overrides of the command line that would change a recipe as a finding asks, for sentences to print.

Only what a recipe makes of them can say whether they are valid, and this room sees no recipe: they are made where
it is seen, and what is absent here cannot be typed for that recipe.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from collegium.base.typed import typed


Overrides = tuple[str, ...]


@dataclass(frozen=True)
class Advice:
    """Overrides by what they do.

    Attributes:
        alone: Keep one teacher alone, by its name.
        without: Leave one teacher out.
        calibrated: Fit the temperature of a teacher's weight.
        rules: Take the weighting and fusion of an alternative, by its name.
        more_documents: Hold out twice as many documents.
        smaller_batch: Halve the batch on a device, with as many blocks a step.
        cached: Read the teachers from caches.
        fewer_checkpoints: Keep one checkpoint.
    """

    alone: Mapping[str, Overrides] = field(default_factory=dict)
    without: Mapping[str, Overrides] = field(default_factory=dict)
    calibrated: Mapping[str, Overrides] = field(default_factory=dict)
    rules: Mapping[str, Overrides] = field(default_factory=dict)
    more_documents: Overrides = ()
    smaller_batch: Overrides = ()
    cached: Overrides = ()
    fewer_checkpoints: Overrides = ()


NO_ADVICE = Advice()
"""That of a recipe that is not known."""


def shown(overrides: Overrides | None) -> str:
    """The overrides behind a colon, or nothing."""
    return f": {typed(*overrides)}" if overrides else ""


def routed(teachers: Mapping[str, str]) -> Overrides:
    """Ask one teacher about each domain."""
    listed = ", ".join(f"{domain}: {name}" for domain, name in teachers.items())
    return (f"objective.weighting={{kind: domain, domains: {{{listed}}}}}",)

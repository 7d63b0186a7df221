"""The section of a recipe for a number that changes over the course of training. No torch here."""

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from collegium.base.schedule import Schedule
from collegium.recipe.sections.base import Section


class ScheduleSection(Section):
    """A number that changes over the course of training."""

    shape: Literal["constant", "linear", "cosine", "step"] = "linear"
    """`step` jumps at `begin`; `constant` stays at `initial`."""
    initial: float = Field(ge=0)
    """Value up to `begin`."""
    final: float = Field(ge=0)
    """Value from `end` on."""
    begin: float = Field(default=0.0, ge=0, le=1)
    """Share of the training at which it begins to change."""
    end: float = Field(default=1.0, ge=0, le=1)
    """Share of the training at which it has changed."""

    @model_validator(mode="after")
    def _begins_before_it_ends(self) -> Self:
        if self.shape in ("linear", "cosine") and self.end <= self.begin:
            raise ValueError(f"a schedule ends after it begins, but begin is {self.begin} and end {self.end}")
        return self

    @property
    def schedule(self) -> Schedule:
        """The form that the objective takes."""
        return Schedule(self.shape, self.initial, self.final, self.begin, self.end)


def _kind_of_weight(given: Any) -> str:
    return "schedule" if isinstance(given, dict | ScheduleSection) else "number"


Weight = Annotated[
    Annotated[float, Field(ge=0), Tag("number")] | Annotated[ScheduleSection, Tag("schedule")],
    Discriminator(_kind_of_weight),
]
"""A number, or a section that says how it changes."""


def schedule_of(weight: float | ScheduleSection) -> float | Schedule:
    """The form that the objective takes."""
    return weight.schedule if isinstance(weight, ScheduleSection) else weight

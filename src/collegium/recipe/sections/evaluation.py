"""The sections of a recipe on measurement. No torch here."""

from typing import Annotated

from pydantic import AfterValidator, Field

from collegium.recipe.sections.base import Many, Section
from collegium.recipe.sections.tasks import TaskEvaluationSection, names_of_tasks_differ


class GenerationSection(Section):
    """Comparison of what the student writes with how documents go on and with what its teachers write."""

    prompts: int = Field(default=16, ge=1, le=100_000)
    """Held-out documents of each domain that are continued: the first that are long enough."""
    prompt_tokens: int = Field(default=64, ge=1, le=2**20)
    """Tokens of a document that are given."""
    new_tokens: int = Field(default=64, ge=1, le=2**20)
    """Tokens that are written at most, by the most probable token; EOS ends a text."""


class SamplesSection(Section):
    """Text for people to read in the report: passages token by token, and continuations side by side."""

    passage_tokens: int = Field(default=96, ge=0, le=2**20)
    """Tokens of a held-out document of each domain that are shown one by one; 0 for none."""
    prompt_tokens: int = Field(default=32, ge=1, le=2**20)
    """Tokens of a document that teachers and student are given to continue."""
    new_tokens: int = Field(default=32, ge=0, le=2**20)
    """Tokens that each writes at most; 0 for none."""


class EvaluationSection(Section):
    """Measurement on held-out text."""

    max_blocks: int | None = Field(default=None, ge=1)
    """Held-out blocks of each domain to measure on; all if not given."""
    batch_size: int = Field(default=8, ge=1, le=2**16)
    """Blocks a batch."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Confidence level of the intervals over documents."""
    bootstrap_samples: int = Field(default=2000, ge=100, le=1_000_000)
    """Resamples of the documents."""
    generation: GenerationSection | None = None
    """Continuations of held-out documents; none if not given."""
    samples: SamplesSection | None = SamplesSection()
    """Text for people to read, beside the student before training; `null` for none, which saves its time."""
    tasks: Annotated[Many[TaskEvaluationSection], AfterValidator(names_of_tasks_differ)] = ()
    """Tasks that the student is measured on."""
    task_teachers: bool = True
    """Measure the teachers that are local models on the tasks, too."""

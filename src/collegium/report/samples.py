"""Samples of what student and teachers say and write, token by token and text by text, and scores on tasks."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from collegium.report.interval import Interval, Number, Stored


Alternative = tuple[str, float]
"""A token and its probability."""


@dataclass(frozen=True)
class View(Stored):
    """Predictions of a model, or of the target, at the n tokens of a passage.

    Attributes:
        probability: Of the tokens that stand there, [n].
        alternatives: The most probable tokens, the first first, [n]; none where a teacher is absent.
    """

    probability: tuple[Number, ...]
    alternatives: tuple[tuple[Alternative, ...], ...]


@dataclass(frozen=True)
class TeacherView(View):
    """Predictions of a teacher there.

    Attributes:
        weight: Its share of the target, [n]; 0 where it is absent.
        entropy: In nats, [n]; None where it is absent.
    """

    weight: tuple[Number, ...]
    entropy: tuple[float | None, ...]


@dataclass(frozen=True)
class Passage(Stored):
    """One stretch of a held-out document; n tokens.

    Attributes:
        document: Its number.
        lead: The token that is given and not predicted.
        text: The n tokens as they stand in the text; what is no whole character yet is empty.
        conflict: Divergence among the teachers under their weights, in nats: 0 where all say the same, [n].
        student: The student's view.
        target: That of the fused target; None without teachers.
        teachers: Each one's.
    """

    document: int
    lead: str
    text: tuple[str, ...]
    conflict: tuple[Number, ...]
    student: View
    target: View | None = None
    teachers: Mapping[str, TeacherView] = field(default_factory=dict)


@dataclass(frozen=True)
class Continuation(Stored):
    """The beginning of a document and what each makes of it.

    Attributes:
        prompt: The beginning.
        document: How the document goes on.
        teachers: What each teacher writes that can.
        fused: What all of them write together; None if they cannot.
        before: What the student wrote before training; None if that is not known.
        student: What it writes now.
    """

    prompt: str
    document: str
    student: str
    before: str | None = None
    fused: str | None = None
    teachers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class GeneratedDomain(Stored):
    """Figures of what a student wrote.

    Attributes:
        documents: That it continued.
        figures: With intervals over documents.
    """

    documents: int
    figures: Mapping[str, Interval]


@dataclass(frozen=True)
class Generation(Stored):
    """Figures of continued held-out documents.

    Attributes:
        prompt_tokens: Tokens of a beginning.
        new_tokens: Tokens written after it, at most.
        teacher: Who wrote what the student's texts are compared with, or why nobody did.
        signatures: How figures were computed, by figure.
        domains: By domain, and over `all`, which no domain is called.
        samples: The first document of each domain, for people to read.
    """

    prompt_tokens: int
    new_tokens: int
    teacher: str
    signatures: Mapping[str, str]
    domains: Mapping[str, GeneratedDomain]
    samples: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskScores(Stored):
    """Scores of student and teachers on the items of one task.

    Attributes:
        task: Kind of the task.
        items: How many there are.
        primary: The figure that stands for the task.
        figures: The student's, with intervals over items.
        baselines: The primary figure of answers that read no prompt, `random` and `majority`.
        teachers: Figures of each teacher.
        per_item: Numerator and denominator of the primary figure for each item.
        sample: The first item and what was answered, for people to read.
    """

    task: str
    items: int
    primary: str
    figures: Mapping[str, Interval]
    baselines: Mapping[str, Number]
    teachers: Mapping[str, Mapping[str, Interval]]
    per_item: tuple[tuple[float, ...], ...] = ()
    sample: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class HarnessScores(Stored):
    """Scores by lm-eval, under its own names.

    Attributes:
        lm_eval_version: Of lm-eval.
        asked: Which tasks, and how.
        results: Figures by task.
        details: Versions, numbers of examples and items, and whatever else it says of the tasks.
    """

    lm_eval_version: str
    asked: Mapping[str, Any]
    results: Mapping[str, Mapping[str, Any]]
    details: Mapping[str, Any] = field(default_factory=dict)

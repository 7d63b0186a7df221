"""The content of `evaluation.json` as frozen dataclasses: whatever measures makes one, whatever shows reads one.

    Evaluation
      domains, mean     the student: figures by domain, and their plain means
      before            the same of the student before training
      teachers          each teacher alone, and all of them fused
      differences       the student's loss minus everybody else's, paired by document
      documents         tokens and losses of single documents, for comparisons between runs
      passages          held-out text token by token; continuations: what everybody writes
      generation, tasks, lm_eval, continual
      curves            what was logged in training
      cost, lineage, verdict

Figures carry the names of `metric_names`. What is None, or empty, was not measured. `evaluation_file` writes and
reads it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from collegium.report.figures import Differences, StudentDomain, StudentFigures, StudentMeasured, TeachersMeasured
from collegium.report.interval import Difference, Number, Stored
from collegium.report.samples import Continuation, Generation, HarnessScores, Passage, TaskScores


SCHEMA_VERSION = 1
"""Version of the shape of `evaluation.json`; older files have none."""


@dataclass(frozen=True)
class DocumentLosses(Stored):
    """Predicted tokens and summed loss of each document, in nats."""

    tokens: tuple[int, ...]
    nll: tuple[Number, ...]


@dataclass(frozen=True)
class Curve(Stored):
    """A logged figure at steps of the training."""

    step: tuple[int, ...]
    value: tuple[Number, ...]


@dataclass(frozen=True)
class HeldOutText(Stored):
    """The reading of held-out text, without which a perplexity says nothing.

    Attributes:
        context_length: Tokens of a block.
        stride: Tokens between the starts of two.
        bos: Where a BOS stands.
        eos: Where an EOS stands.
        documents: How they lie in blocks.
        not_predicted: Tokens that are left out.
        predicted_tokens: Those that are counted.
    """

    context_length: int
    stride: int | None = None
    bos: str | None = None
    eos: str | None = None
    documents: str | None = None
    not_predicted: str | None = None
    predicted_tokens: int | None = None


@dataclass(frozen=True)
class ActualCost(Stored):
    """The cost of a run.

    Attributes:
        seconds: Of its parts, in this process.
        memory_bytes: Peak resident memory.
        device_memory_bytes: Peak memory reserved on the GPU; None without one.
        disk_bytes: Sizes of the files that it left.
        resumed: Whether another process did the first steps, whose time is not known here.
    """

    seconds: Mapping[str, float]
    memory_bytes: int | None
    device_memory_bytes: int | None
    disk_bytes: Mapping[str, int]
    resumed: bool


@dataclass(frozen=True)
class Cost(Stored):
    """The cost of a run, beside the `estimate` of its pre-flight."""

    actual: ActualCost
    plan: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class ContinualDomain(Stored):
    """A domain of a run that continues others, in nats per token; see `collegium.evaluation.continual`.

    Attributes:
        final: Loss of the student.
        before: That of the newest past one.
        best_past: The least loss of a past student, of an old domain.
        best_past_run: Folder of that one's run.
        forgetting: Loss minus `best_past`.
        reference: Loss of the student before the first run, of a new domain.
        learning: `before` minus the loss.
        forward_transfer: `reference` minus `before`.
    """

    final: Number
    before: Number
    best_past: float | None = None
    best_past_run: str | None = None
    forgetting: Difference | None = None
    reference: float | None = None
    learning: Difference | None = None
    forward_transfer: Difference | None = None


@dataclass(frozen=True)
class ContinualMean(Stored):
    """Plain means over the domains that have a figure; None where none has."""

    forgetting: float | None
    learning: float | None
    forward_transfer: float | None
    final: Number


@dataclass(frozen=True)
class Continual(Stored):
    """Losses and gains of a student since the runs that it continues.

    Attributes:
        runs: Folders of the runs that it continues, the newest first.
        domains: By domain.
        mean: Over domains.
    """

    runs: tuple[str, ...]
    domains: Mapping[str, ContinualDomain]
    mean: ContinualMean


@dataclass(frozen=True, kw_only=True)
class Evaluation(Stored):
    """All that is known of a student that was measured.

    Attributes:
        schema_version: Version of this shape.
        recipe: Fingerprint of the recipe.
        model: `student`, or the model that was measured in its place.
        held_out: How held-out text was read.
        confidence: Of all intervals.
        domains: The student's figures by domain.
        mean: Their plain means over domains.
        documents: Tokens and losses of single documents, by domain.
        before: The student before training.
        teachers: The teachers, alone and fused.
        differences: Of the student's loss to all of these.
        passages: Held-out text token by token, by domain.
        continuations: What everybody writes, by domain.
        curves: What was logged in training, by metric.
        continual: What was forgotten of earlier runs.
        generation: How what it writes compares.
        tasks: By task.
        lm_eval: Scores on tasks of lm-eval.
        cost: What the run took.
        lineage: What the student was made from; `docs/model-card.md` has the keys.
        verdict: What the figures say, a sentence each.
    """

    schema_version: int = SCHEMA_VERSION
    recipe: str
    model: str
    held_out: HeldOutText
    confidence: float
    domains: Mapping[str, StudentDomain]
    mean: StudentFigures[Number]
    documents: Mapping[str, DocumentLosses] = field(default_factory=dict)
    before: StudentMeasured | None = None
    teachers: TeachersMeasured | None = None
    differences: Differences = field(default_factory=Differences)
    passages: Mapping[str, Passage] = field(default_factory=dict)
    continuations: Mapping[str, Continuation] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict)
    continual: Continual | None = None
    generation: Generation | None = None
    tasks: Mapping[str, TaskScores] = field(default_factory=dict)
    lm_eval: HarnessScores | None = None
    cost: Cost | None = None
    lineage: Mapping[str, Any] | None = None
    verdict: tuple[str, ...] = ()

    @property
    def student(self) -> StudentMeasured:
        """The student's figures, as `before` has them."""
        return StudentMeasured(self.domains, self.mean)

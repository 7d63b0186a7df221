"""Figures on held-out text: of a student, of its teachers alone and fused, and how far apart two are.

Each class of figures serves twice: with intervals for one domain, and with plain numbers for the mean over
domains. A teacher is always a key of a mapping that holds teachers and nothing else, so it may be called anything.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Generic, TypeVar

from pydantic import Field

from collegium.report import metric_names as names
from collegium.report.interval import Difference, Interval, Number, Stored


T = TypeVar("T")
F = TypeVar("F")


@dataclass(frozen=True)
class TeacherFigures(Stored, Generic[T]):
    """Figures of one teacher; nats per token unless said otherwise.

    Attributes:
        kl: KL from its distribution to the student's.
        nll: Its loss.
        weight_nll: Its loss at its weight temperature.
        entropy: Its entropy, likewise.
        weight: Its share of the fused target.
        heard: Share of the tokens where it says something.
    """

    kl: T | None = None
    nll: T | None = None
    weight_nll: T | None = None
    entropy: T | None = None
    weight: T | None = None
    heard: T | None = None

    @classmethod
    def of(cls, values: Mapping[str, T]) -> "TeacherFigures[T]":
        """From values by the metrics' own names."""
        return cls(
            kl=values.get(names.KL),
            nll=values.get(names.NLL),
            weight_nll=values.get(names.WEIGHT_NLL),
            entropy=values.get(names.ENTROPY),
            weight=values.get(names.WEIGHT),
            heard=values.get(names.HEARD),
        )


def _by_teacher(values: Mapping[str, T]) -> dict[str, TeacherFigures[T]]:
    return {name: TeacherFigures.of(own) for name, own in names.by_teacher(values).items()}


@dataclass(frozen=True)
class StudentFigures(Stored, Generic[T]):
    """Figures of a student; nats per token unless said otherwise.

    Attributes:
        nll: Loss.
        perplexity: Its exponential.
        bits_per_byte: The same loss over UTF-8 bytes.
        accuracy: Share of tokens that are its most probable one.
        ece: Calibration error of that one.
        kl_common: KL from the uniform mixture of all teachers: the only one that ranks students.
        kl_own: KL from the target that it was trained on.
        entropy_own: Entropy of that target.
        agreement: Share of tokens where the mixture's most probable token is its own.
        teachers: What is measured against each teacher.
    """

    nll: T | None = None
    perplexity: T | None = None
    bits_per_byte: T | None = None
    accuracy: T | None = None
    ece: T | None = None
    kl_common: Annotated[T | None, Field(alias=names.KL_COMMON)] = None
    kl_own: Annotated[T | None, Field(alias=names.KL_OWN)] = None
    entropy_own: Annotated[T | None, Field(alias=names.ENTROPY_OWN)] = None
    agreement: T | None = None
    teachers: Mapping[str, TeacherFigures[T]] = field(default_factory=dict)

    @classmethod
    def of(cls, values: Mapping[str, T]) -> "StudentFigures[T]":
        """From values by metric."""
        return cls(
            nll=values.get(names.NLL),
            perplexity=values.get(names.PERPLEXITY),
            bits_per_byte=values.get(names.BITS_PER_BYTE),
            accuracy=values.get(names.ACCURACY),
            ece=values.get(names.ECE),
            kl_common=values.get(names.KL_COMMON),
            kl_own=values.get(names.KL_OWN),
            entropy_own=values.get(names.ENTROPY_OWN),
            agreement=values.get(names.AGREEMENT),
            teachers=_by_teacher(values),
        )

    def teacher(self, name: str) -> TeacherFigures[T]:
        """Figures of a teacher; none are known of one that was not measured."""
        return self.teachers.get(name) or TeacherFigures()


@dataclass(frozen=True)
class FusionFigures(Stored, Generic[T]):
    """Figures of the teachers, alone and together; nats per token unless said otherwise.

    Attributes:
        fused_nll: Loss of the fused target.
        oracle_document: Loss of the best teacher of each document.
        oracle_token: Loss of the best teacher at each token.
        effective_teachers: exp(entropy of the weights): 1 where one teacher has all.
        conflict: Divergence among the teachers.
        teachers: Each by itself.
    """

    fused_nll: Annotated[T | None, Field(alias=names.rule_nll(names.FUSED))] = None
    oracle_document: Annotated[T | None, Field(alias=names.ORACLE_DOCUMENT)] = None
    oracle_token: Annotated[T | None, Field(alias=names.ORACLE_TOKEN)] = None
    effective_teachers: T | None = None
    conflict: T | None = None
    teachers: Mapping[str, TeacherFigures[T]] = field(default_factory=dict)

    @classmethod
    def of(cls, values: Mapping[str, T]) -> "FusionFigures[T]":
        """From values by metric."""
        return cls(
            fused_nll=values.get(names.rule_nll(names.FUSED)),
            oracle_document=values.get(names.ORACLE_DOCUMENT),
            oracle_token=values.get(names.ORACLE_TOKEN),
            effective_teachers=values.get(names.EFFECTIVE_TEACHERS),
            conflict=values.get(names.CONFLICT),
            teachers=_by_teacher(values),
        )

    def teacher(self, name: str) -> TeacherFigures[T]:
        """Figures of a teacher; none are known of one that was not measured."""
        return self.teachers.get(name) or TeacherFigures()


@dataclass(frozen=True)
class ConfidenceBins(Stored):
    """Bins of equal width of the confidence in the most probable token.

    Attributes:
        tokens: In each bin.
        gaps: Confidence minus share that is right, mean over each.
    """

    tokens: tuple[int, ...]
    gaps: tuple[Number, ...]


@dataclass(frozen=True)
class DomainFigures(Stored, Generic[F]):
    """Figures on held-out text of one domain.

    Attributes:
        documents: That predict something.
        tokens: Predicted.
        bytes: UTF-8 bytes of these.
        figures: With intervals over documents.
        confidence_bins: Of a student.
    """

    documents: int
    tokens: int
    bytes: int
    figures: F
    confidence_bins: ConfidenceBins | None = None


StudentDomain = DomainFigures[StudentFigures[Interval]]
FusionDomain = DomainFigures[FusionFigures[Interval]]


@dataclass(frozen=True)
class StudentMeasured(Stored):
    """A student on all held-out text.

    Attributes:
        domains: By domain.
        mean: Plain means over the domains that have a figure; the mean perplexity is exp of the mean loss.
    """

    domains: Mapping[str, StudentDomain] = field(default_factory=dict)
    mean: StudentFigures[Number] = field(default_factory=StudentFigures)

    def figures(self, domain: str) -> StudentFigures[Interval]:
        """Figures of a domain; none are known of one that was not measured."""
        return self.domains[domain].figures if domain in self.domains else StudentFigures()


@dataclass(frozen=True)
class TeachersMeasured(Stored):
    """Teachers on all held-out text; see `StudentMeasured`."""

    domains: Mapping[str, FusionDomain] = field(default_factory=dict)
    mean: FusionFigures[Number] = field(default_factory=FusionFigures)

    def figures(self, domain: str) -> FusionFigures[Interval]:
        """Figures of a domain, likewise."""
        return self.domains[domain].figures if domain in self.domains else FusionFigures()


@dataclass(frozen=True)
class PairedDifferences(Stored):
    """The student's loss minus another one's on the same documents, nats per token.

    Attributes:
        all: Over all documents.
        domains: Over those of each domain.
    """

    all: Difference
    domains: Mapping[str, Difference] = field(default_factory=dict)


@dataclass(frozen=True)
class Differences(Stored):
    """The student against itself before training, against each teacher, and against all of them fused."""

    before: PairedDifferences | None = None
    fused: PairedDifferences | None = None
    teachers: Mapping[str, PairedDifferences] = field(default_factory=dict)


def by_metric(figures: StudentFigures[T]) -> dict[str, T]:
    """Figures that are known, by the names of their metrics; those of teachers come last."""
    own = {
        names.NLL: figures.nll,
        names.ACCURACY: figures.accuracy,
        names.KL_COMMON: figures.kl_common,
        names.AGREEMENT: figures.agreement,
        names.KL_OWN: figures.kl_own,
        names.ENTROPY_OWN: figures.entropy_own,
        names.PERPLEXITY: figures.perplexity,
        names.BITS_PER_BYTE: figures.bits_per_byte,
        names.ECE: figures.ece,
    }
    own |= {names.of_teacher(name, names.KL): teacher.kl for name, teacher in figures.teachers.items()}
    return {name: value for name, value in own.items() if value is not None}

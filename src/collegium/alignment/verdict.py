"""Puts into words what follows from a comparison of two tokenizers.

Equal sizes of vocabularies say nothing, and neither do unequal ones: entries that fill up a model's vocabulary
are no tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from collegium.base.typed import typed


Kind = Literal["same", "padding", "special", "other", "unusable"]
"""`same`; `padding`: but for entries that fill up a vocabulary; `special`: but for tokens that were added;
`other`; `unusable`: what the teacher's tokens stand for is not known."""

Approximation = Literal["none", "split", "inside", "all"]
"""As `collegium.teachers.aligned.Approximation`; `all`: every position gets something, as by spelling (MinED)."""

ENOUGH = 0.5
"""Share of exact positions below which a warning is given."""


@dataclass(frozen=True)
class TokenizerFacts:
    """Figures of one tokenizer.

    Attributes:
        num_tokens: Tokens, without what only fills up the vocabulary.
        num_rows: Rows of its model's vocabulary.
        bos: Token and id; None if there is none.
        eos: The same for EOS.
        begins_with_bos: True if it puts BOS before a text by itself.
        normalizers: What it does to a text that loses something; it is done to the student's text when that is
            prepared, and left out for teachers.
        bytes_per_token: Bytes of the text per token; None without text.
        lost_bytes: Bytes of the text that its tokens do not give back; None if that is not known.
        num_bytes: Bytes of the text.
    """

    num_tokens: int
    num_rows: int
    bos: tuple[str, int] | None
    eos: tuple[str, int] | None
    begins_with_bos: bool
    normalizers: tuple[str, ...]
    bytes_per_token: float | None
    lost_bytes: int | None
    num_bytes: int


@dataclass(frozen=True)
class Overlap:
    """Figures of a pair.

    Attributes:
        shared: Byte strings that are a token of both.
        shared_of_student: Their share of the student's tokens.
        shared_of_teacher: And of the teacher's.
        same_ids: How many of them have one id.
        num_special: Special and added tokens that one lacks or has at another id.
        special: The first of them: token, id of the student, id of the teacher.
        shares: Share of the text's positions that are reached in each way, see `Carry`; None without text.
        student_per_teacher: Student tokens for each of the teacher's; None without text.
    """

    shared: int
    shared_of_student: float
    shared_of_teacher: float
    same_ids: int
    num_special: int
    special: tuple[tuple[str, int | None, int | None], ...]
    shares: dict[str, float] | None
    student_per_teacher: float | None


@dataclass(frozen=True)
class Comparison:
    """A pair of tokenizers.

    Attributes:
        teacher: Name of the teacher.
        kind: What they are to one another.
        verdict: That in words.
        warnings: Things to fix or to know, a sentence each.
        student: Figures of the student's; None if there is nothing to compare with.
        own: Figures of the teacher's.
        overlap: Figures of both.
    """

    teacher: str
    kind: Kind
    verdict: str
    warnings: tuple[str, ...] = ()
    student: TokenizerFacts | None = None
    own: TokenizerFacts | None = None
    overlap: Overlap | None = None


def unusable(name: str, reason: str) -> Comparison:
    """Comparison of a teacher whose tokenizer cannot be used, or found."""
    return Comparison(name, "unusable", f"cannot be used: {reason}")


def verdict(
    kind: Kind,
    student: TokenizerFacts,
    own: TokenizerFacts,
    overlap: Overlap,
    approximate: Approximation,
) -> str:
    """Relation of two tokenizers, in words.

    Args:
        kind: What they are.
        student: Figures of the student's.
        own: Figures of the teacher's.
        overlap: Figures of both.
        approximate: What is carried besides what is exact.
    """
    if kind == "same":
        return "same tokenizer: nothing to align"
    if kind == "padding":
        return (
            f"same tokenizer, other padding: {own.num_tokens:,} tokens, in vocabularies of "
            f"{student.num_rows:,} and {own.num_rows:,} rows"
        )
    reached = _reached(overlap.shares, approximate)
    if kind == "special":
        return f"same tokens but {overlap.num_special:,} special tokens differ: {reached}"
    return f"another tokenizer: {reached}"


def _reached(shares: dict[str, float] | None, approximate: Approximation) -> str:
    if shares is None:
        return "how much of the text it reaches is not known without text"
    carried = {
        "none": (),
        "split": ("split",),
        "inside": ("split", "inside"),
        "all": ("split", "inside", "absent"),
    }[approximate]
    exact = shares["exact"]
    other = sum(shares[name] for name in carried)
    return (
        f"{100 * exact:.1f} % of the text exact, {100 * other:.1f} % approximate, "
        f"the rest ({100 * (1 - exact - other):.1f} %) left to the other teachers"
    )


def warnings(kind: Kind, student: TokenizerFacts, own: TokenizerFacts, overlap: Overlap) -> Iterator[str]:
    """Things to fix or to know, a sentence each."""
    if overlap.shares is not None and overlap.shares["exact"] < ENOUGH:
        yield (
            f"under half of the text is exact ({100 * overlap.shares['exact']:.1f} %): take a student with this "
            "teacher's tokenizer or one nearer to it, or give the teacher only domains that they cut alike "
            "(teachers[].domains)"
        )
    if student.lost_bytes:
        yield (
            f"the student's tokenizer loses {student.lost_bytes:,} of {student.num_bytes:,} bytes of this text"
            f"{_because(student)}: no teacher sees them; take a student whose tokenizer has bytes to fall "
            "back on, or clean the text"
        )
    if own.lost_bytes and kind in ("other", "special"):
        yield (
            f"the teacher's tokenizer loses {own.lost_bytes:,} of {own.num_bytes:,} bytes of this text: it reads "
            "something else there; keep it from the domains where this is much (teachers[].domains)"
        )
    if kind in ("same", "padding"):
        yield from _frame_warnings(student, own)


def _because(facts: TokenizerFacts) -> str:
    return f" (normalizer {', '.join(facts.normalizers)})" if facts.normalizers else ""


def _frame_warnings(student: TokenizerFacts, own: TokenizerFacts) -> Iterator[str]:
    """Warn of other BOS and EOS with one tokenizer: nothing is aligned, so the teacher reads the student's."""
    if student.eos != own.eos:
        yield (
            f"the student ends a text with {_shown(student.eos)}, the teacher with {_shown(own.eos)}: with "
            "data.add_eos it is asked about the student's; give the student the teacher's tokenizer "
            f"(student.tokenizer), or end no text: {typed('data.add_eos=false')}"
        )
    if own.begins_with_bos and not student.begins_with_bos:
        begin = typed("data.add_bos=true")
        yield f"the teacher's texts begin with {_shown(own.bos)}, the student's do not: {begin}"


def _shown(token: tuple[str, int] | None) -> str:
    return "nothing" if token is None else f"{token[0]} ({token[1]})"

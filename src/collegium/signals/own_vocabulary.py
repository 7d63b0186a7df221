"""Teachers with another tokenizer than the student: their tokens, and their answers at their own positions.

Shapes are those of `collegium.signals.contracts`; U positions of the teacher, G spans.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor

from collegium.signals.inner_states import Embedding
from collegium.signals.signals import TeacherSignal


@dataclass(frozen=True)
class AlignedSpans:
    """The shortest stretches of text that begin and end between two tokens of both tokenizations.

    Attributes:
        student: Span of each predicted position of the student, from 0 on in reading order; -1 in none.
        teacher: Span of each predicted position of the teacher; U positions.
        num_bytes: UTF-8 bytes of each span; G spans.
    """

    student: Int[Tensor, " N"]
    teacher: Int[Tensor, " U"]
    num_bytes: Int[Tensor, " G"]


@dataclass(frozen=True)
class OwnVocabulary:
    """The tokens of a teacher with another tokenizer beside those of the student.

    Attributes:
        student: Bytes of each of the student's tokens; None for one that stands for no text, such as BOS.
        teacher: The same of the teacher's own tokens.
    """

    student: Sequence[bytes | None]
    teacher: Sequence[bytes | None]


@dataclass(frozen=True)
class OwnView:
    """A teacher's answer at its own positions, in its own vocabulary, and where they meet the student's.

    Attributes:
        signal: Its distributions over its own vocabulary, U rows in reading order.
        inputs: Its token that predicts, at each position.
        labels: Its token that is predicted, at each position.
        segments: Segment of each position, numbered as the student's `Positions.segments`; -1 for other text.
        spans: Where both tokenizations meet.
        shared_tokens: Student and teacher ids of tokens of the same bytes, and of EOS, in the student's order.
        embed: Its input embeddings of token ids [*] as [* E]; None for a teacher that does not run here.
    """

    signal: TeacherSignal
    inputs: Int[Tensor, " U"]
    labels: Int[Tensor, " U"]
    segments: Int[Tensor, " U"]
    spans: AlignedSpans
    shared_tokens: Int[Tensor, "P 2"]
    embed: Embedding | None = None

"""A student and a teacher side by side, each in its own vocabulary, for terms that compare them there.

A teacher with another tokenizer brings its view along (`TeacherOutput.own`). For one with the student's a
trivial one is made, in which each position is a stretch of text of its own, so that terms need not know.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from collegium.alignment.carry import logits_at
from collegium.losses.chunks import chunks
from collegium.losses.cross_tokenizer import label_and_boundary
from collegium.losses.precision import full_precision
from collegium.signals.contracts import Batch, Positions, TeacherOutput
from collegium.signals.own_vocabulary import AlignedSpans, OwnView
from collegium.signals.signals import CarriedSignal, DenseSignal, Head, ProjectedSignal, TeacherSignal, TopKSignal


FullSignal = ProjectedSignal | DenseSignal | CarriedSignal
"""Signals with a whole distribution at each position."""


@dataclass(frozen=True)
class StudentRows:
    """The student at its predicted positions.

    Attributes:
        hidden: Last hidden states.
        head: Projects them to logits.
        batch: The tokens.
        positions: The positions.
        vocab_size: Number of logits.
        chunk_size: Positions whose logits are alive at once.
        embed: Input embeddings of token ids [*] as [* D]; None where they cannot be asked for.
    """

    hidden: Float[Tensor, "N D"]
    head: Head
    batch: Batch
    positions: Positions
    vocab_size: int
    chunk_size: int
    embed: Callable[[Tensor], Tensor] | None = None

    @cached_property
    def inputs(self) -> Int[Tensor, " N"]:
        """The token that predicts, at each position."""
        return self.batch.input_ids.flatten()[self.positions.index]

    @cached_property
    def usable(self) -> Bool[Tensor, " N"]:
        """False beside a place of the text that is not predicted: a stretch may be cut short there."""
        return between_predicted(self.batch, self.positions)

    def logprobs(self, rows: Int[Tensor, " n"], temperature: float = 1.0) -> Float[Tensor, "n V"]:
        """Its distributions, softened, with their gradient."""
        return softened(self.head(self.hidden[rows]), temperature)

    def chunks(self, count: int, *vocab_sizes: int) -> Iterator[slice]:
        """Chunks of `count` rows whose logits over vocabularies of these sizes take no more memory."""
        largest = max(self.vocab_size, *vocab_sizes, 1)
        return chunks(count, max(1, self.chunk_size * self.vocab_size // largest))


def between_predicted(batch: Batch, positions: Positions) -> Bool[Tensor, " N"]:
    """Positions whose neighbours in the text are predicted too, where there are some in their segment."""
    starts = (batch.position_ids == 0) | ~batch.attention_mask
    left_out = torch.nn.functional.pad(~starts[:, 1:], (0, 1)).flatten()  # has a next token
    left_out[positions.index] = False
    left_out = torch.nn.functional.pad(left_out, (1, 1))  # place i of the grid is at i + 1
    before = left_out[positions.index]
    after = left_out[positions.index + 2]
    return ~((before & (positions.offsets > 0)) | after)


def own_view(name: str, output: TeacherOutput, student: StudentRows) -> OwnView:
    """A teacher's view in its own vocabulary; position by position if that is the student's.

    Raises:
        ValueError: it has another tokenizer, but brings no view of its own.
    """
    if output.own is not None:
        return output.own
    if isinstance(output.signal, CarriedSignal):
        raise ValueError(
            f"teacher {name!r} has another tokenizer, but does not show its own vocabulary, as one that is asked "
            "about some domains only: leave out its domains, or objective.cross_tokenizer"
        )
    positions = student.positions
    each = torch.arange(len(positions), device=positions.index.device)
    tokens = torch.arange(student.vocab_size, device=each.device)
    return OwnView(
        signal=output.signal,
        inputs=student.inputs,
        labels=positions.labels,
        segments=positions.segments,
        spans=AlignedSpans(each, each, torch.ones_like(each)),  # their bytes are not known, nor asked for
        shared_tokens=tokens.unsqueeze(-1).expand(-1, 2),
    )


def is_trivial(view: OwnView) -> bool:
    """True if each position is a stretch of its own, as `own_view` makes them."""
    return view.spans.student is view.spans.teacher


def full_signal(name: str, signal: TeacherSignal) -> FullSignal:
    """A signal, if it has whole distributions.

    Raises:
        ValueError: it is a list.
    """
    if isinstance(signal, TopKSignal):
        raise ValueError(
            f"teacher {name!r} gives lists of its most probable tokens, but this term compares whole "
            "distributions: run the teacher (cached: false), set cache.mode to hidden_states, or use kind: alm"
        )
    return signal


@torch.no_grad()
def teacher_logprobs(
    signal: FullSignal, rows: Int[Tensor, " n"], temperature: float = 1.0
) -> tuple[Float[Tensor, "n T"], Bool[Tensor, " n"]]:
    """A teacher's distributions at some of its rows, in order, and where they are no distributions.

    There, where its logits hold NaN or +Inf, all entries are 0.
    """
    logprobs = softened(logits_at(signal, rows), temperature * signal.target_temperature)
    bad = logprobs.isnan().any(-1)
    return logprobs.masked_fill_(bad.unsqueeze(-1), 0.0), bad


def teacher_figures(
    signal: FullSignal,
    rows: Int[Tensor, " n"],
    labels: Int[Tensor, " U"],
    boundary: Int[Tensor, " K"] | None,
    temperature: float = 1.0,
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """As `label_and_boundary`; NaN where the teacher's logits are bad."""
    logprobs, bad = teacher_logprobs(signal, rows, temperature)
    of_label, of_boundary = label_and_boundary(logprobs, labels[rows], boundary)
    return of_label.masked_fill(bad, torch.nan), of_boundary.masked_fill(bad, torch.nan)


def vocab_size_of_signal(signal: FullSignal) -> int:
    """Size of the vocabulary that it is over."""
    return signal.logits(slice(0, 0)).shape[-1]


def softened(logits: Float[Tensor, "n V"], temperature: float) -> Float[Tensor, "n V"]:
    """log softmax(logits / temperature), in at least float32."""
    logits = full_precision(logits)
    return (logits if temperature == 1.0 else logits / temperature).log_softmax(-1)


def summed(function: Callable[[slice], tuple[Tensor, ...]], rows: Iterable[slice]) -> tuple[Tensor, ...]:
    """Sums over chunks of what a function gives of each, each under activation checkpointing."""
    parts = [checkpointed(function, chunk) for chunk in rows]
    return tuple(torch.stack(part).sum() for part in zip(*parts, strict=True))


def concatenated(function: Callable[[slice], tuple[Tensor, ...]], rows: Iterable[slice]) -> tuple[Tensor, ...]:
    """Results of a function on chunks, one behind the other, each under activation checkpointing."""
    parts = [checkpointed(function, chunk) for chunk in rows]
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


def checkpointed(function: Callable[[slice], tuple[Tensor, ...]], rows: slice) -> tuple[Tensor, ...]:
    """Result of a function on some rows; its intermediate tensors are made again in backward."""
    if not torch.is_grad_enabled():
        return function(rows)
    values: tuple[Tensor, ...] = checkpoint(function, rows, use_reentrant=False)
    return values

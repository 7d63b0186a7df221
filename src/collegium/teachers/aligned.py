"""A teacher with another tokenizer, made to speak at the student's positions and in its vocabulary.

It reads the same bytes, cut by its own tokenizer, and what it predicts is carried over where that is exact,
approximately where the recipe says so, and else not at all: there `valid` is False, and the other teachers share
its weight. The whole step stays one pass over its logits.

Planning is numpy and a tokenizer, so that workers of the data loader do it (`read`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from collegium.alignment.plan import Aligner, AlignmentPlan, Carry
from collegium.alignment.token_bytes import TokenBytes
from collegium.alignment.vocabulary import VocabularyMap
from collegium.contracts import (
    AlignedSpans,
    Batch,
    Capability,
    OwnView,
    Positions,
    Teacher,
    TeacherOutput,
    predicted_positions,
)
from collegium.data.prepared import PreparedText
from collegium.functional.alignment import CarryRows, LogitCarrier, unknown_share
from collegium.functional.carried_lists import carried_lists
from collegium.functional.teacher_stats import teacher_stats
from collegium.signals import CarriedSignal, ProjectedSignal, TeacherSignal, TopKSignal
from collegium.teachers.cached import CachedTeacher
from collegium.teachers.joined import JoinedText


Approximation = Literal["none", "split", "inside"]
"""What is carried beside what is exact: nothing, the places where the student's next token is several of the
teacher's, or those inside a token of the teacher's too."""

EntropyOf = Literal["carried", "span"]
"""Whose entropy sets a teacher's weight: that of the carried distribution, or the teacher's own over the
tokens of a span, for each of the student's tokens in it."""

CHUNK_ELEMENTS = 2**25
"""Logits alive at once where a teacher's own entropy is taken: 128 MB."""


@dataclass(frozen=True)
class AlignmentPolicy:
    """What is carried of a teacher.

    Attributes:
        approximate: What is carried beside what is exact.
        max_unknown: Share of what the teacher may have written at a place inside one of its tokens that ends
            there; above, nothing is carried. At 1 whatever is known counts as all.
        entropy_of: What sets its weight.
    """

    approximate: Approximation = "inside"
    max_unknown: float = 0.2
    entropy_of: EntropyOf = "carried"


class AlignedTeacher:
    """Any teacher that gives full distributions, for a student with another tokenizer.

    Args:
        teacher: The teacher, at temperature 1, for its own vocabulary.
        aligner: Of the student's vocabulary and the teacher's.
        policy: What is carried.
        joined: The teacher's own text, where it is read from a cache; else it reads the batch's.
        temperatures: That of the weight and that of the target, of the carried distributions.
    """

    def __init__(
        self,
        teacher: Teacher,
        aligner: Aligner,
        policy: AlignmentPolicy,
        *,
        joined: JoinedText | None = None,
        temperatures: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        self.teacher, self.aligner, self._policy = teacher, aligner, policy
        self._highest = {"none": Carry.EXACT, "split": Carry.SPLIT, "inside": Carry.INSIDE}[policy.approximate]
        self._temperatures, self._joined = temperatures, joined
        self._vocab_size = aligner.student.size
        vocabulary = aligner.vocabulary
        first = np.where(vocabulary.first < 0, self._vocab_size, vocabulary.first)
        self._first: Int[Tensor, " T"] = torch.from_numpy(first)
        self._entry_tokens: Int[Tensor, " E"] = torch.from_numpy(vocabulary.tokens)
        self._entry_follows: Int[Tensor, " E"] = torch.from_numpy(vocabulary.follows)
        self._shared: Int[Tensor, "P 2"] = torch.from_numpy(vocabulary.shared)

    @property
    def name(self) -> str:
        """Of the teacher."""
        return self.teacher.name

    @property
    def provides(self) -> frozenset[Capability]:
        """Distributions; inner states stand at other positions than the student's."""
        inner = {Capability.HIDDEN_STATES, Capability.ATTENTION, Capability.GENERATE}
        return self.teacher.provides - inner

    @property
    def fingerprint(self) -> str:
        """Of the teacher, and of the student's vocabulary."""
        return f"{self.teacher.fingerprint}/to:{self.aligner.student.fingerprint}"

    @property
    def is_cached(self) -> bool:
        """Whether it is read from a cache."""
        return isinstance(self.teacher, CachedTeacher)

    @property
    def is_direct(self) -> bool:
        """Whether the tokenizers are one and the same, so that the teacher reads the student's own tokens."""
        return self._joined is None and self.aligner.student.fingerprint == self.aligner.teacher.fingerprint

    def read(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The plan of a batch, as tensors, and what a cache says of it; nothing where it is direct."""
        if self.is_direct:
            return {}
        if self._joined is None:
            names = ("input_ids", "attention_mask", "position_ids")
            tokens, mask, positions = (inputs[name].cpu().numpy() for name in names)
            starts = inputs.get("segment_starts")
            known = None if starts is None else starts.cpu().numpy()
            return _tensors(self.aligner.plan(tokens, mask.astype(bool), positions, known))
        assert isinstance(self.teacher, CachedTeacher), "read by documents"
        plan = _tensors(self.aligner.join(*self._joined.read(inputs)))
        return {**plan, **{_CACHED + name: values for name, values in self.teacher.read(plan).items()}}

    def score(self, batch: Batch, positions: Positions, *, need: frozenset[Capability]) -> TeacherOutput:
        """Distributions at the student's positions. See `collegium.contracts.Teacher`."""
        if self.is_direct:
            return self._direct(batch, positions, need)
        stored = batch.stored.get(self.name)
        if stored is None:
            stored = self.read(vars(batch))
        device = batch.input_ids.device
        plan = _Plan({name: tensor.to(device) for name, tensor in stored.items()})
        own_batch = plan.batch(self.name)
        own_positions = predicted_positions(own_batch)
        signal = self.teacher.score(own_batch, own_positions, need=need & self.provides).signal
        places = _places(batch, positions)
        rows = self._rows(plan, places, positions.labels)
        kinds, spans = plan.kinds[places], plan.spans(places)
        valid = self._valid(signal, rows, kinds)
        entropy = self._span_entropy(signal, own_positions, spans)
        rows = _without(rows, ~valid)
        carried: TeacherSignal
        if isinstance(signal, TopKSignal):
            carried = self._of_lists(signal, own_positions.labels, rows, valid, entropy)
        else:
            weight_temperature, target_temperature = self._temperatures
            carried = CarriedSignal(
                LogitCarrier(signal, own_positions.labels, self._first.to(device), rows, self._vocab_size),
                weight_temperature=weight_temperature,
                target_temperature=target_temperature,
                valid=valid,
                entropy=entropy,
                exact=kinds == Carry.EXACT,
            )
        segments = _segment_numbers(batch)[plan.teacher_segments]
        own = OwnView(
            signal=signal,
            inputs=own_batch.input_ids.flatten()[own_positions.index],
            labels=own_positions.labels,
            segments=segments,
            spans=spans,
            shared_tokens=self._shared.to(device),
            embed=getattr(self.teacher, "embed", None),
        )
        return TeacherOutput(carried, own=own)

    def _direct(self, batch: Batch, positions: Positions, need: frozenset[Capability]) -> TeacherOutput:
        output = self.teacher.score(batch, positions, need=need)
        if isinstance(output.signal, TopKSignal):
            return output
        weight, target = self._temperatures
        signal = replace(output.signal, weight_temperature=weight, target_temperature=target)
        return replace(output, signal=signal)

    def _rows(self, plan: "_Plan", places: Int[Tensor, " N"], labels: Int[Tensor, " N"]) -> CarryRows:
        """Where the distributions at these places come from."""
        main, before, chain, entries = plan.carried_from(places)
        self._entry_tokens, self._entry_follows = (
            table.to(places.device) for table in (self._entry_tokens, self._entry_follows)
        )
        counts = entries[1] - entries[0]
        place = torch.repeat_interleave(torch.arange(len(places), device=places.device), counts)
        within = torch.arange(len(place), device=places.device) - (counts.cumsum(0) - counts)[place]
        entry = entries[0][place] + within
        return CarryRows(main, before, chain, labels, place, self._entry_tokens[entry], self._entry_follows[entry])

    def _of_lists(
        self, signal: TopKSignal, own_labels: Tensor, rows: CarryRows, valid: Tensor, entropy: Tensor | None
    ) -> TopKSignal:
        """Lists over the student's vocabulary."""
        carried = carried_lists(signal, own_labels, self._first.to(valid.device), rows, self._vocab_size)
        known = valid if carried.valid is None else valid & carried.valid
        return replace(carried, valid=known, entropy=carried.entropy if entropy is None else entropy)

    def _valid(self, signal: TeacherSignal, rows: CarryRows, kinds: Int[Tensor, " N"]) -> Bool[Tensor, " N"]:
        """Where something is carried."""
        is_drawn = isinstance(signal, TopKSignal) and signal.drawn  # draws are right on average, quotients are not
        valid: Bool[Tensor, " N"] = kinds <= int(Carry.EXACT if is_drawn else self._highest)
        inside = valid & (kinds == Carry.INSIDE)
        if self._policy.max_unknown < 1.0 and isinstance(signal, ProjectedSignal) and bool(inside.any()):
            valid = valid & ~(inside & (unknown_share(signal, rows, inside) > self._policy.max_unknown))
        return valid

    def _span_entropy(
        self, signal: TeacherSignal, own_positions: Positions, spans: AlignedSpans
    ) -> Float[Tensor, " N"] | None:
        """The teacher's own entropy over each span, shared out among the student's tokens in it."""
        if isinstance(signal, TopKSignal) and self._policy.entropy_of == "span":
            return per_student_token(signal.entropy, spans)
        if self._policy.entropy_of == "carried":
            return None
        size = max(1, CHUNK_ELEMENTS // self.aligner.teacher.size)
        entropy = teacher_stats([signal], own_positions.labels, chunk_size=size).entropy.squeeze(-1)  # [U]
        return per_student_token(entropy, spans)


def align(
    teacher: Teacher,
    student_tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: PreTrainedTokenizerBase,
    *,
    policy: AlignmentPolicy | None = None,
    text: PreparedText | None = None,
    temperatures: tuple[float, float] = (1.0, 1.0),
) -> AlignedTeacher:
    """A teacher for a student with another tokenizer.

    Args:
        teacher: The teacher, at temperature 1, for its own vocabulary.
        student_tokenizer: The student's.
        teacher_tokenizer: The teacher's own.
        policy: What is carried.
        text: Prepared with its tokenizer, of a teacher that is read from a cache.
        temperatures: That of the weight and that of the target, of the carried distributions.

    Raises:
        DataError: the tokens of one do not keep all of the text.
    """
    student, own = TokenBytes(student_tokenizer), TokenBytes(teacher_tokenizer)
    aligner = Aligner(student, own, VocabularyMap.of(student, own))
    joined = None if text is None else JoinedText(text, aligner)
    return AlignedTeacher(teacher, aligner, policy or AlignmentPolicy(), joined=joined, temperatures=temperatures)


_CACHED = "cached/"
"""What a cache says is stored under its own names with this before them."""


def _tensors(plan: AlignmentPlan) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in vars(plan).items()}


def per_student_token(entropy: Float[Tensor, " U"], spans: AlignedSpans) -> Float[Tensor, " N"]:
    """Sum of a teacher's entropies over each span, divided by the student's tokens there; NaN in no span.

    Both count the same bytes, so this is the entropy per byte times the student's bytes per token: teachers
    with longer and shorter tokens are compared in one unit.
    """
    num_spans = len(spans.num_bytes)
    of_teacher, of_student = spans.teacher >= 0, spans.student >= 0
    total = entropy.new_zeros(num_spans).index_add_(0, spans.teacher[of_teacher], entropy[of_teacher])
    tokens = torch.bincount(spans.student[of_student], minlength=num_spans).clamp_min(1)
    mean = torch.nn.functional.pad(total / tokens, (0, 1), value=torch.nan)  # the last is what -1 points at
    return mean[spans.student]


class _Plan:
    """The plan of a batch on the device."""

    def __init__(self, stored: Mapping[str, Tensor]) -> None:
        self._stored = stored
        self.kinds: Int[Tensor, " F"] = stored["kinds"]
        self.teacher_segments: Int[Tensor, " U"] = stored["teacher_segments"]

    def batch(self, name: str) -> Batch:
        """The same text as the teacher's tokens, with what was read of it."""
        stored = self._stored
        own = Batch.of_text(stored["input_ids"], stored["attention_mask"], stored["position_ids"])
        cached = {key.removeprefix(_CACHED): v for key, v in stored.items() if key.startswith(_CACHED)}
        return replace(own, stored={name: cached}) if cached else own

    def carried_from(self, places: Int[Tensor, " N"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Main, before and chain of these places, [N] each, and their entries, [2 N]."""
        main, before, chain = (self._stored[name][places] for name in ("main", "before", "chain"))
        return main, before, chain, self._stored["entries"][:, places]

    def spans(self, places: Int[Tensor, " N"]) -> AlignedSpans:
        """Common stretches, at these places of the student's."""
        return AlignedSpans(
            self._stored["student_spans"][places], self._stored["teacher_spans"], self._stored["span_bytes"]
        )


def _places(batch: Batch, positions: Positions) -> Int[Tensor, " N"]:
    """Which of the positions with a next token in their segment these are."""
    starts = (batch.position_ids == 0) | ~batch.attention_mask
    follows = torch.nn.functional.pad(~starts[:, 1:], (0, 1))
    return (follows.flatten().cumsum(0) - 1)[positions.index]


def _segment_numbers(batch: Batch) -> Int[Tensor, " segments"]:
    """Number of each segment of text, as `Positions.segments` counts them with those of padding."""
    starts = (batch.position_ids == 0).flatten()
    return starts.cumsum(0)[starts & batch.attention_mask.flatten()]


def _without(rows: CarryRows, absent: Bool[Tensor, " N"]) -> CarryRows:
    """The same with nothing carried to some places."""
    kept = ~absent[rows.entry_rows]
    return CarryRows(
        rows.main.masked_fill(absent, -1),
        rows.before.masked_fill(absent, -1),
        rows.chain.masked_fill(absent, 0),
        rows.labels,
        rows.entry_rows[kept],
        rows.entry_tokens[kept],
        rows.entry_follows[kept],
    )


def shares(plan: AlignmentPlan) -> dict[str, float]:
    """Share of the positions that are reached in each way, by its name in lower case."""
    counts: NDArray[Any] = np.bincount(plan.kinds, minlength=len(Carry))
    return {kind.name.lower(): float(counts[kind] / max(1, counts.sum())) for kind in Carry}

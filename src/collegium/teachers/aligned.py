"""A teacher with another tokenizer, made to speak at the student's positions and in its vocabulary.

It reads the same bytes, cut by its own tokenizer. Its predictions are carried over where that is exact,
approximately where the recipe says so, and nowhere else: there `valid` is False, and the other teachers share
its weight. The step remains one pass over its logits.

Planning takes numpy and a tokenizer only, so workers of the data loader do it (`read`).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from collegium.alignment.carried_lists import carried_lists, certain_elsewhere, unknown_share_at_most
from collegium.alignment.carry import CarryRows, LabelsElsewhere, LogitCarrier, unknown_share
from collegium.alignment.edit_distance import nearest_tokens
from collegium.alignment.meeting import Carry, Text
from collegium.alignment.plan import Aligner, AlignmentPlan, Reading
from collegium.fused.teacher_stats import teacher_stats
from collegium.signals.contracts import (
    Batch,
    Capability,
    NextTokens,
    Positions,
    Teacher,
    TeacherOutput,
    predicted_positions,
)
from collegium.signals.inner_states import InnerLayers
from collegium.signals.own_vocabulary import OwnView, OwnVocabulary
from collegium.signals.signals import (
    CarriedSignal,
    Carrier,
    DenseSignal,
    ProjectedSignal,
    TeacherSignal,
    TopKSignal,
)
from collegium.teachers.batch_plan import (
    READ_AHEAD,
    BatchPlan,
    per_student_token,
    places_of,
    segment_numbers,
    tensors_of,
    without,
    without_entries,
)
from collegium.teachers.defaults import cannot_write, require_provided


Approximation = Literal["none", "split", "inside"]
"""Places that are carried beside the exact ones: none; those where the student's next token is several of the
teacher's; or those inside a token of the teacher's too."""

CarryBy = Literal["prefix", "min_ed"]
"""Rule by which a token's probability finds its student token: the first one that its bytes are cut into, or the
one that is spelt most alike, with the text's own next token wherever tokens are not one to one (FuseLLM)."""

EntropyOf = Literal["carried", "span"]
"""Entropy that sets a teacher's weight: that of the carried distribution, or the teacher's own over the tokens of
a span, shared out among the student's tokens in it."""

CHUNK_ELEMENTS = 2**25
"""Logits alive at once while a teacher's own entropy is taken: 128 MB."""


class TextReader(Protocol):
    """Finds the text of a student's batch in text that a teacher has read before."""

    def read(self, inputs: Mapping[str, Tensor]) -> tuple[list[Text], Reading]:
        """Return the student's segments, and the teacher's blocks in which they lie."""
        ...


@dataclass(frozen=True)
class AlignmentPolicy:
    """The part of a teacher's predictions that is carried over.

    Attributes:
        by: Rule by which a token's probability finds its student token. The next two are for `prefix`.
        approximate: Places that are carried beside the exact ones.
        max_unknown: Share of a teacher's continuations at a place inside one of its tokens that may end there,
            and so say nothing of the student's next token; above, nothing is carried. At 1 whatever is known
            counts as all.
        entropy_of: Entropy that sets its weight.
    """

    by: CarryBy = "prefix"
    approximate: Approximation = "inside"
    max_unknown: float = 0.2
    entropy_of: EntropyOf = "carried"


class AlignedTeacher:
    """Any teacher that gives full distributions, for a student with another tokenizer.

    Args:
        teacher: The teacher, at temperature 1, for its own vocabulary.
        aligner: Aligner of the student's vocabulary and the teacher's.
        policy: The part of its predictions that is carried.
        by_documents: Finds the batch in the teacher's own text, if the teacher is read from a cache.
        temperatures: Temperatures of the weight and of the target, both of the carried distributions.
    """

    def __init__(
        self,
        teacher: Teacher,
        aligner: Aligner,
        policy: AlignmentPolicy,
        *,
        by_documents: TextReader | None = None,
        temperatures: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        self.teacher = teacher
        self.aligner = aligner
        self._policy = policy
        self._highest = {"none": Carry.EXACT, "split": Carry.SPLIT, "inside": Carry.INSIDE}[policy.approximate]
        self._temperatures = temperatures
        self._by_documents = by_documents
        self._vocab_size = aligner.student.size
        vocabulary = aligner.vocabulary
        first = vocabulary.first
        if policy.by == "min_ed":
            first = nearest_tokens(aligner.student, aligner.teacher, vocabulary)
        # Tokens without a counterpart go to one more than the student's, which is dropped after the sum.
        self._first: Int[Tensor, " T"] = torch.from_numpy(np.where(first < 0, self._vocab_size, first))
        self._entry_tokens: Int[Tensor, " E"] = torch.from_numpy(vocabulary.tokens)
        self._entry_follows: Int[Tensor, " E"] = torch.from_numpy(vocabulary.follows)
        shared = dict(vocabulary.shared.tolist())
        if aligner.student.eos is not None and aligner.teacher.eos is not None:
            shared[aligner.student.eos] = aligner.teacher.eos
        self._shared: Int[Tensor, "P 2"] = torch.tensor(sorted(shared.items()), dtype=torch.int64).reshape(-1, 2)

    @property
    def name(self) -> str:
        """The teacher's name."""
        return self.teacher.name

    @property
    def provides(self) -> frozenset[Capability]:
        """Distributions only: inner states stand at other positions than the student's, and so does its text."""
        inner = {Capability.HIDDEN_STATES, Capability.ATTENTION, Capability.GENERATE}
        return self.teacher.provides - inner

    @property
    def fingerprint(self) -> str:
        """Identity of the teacher and of the student's vocabulary."""
        return f"{self.teacher.fingerprint}/to:{self.aligner.student.fingerprint}"

    @property
    def settings(self) -> Mapping[str, Any]:
        """The teacher's, what is carried of it, and the temperatures of that."""
        weight_temperature, target_temperature = self._temperatures
        carried = {"weight_temperature": weight_temperature, "target_temperature": target_temperature}
        return {**self.teacher.settings, **asdict(self._policy), **carried}

    @property
    def is_cached(self) -> bool:
        """True if the teacher is."""
        return self.teacher.is_cached

    @property
    def domains(self) -> tuple[int, ...] | None:
        """The teacher's domains."""
        return self.teacher.domains

    @property
    def own_vocabulary(self) -> OwnVocabulary | None:
        """The teacher's tokens, unless they are the student's own."""
        if self.is_direct:
            return None
        return OwnVocabulary(self.aligner.student.pieces, self.aligner.teacher.pieces)

    @property
    def native(self) -> Teacher:
        """The wrapped teacher's `native`."""
        return self.teacher.native

    @property
    def underlying_model(self) -> None:
        """None: inner states stand at other positions than the student's."""
        return None

    @property
    def reads_ahead(self) -> bool:
        """True: it cuts the text into its own tokens where batches are made."""
        return not self.is_direct or self.teacher.reads_ahead

    @property
    def is_direct(self) -> bool:
        """True if the tokenizers are the same, so that the teacher reads the student's own tokens."""
        return self._by_documents is None and self.aligner.student.fingerprint == self.aligner.teacher.fingerprint

    def read(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Plan a batch: the plan as tensors, with those that the teacher reads ahead of its own blocks."""
        if self.is_direct:
            return self.teacher.read(inputs)
        plan = tensors_of(self._plan(inputs))
        ahead = self.teacher.read(plan) if self.teacher.reads_ahead else {}
        return {**plan, **{READ_AHEAD + name: values for name, values in ahead.items()}}

    def _plan(self, inputs: Mapping[str, Tensor]) -> AlignmentPlan:
        if self._by_documents is not None:
            return self.aligner.join(*self._by_documents.read(inputs))
        names = ("input_ids", "attention_mask", "position_ids")
        tokens, mask, positions = (inputs[name].cpu().numpy() for name in names)
        starts = inputs.get("segment_starts")
        known = None if starts is None else starts.cpu().numpy()
        return self.aligner.plan(tokens, mask.astype(bool), positions, known)

    def score(self, batch: Batch, positions: Positions, *, need: frozenset[Capability]) -> TeacherOutput:
        """Distributions at the student's positions. See `collegium.signals.contracts.Teacher`."""
        require_provided(self, need)
        if self.is_direct:
            return self._direct(batch, positions, need)
        stored = batch.stored.get(self.name)
        if stored is None:
            stored = self.read(vars(batch))
        self._to(batch.input_ids.device)
        plan = BatchPlan({name: tensor.to(batch.input_ids.device) for name, tensor in stored.items()})
        own_batch = plan.batch(self.name)
        own_positions = predicted_positions(own_batch)
        signal = self.teacher.score(own_batch, own_positions, need=need).signal
        places = places_of(batch, positions)
        spans = plan.spans(places)
        entropy = self._span_entropy(signal, own_positions, plan)
        if self._policy.by == "min_ed":
            carried = self._by_spelling(signal, own_positions.labels, plan, places, positions.labels)
        else:
            carried = self._by_prefix(signal, own_positions.labels, plan, places, positions.labels)
        if entropy is not None:
            # Spans hold tokens without a label too, so entropies are shared out among all and looked up here.
            entropy = entropy[places]
            present = entropy.isfinite()  # some places lie in no span
            carried = replace(carried, entropy=entropy, valid=_and(carried.valid, present))
        # -1, for text of the teacher's that is none of the student's, indexes the last.
        numbers = torch.nn.functional.pad(segment_numbers(batch), (0, 1), value=-1)
        segments = numbers[plan.teacher_segments]
        model = self.teacher.underlying_model
        own = OwnView(
            signal=signal,
            inputs=own_batch.input_ids.flatten()[own_positions.index],
            labels=own_positions.labels,
            segments=segments,
            spans=spans,
            shared_tokens=self._shared,
            embed=None if model is None else model.embed,
        )
        return TeacherOutput(carried, own=own)

    def limit_inner_states(self, layers: InnerLayers) -> None:
        """Do nothing: inner states are not given."""

    def next_tokens(self, max_new_tokens: int) -> NextTokens:
        """Refuse: its text is in other tokens than the student's. `native` writes."""
        raise cannot_write(self)

    def _by_prefix(
        self, signal: TeacherSignal, own_labels: Tensor, plan: BatchPlan, places: Tensor, labels: Tensor
    ) -> CarriedSignal | TopKSignal:
        """Carry what is exact, and as much of the rest as the policy says."""
        rows = plan.rows(places, labels, self._entry_tokens, self._entry_follows)
        kinds = plan.kinds[places]
        valid = self._valid(signal, rows, kinds)
        rows = without(rows, ~valid)
        if isinstance(signal, TopKSignal):
            listed = carried_lists(signal, own_labels, self._first, rows, self._vocab_size)
            return replace(listed, valid=_and(listed.valid, valid))
        carrier = LogitCarrier(signal, own_labels, self._first, rows, self._vocab_size)
        return self._signal(carrier, valid, kinds == Carry.EXACT)

    def _by_spelling(
        self, signal: TeacherSignal, own_labels: Tensor, plan: BatchPlan, places: Tensor, labels: Tensor
    ) -> CarriedSignal | TopKSignal:
        """Carry to the token spelt most alike where tokens are one to one, else to the text's own (FuseLLM)."""
        carried = plan.one_to_one[places]
        rows = without(plan.rows(places, labels, self._entry_tokens, self._entry_follows), ~carried)
        rows = replace(without_entries(rows), chain=torch.zeros_like(rows.chain))
        if isinstance(signal, TopKSignal):
            listed = carried_lists(signal, own_labels, self._first, rows, self._vocab_size)
            return certain_elsewhere(listed, labels, carried)
        carrier = LogitCarrier(signal, own_labels, self._first, rows, self._vocab_size)
        return self._signal(LabelsElsewhere(carrier, labels, carried), torch.ones_like(carried), carried)

    def _signal(self, carrier: Carrier, valid: Tensor, exact: Tensor) -> CarriedSignal:
        weight, target = self._temperatures
        return CarriedSignal(
            carrier, weight_temperature=weight, target_temperature=target, valid=valid, exact=exact
        )

    def _to(self, device: torch.device) -> None:
        """Move the tables to a device; only the first call does anything."""
        for name in ("_first", "_entry_tokens", "_entry_follows", "_shared"):
            setattr(self, name, getattr(self, name).to(device))

    def _direct(self, batch: Batch, positions: Positions, need: frozenset[Capability]) -> TeacherOutput:
        output = self.teacher.score(batch, positions, need=need)
        if isinstance(output.signal, TopKSignal):  # lists serve only the temperature that they were made at
            return output
        weight, target = self._temperatures
        signal = replace(output.signal, weight_temperature=weight, target_temperature=target)
        return replace(output, signal=signal)

    def _valid(self, signal: TeacherSignal, rows: CarryRows, kinds: Int[Tensor, " N"]) -> Bool[Tensor, " N"]:
        """Mark the places to which something is carried."""
        # Draws are right on average, but a quotient of them is not: only what is exact needs none.
        is_drawn = isinstance(signal, TopKSignal) and signal.drawn
        valid: Bool[Tensor, " N"] = kinds <= int(Carry.EXACT if is_drawn else self._highest)
        inside = valid & (kinds == Carry.INSIDE)
        if not bool(inside.any()):
            return valid
        if isinstance(signal, TopKSignal):
            return valid & (unknown_share_at_most(signal, rows, inside) <= self._policy.max_unknown)
        if self._policy.max_unknown < 1.0 and isinstance(signal, ProjectedSignal | DenseSignal):
            return valid & (unknown_share(signal, rows, inside) <= self._policy.max_unknown)
        return valid

    def _span_entropy(
        self, signal: TeacherSignal, own_positions: Positions, plan: BatchPlan
    ) -> Float[Tensor, " F"] | None:
        """Share out the teacher's own entropy over each span among all the student's tokens in it.

        Tokens without a label count too.
        """
        if self._policy.entropy_of == "carried":
            return None
        if isinstance(signal, TopKSignal):
            return per_student_token(signal.entropy, plan.spans())
        size = max(1, CHUNK_ELEMENTS // self.aligner.teacher.size)
        entropy = teacher_stats([signal], own_positions.labels, chunk_size=size).entropy.squeeze(-1)  # [U]
        return per_student_token(entropy, plan.spans())


def align(
    teacher: Teacher,
    student_tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: PreTrainedTokenizerBase,
    *,
    policy: AlignmentPolicy | None = None,
    temperatures: tuple[float, float] = (1.0, 1.0),
) -> AlignedTeacher:
    """Align a teacher that runs here to a student with another tokenizer.

    Args:
        teacher: The teacher, at temperature 1, for its own vocabulary.
        student_tokenizer: The student's.
        teacher_tokenizer: The teacher's own.
        policy: The part of its predictions that is carried.
        temperatures: Temperatures of the weight and of the target, both of the carried distributions.

    Raises:
        DataError: the tokens of one do not keep all of the text.
    """
    aligner = Aligner.of(student_tokenizer, teacher_tokenizer)
    return AlignedTeacher(teacher, aligner, policy or AlignmentPolicy(), temperatures=temperatures)


def _and(valid: Tensor | None, other: Tensor) -> Tensor:
    return other if valid is None else valid & other

"""A teacher that is asked about some domains only, and is absent from the others.

It runs, or reads its cache, for the blocks of its own domains: on a batch with one such block in three it costs a
third. So a cache need not hold text that came later, and an earlier student can hold the new one to what it knew,
on chosen text. Where it is absent `valid` is False and the other teachers share its weight; where all are absent,
nothing is distilled.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from collegium.base.errors import DataError
from collegium.signals.contracts import (
    PLACES_IN_DOCUMENTS,
    Batch,
    Capability,
    NextTokens,
    Positions,
    Teacher,
    TeacherOutput,
)
from collegium.signals.inner_states import InnerLayers
from collegium.signals.own_vocabulary import OwnVocabulary
from collegium.signals.signals import (
    CarriedSignal,
    Carrier,
    DenseSignal,
    ProjectedSignal,
    TeacherSignal,
    TopKSignal,
)
from collegium.teachers.defaults import require_provided


class RestrictedTeacher:
    """Any teacher, within its domains.

    Inner states are not given: they are matched at all text. Nor is its own vocabulary, if it has one.

    Args:
        teacher: The teacher.
        domains: Its domains, as `Batch.domain_ids` numbers them.
    """

    def __init__(self, teacher: Teacher, domains: Sequence[int]) -> None:
        self._teacher = teacher
        self._domains = tuple(domains)

    @property
    def name(self) -> str:
        """The teacher's name."""
        return self._teacher.name

    @property
    def provides(self) -> frozenset[Capability]:
        """Everything that the teacher provides but inner states."""
        return self._teacher.provides - {Capability.HIDDEN_STATES, Capability.ATTENTION}

    @property
    def fingerprint(self) -> str:
        """The teacher's fingerprint: its domains change nothing of what it says."""
        return self._teacher.fingerprint

    @property
    def settings(self) -> Mapping[str, Any]:
        """The teacher's, and its domains."""
        return {**self._teacher.settings, "domains": list(self._domains)}

    @property
    def is_cached(self) -> bool:
        """True if the teacher is."""
        return self._teacher.is_cached

    @property
    def domains(self) -> tuple[int, ...]:
        """Its domains."""
        return self._domains

    @property
    def own_vocabulary(self) -> OwnVocabulary | None:
        """The teacher's vocabulary."""
        return self._teacher.own_vocabulary

    @property
    def native(self) -> Teacher:
        """The wrapped teacher's `native`."""
        return self._teacher.native

    @property
    def underlying_model(self) -> None:
        """None: inner states are not given."""
        return None

    @property
    def reads_ahead(self) -> bool:
        """True if the teacher does."""
        return self._teacher.reads_ahead

    def read(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Let the teacher read the blocks of a batch that are of its domains.

        Raises:
            DataError: the batch does not say what domains it is of, or a block is not in the cache.
        """
        own = self._own(inputs.get("domain_ids"))
        names = ("input_ids", "attention_mask", "position_ids", *PLACES_IN_DOCUMENTS)
        # What reading ahead looks at; other fields, such as the weights, have no row for each block.
        given = {name: inputs[name] for name in names if inputs.get(name) is not None}
        return self._teacher.read({name: values[own.to(values.device)] for name, values in given.items()})

    def score(self, batch: Batch, positions: Positions, *, need: frozenset[Capability]) -> TeacherOutput:
        """Distributions in its domains. See `collegium.signals.contracts.Teacher`."""
        require_provided(self, need)
        own = self._own(batch.domain_ids)
        blocks = own.nonzero().squeeze(-1)
        stored = {name: stored for name, stored in batch.stored.items() if name == self.name}
        if not len(blocks) and not self.is_cached:
            # No model runs on an empty batch: some block for the shapes, in which nothing is predicted.
            blocks = torch.zeros(1, dtype=torch.int64, device=own.device)
            stored = {}
        length = batch.input_ids.shape[1]
        valid = own[positions.index // length]
        place = own.cumsum(0) - 1  # number of each block among its own
        index = positions.index[valid]
        within = Positions(
            index=place[index // length] * length + index % length,
            labels=positions.labels[valid],
            segments=positions.segments[valid],
            offsets=positions.offsets[valid],
            domains=None if positions.domains is None else positions.domains[valid],
        )
        part = Batch(
            input_ids=batch.input_ids[blocks],
            attention_mask=batch.attention_mask[blocks],
            labels=batch.labels[blocks],
            position_ids=batch.position_ids[blocks],
            sample_ids=batch.sample_ids[blocks],
            domain_ids=None if batch.domain_ids is None else batch.domain_ids[blocks],
            stored=stored,
            document_ids=None if batch.document_ids is None else batch.document_ids[blocks],
            segment_starts=None if batch.segment_starts is None else batch.segment_starts[blocks],
            segment_ends=None if batch.segment_ends is None else batch.segment_ends[blocks],
        )
        return TeacherOutput(spread(self._teacher.score(part, within, need=need).signal, valid))

    def limit_inner_states(self, layers: InnerLayers) -> None:
        """Do nothing: inner states are not given."""

    def next_tokens(self, max_new_tokens: int) -> NextTokens:
        """Continue prompts of any domain: callers look at `domains` first, as a prompt does not name its own."""
        return self._teacher.next_tokens(max_new_tokens)

    def _own(self, domain_ids: Tensor | None) -> Tensor:
        if domain_ids is None:
            raise DataError(
                f"teacher {self.name!r} is for some domains, but the batch does not say of which it is: "
                "make batches with BlockCollator(domains=[...])"
            )
        return torch.isin(domain_ids, domain_ids.new_tensor(self.domains))


@dataclass(frozen=True)
class SpreadCarrier:
    """A carrier of n positions, spread over the N of which `rows` [N] marks n; uniform elsewhere."""

    carrier: Carrier
    rows: Bool[Tensor, " N"]

    def __len__(self) -> int:
        return len(self.rows)

    def __call__(self, rows: slice) -> Tensor:
        """Return log-probabilities at these of the N positions."""
        here = self.rows[rows]
        start = int(self.rows[: rows.start].sum())
        own = self.carrier(slice(start, start + int(here.sum())))
        return own.new_zeros((len(here), own.shape[1])).masked_scatter_(here.unsqueeze(-1), own)

    def to(self, device: torch.device) -> "SpreadCarrier":
        """The same with its tensors on `device`."""
        return SpreadCarrier(self.carrier.to(device), self.rows.to(device))


def spread(signal: TeacherSignal, valid: Tensor) -> TeacherSignal:
    """Spread a signal of n positions over the N of which `valid` [N] marks n; elsewhere the teacher is absent."""
    marked = valid
    rows = valid.nonzero().squeeze(-1)

    def over_all(values: Tensor, fill: float = 0.0) -> Tensor:
        return values.new_full((len(valid), *values.shape[1:]), fill).index_copy(0, rows, values)

    if signal.valid is not None:
        valid = over_all(signal.valid)
    if isinstance(signal, ProjectedSignal):
        return replace(signal, hidden=over_all(signal.hidden), valid=valid)
    if isinstance(signal, DenseSignal):
        return replace(signal, logprobs=over_all(signal.logprobs), valid=valid)
    if isinstance(signal, CarriedSignal):
        return replace(
            signal,
            carrier=SpreadCarrier(signal.carrier, marked),
            valid=valid,
            entropy=None if signal.entropy is None else over_all(signal.entropy),
            exact=None if signal.exact is None else over_all(signal.exact),
        )
    lists: dict[str, Any] = {
        field.name: over_all(value, -1 if field.name == "token_ids" else 0.0)
        for field in fields(TopKSignal)
        if isinstance(value := getattr(signal, field.name), Tensor)
    }
    lists["valid"] = valid
    return replace(signal, **lists)

"""The types that cross rooms: batches, positions, teachers and their answers.

Shape legend, used in the whole package:

    B sequences, S tokens per sequence, N predicted positions of the batch, n positions of one
    chunk, V student vocabulary, M teachers, D student width, E teacher width.

Logits never cross a room; `collegium.signals.signals` says why.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from collegium.signals.inner_states import InnerLayers, InnerStates, UnderlyingModel
from collegium.signals.metrics import Mean
from collegium.signals.own_vocabulary import OwnView, OwnVocabulary
from collegium.signals.signals import TeacherSignal


IGNORE_INDEX = -100

PLACES_IN_DOCUMENTS = ("document_ids", "segment_starts", "segment_ends")
"""Fields of a batch that say where its segments lie in their documents."""


class Capability(StrEnum):
    """Something that a teacher can provide and a term of the objective may need."""

    SAMPLES = "samples"
    """Distributions that are right on average: enough for a loss that is linear in its target."""
    TOP_K = "top_k"
    """Distributions that are right at the most probable tokens."""
    FULL_VOCAB = "full_vocab"
    HIDDEN_STATES = "hidden_states"
    ATTENTION = "attention"
    GENERATE = "generate"


@dataclass(frozen=True)
class PositionWeights:
    """Weights of the loss at each predicted position: sum_t kd_t * divergence_t + ce_t * cross_entropy_t.

    Attributes:
        kd: Weight of the divergence from the teachers.
        ce: Weight of the cross-entropy of the label; negative where a label is to become less probable.
    """

    kd: Float[Tensor, " N"]
    ce: Float[Tensor, " N"]


@dataclass(frozen=True)
class Batch:
    """Token blocks. Only `position_ids` say where a document begins: they restart at 0 there.

    Padding is a segment of its own (its positions restart too), so causal attention that keeps
    segments apart needs no further mask, on whichever side the padding is.

    Attributes:
        input_ids: Token ids.
        attention_mask: True on text, False on padding.
        labels: Hugging Face convention: unshifted, -100 where nothing is predicted. The first token
            of a segment is never predicted.
        position_ids: Position of each token in its segment.
        sample_ids: Row of each block in its data set.
        stored: Tensors that teachers read ahead (`Teacher.read`), by teacher.
        domain_ids: Number of each block's domain, if the collator was given their names.
        on_policy: Blocks that the student wrote; None if all come from the corpus.
        weights: Weights of the predicted positions in the loss; None if the objective's own hold everywhere.
        document_ids: Document of each token, -1 on padding; None if it is not known.
        segment_starts: UTF-8 bytes of its document before each token's segment; -1 where they are not known.
        segment_ends: UTF-8 bytes of its document up to the end of each token's segment, likewise.
    """

    input_ids: Int[Tensor, "B S"]
    attention_mask: Bool[Tensor, "B S"]
    labels: Int[Tensor, "B S"]
    position_ids: Int[Tensor, "B S"]
    sample_ids: Int[Tensor, " B"]
    stored: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    domain_ids: Int[Tensor, " B"] | None = None
    on_policy: Bool[Tensor, " B"] | None = None
    weights: PositionWeights | None = None
    document_ids: Int[Tensor, "B S"] | None = None
    segment_starts: Int[Tensor, "B S"] | None = None
    segment_ends: Int[Tensor, "B S"] | None = None

    @classmethod
    def from_inputs(cls, inputs: Mapping[str, Any]) -> "Batch":
        """Build a batch from the collator's dict of tensors."""
        return cls(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"].bool(),
            labels=inputs["labels"],
            position_ids=inputs["position_ids"],
            sample_ids=inputs["sample_ids"],
            stored=inputs.get("stored", {}),
            domain_ids=inputs.get("domain_ids"),
            on_policy=inputs.get("on_policy"),
            weights=inputs.get("weights"),
            document_ids=inputs.get("document_ids"),
            segment_starts=inputs.get("segment_starts"),
            segment_ends=inputs.get("segment_ends"),
        )

    @classmethod
    def of_text(
        cls,
        input_ids: Int[Tensor, "B S"],
        attention_mask: Bool[Tensor, "B S"],
        position_ids: Int[Tensor, "B S"],
    ) -> "Batch":
        """Build a batch of plain text: every token is predicted but the first of each segment."""
        is_predicted = attention_mask & (position_ids != 0)
        return cls(
            input_ids=input_ids,
            attention_mask=attention_mask,
            labels=input_ids.masked_fill(~is_predicted, IGNORE_INDEX),
            position_ids=position_ids,
            sample_ids=torch.arange(len(input_ids), device=input_ids.device),
        )

    def blocks_at(self, index: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
        """Block of each place in the flattened B*S grid."""
        return index // self.input_ids.shape[1]


@dataclass(frozen=True)
class Positions:
    """The N predicted positions of a batch, in reading order.

    Attributes:
        index: Index into the flattened B*S grid of the token that predicts.
        labels: Token to be predicted; never -100.
        segments: Segment (document inside a block) of each position; grows by one at each border.
        offsets: Position of the predicting token in its segment.
        domains: Number of the domain of each position's block, if the batch says it.
    """

    index: Int[Tensor, " N"]
    labels: Int[Tensor, " N"]
    segments: Int[Tensor, " N"]
    offsets: Int[Tensor, " N"]
    domains: Int[Tensor, " N"] | None = None

    def __len__(self) -> int:
        return self.index.shape[0]

    def select(self, states: Float[Tensor, "B S D"]) -> Float[Tensor, "N D"]:
        """Rows of `states` [B S D] at these positions, as [N D]."""
        return states.reshape(-1, states.shape[-1]).index_select(0, self.index)


@dataclass(frozen=True)
class TeacherOutput:
    """A teacher's answer to one batch, from `Teacher.score`.

    Attributes:
        signal: Distributions over the student's vocabulary at the student's positions.
        features: Inner states, if they were asked for.
        own: The same in the teacher's own vocabulary, where it has another tokenizer than the student.
    """

    signal: TeacherSignal
    features: InnerStates | None = None
    own: OwnView | None = None


@dataclass(frozen=True)
class TeacherStats:
    """Figures of each teacher at each position, which a weighting may look at.

    Attributes:
        entropy: Entropy in nats of the distribution at the weight temperature.
        cross_entropy: -log probability of the label at the target temperature, for weightings that read it.
        weight_cross_entropy: The same at the weight temperature: its mean equals the mean entropy where
            that temperature is fitted.
        valid: False where a teacher is absent: it said so, or its logits hold NaN or +Inf.
    """

    entropy: Float[Tensor, "N M"]
    cross_entropy: Float[Tensor, "N M"]
    weight_cross_entropy: Float[Tensor, "N M"]
    valid: Bool[Tensor, "N M"]


@dataclass(frozen=True)
class LossOutput:
    """The loss of one micro-batch, already divided by the global count, and what to log."""

    loss: Float[Tensor, ""]
    metrics: dict[str, Mean] = field(default_factory=dict)


@dataclass(frozen=True)
class ItemCounts:
    """Global counts of one optimizer step: what every term of the loss is divided by, once.

    Attributes:
        predicted: Predicted positions of all micro-batches and ranks.
        attended: Text positions (not padding) of the same; what feature terms are divided by.
    """

    predicted: Tensor
    attended: Tensor


@dataclass(frozen=True)
class NextToken:
    """A teacher's distribution of the next token of each sequence.

    Attributes:
        logprobs: At its target temperature.
        entropy: In nats, at its weight temperature; not finite where the teacher is absent.
    """

    logprobs: Float[Tensor, "R V"]
    entropy: Float[Tensor, " R"]


class NextTokens(Protocol):
    """A continuation in progress, with a key-value cache of its own."""

    def prefill(self, input_ids: Int[Tensor, "R P"], attention_mask: Bool[Tensor, "R P"]) -> NextToken:
        """Read the prompts, padded on the left."""
        ...

    def step(self, tokens: Int[Tensor, " R"]) -> NextToken:
        """Read one more token of each sequence."""
        ...

    def score(
        self, continuations: Int[Tensor, "R C T"], attended: Bool[Tensor, "R C T"]
    ) -> Float[Tensor, "R C T"]:
        """Log-probabilities of C continuations of each prompt at temperature 1, 0 on padding."""
        ...


@runtime_checkable
class Teacher(Protocol):
    """Anything that can score tokens: local, cached, served, or with another tokenizer.

    `collegium.teachers.defaults.TeacherDefaults` answers for a kind that has nothing special to say.
    """

    @property
    def name(self) -> str:
        """Name in recipes, metrics and errors."""
        ...

    @property
    def provides(self) -> frozenset[Capability]:
        """Capabilities that `score` can be asked for, and `next_tokens` where it has GENERATE."""
        ...

    @property
    def fingerprint(self) -> str:
        """Identity of weights, revision and tokenizer."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """All that decides its distributions beside its fingerprint, such as temperatures, as plain values."""
        ...

    @property
    def is_cached(self) -> bool:
        """True if it is read from a cache, and so knows stored text only."""
        ...

    @property
    def domains(self) -> tuple[int, ...] | None:
        """Domains that it speaks about, numbered as in `Batch.domain_ids`; absent elsewhere. None: all of them."""
        ...

    @property
    def own_vocabulary(self) -> OwnVocabulary | None:
        """Its tokens beside the student's, if its tokenizer is another one."""
        ...

    @property
    def native(self) -> "Teacher":
        """The teacher as it is by itself: in its own vocabulary and about all text. Usually the same object."""
        ...

    @property
    def underlying_model(self) -> UnderlyingModel | None:
        """The model whose inner states `score` gives; None if it never does, as where tokens are others."""
        ...

    @property
    def reads_ahead(self) -> bool:
        """True if `read` prepares a batch before it is scored; workers of the data loader then call it."""
        ...

    def read(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Prepare a batch of the collator: tensors for `Batch.stored`. `score` does it if nobody did.

        Raises:
            DataError: it knows nothing of this text.
        """
        ...

    def limit_inner_states(self, layers: InnerLayers) -> None:
        """Let `score` give inner states of these layers only from now on, which saves memory."""
        ...

    def score(self, batch: Batch, positions: Positions, *, need: frozenset[Capability]) -> TeacherOutput:
        """Distributions at `positions`, and inner states if `need` asks for them.

        Raises:
            TeacherError: it does not provide what is needed.
        """
        ...

    def next_tokens(self, max_new_tokens: int) -> NextTokens:
        """Begin to continue a batch of prompts by at most so many tokens, of whatever domain they are.

        Raises:
            TeacherError: it does not provide GENERATE.
        """
        ...


def predicts(batch: Batch) -> Bool[Tensor, "B S"]:
    """True where `batch` predicts: the only shift of labels, and the only place that reads -100.

    Position t of a block predicts token t + 1 where that token has a label and belongs to the same
    segment.
    """
    found = (batch.labels[:, 1:] != IGNORE_INDEX) & (batch.position_ids[:, 1:] != 0)  # [B S-1]
    return torch.nn.functional.pad(found, (0, 1))


def predicted_positions(batch: Batch) -> Positions:
    """Find where `batch` predicts, and what. Waits for the device, which must say how many there are."""
    index = predicts(batch).flatten().nonzero().squeeze(-1)  # [N]
    segments = (batch.position_ids == 0).flatten().cumsum(0)  # [B*S]
    return Positions(
        index=index,
        labels=batch.labels.flatten()[index + 1],
        segments=segments[index],
        offsets=batch.position_ids.flatten()[index],
        domains=None if batch.domain_ids is None else batch.domain_ids[batch.blocks_at(index)],
    )

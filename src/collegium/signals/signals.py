"""Signals of teachers: distributions at each position, and the heads that turn hidden states into logits.

Shapes are those of `collegium.signals.contracts`. Logits never cross a room: a `ProjectedSignal` holds hidden
states and a `Head`, so that [n V] tensors exist one chunk and one teacher at a time. For V = 49,152 and N = 1,024
a `DenseSignal` is 201 MB per teacher, a projected one of width 576 is 2.4 MB.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


Head = Callable[[Tensor], Tensor]
"""Maps hidden states [n D] to logits [n V]."""


@dataclass(frozen=True)
class LinearHead:
    """The formula of a head that is no more than cap(scale * (hidden @ weight^T + bias)).

    Attributes:
        weight: Rows beyond `vocab_size` are padding.
        bias: Added to the product, if there is one.
        vocab_size: Number of logits.
        scale: Multiplies the logits.
        softcap: Bounds them to (-softcap, softcap) by tanh, after the scale.
    """

    weight: Float[Tensor, "P D"]
    bias: Float[Tensor, " P"] | None
    vocab_size: int
    scale: float = 1.0
    softcap: float | None = None

    @property
    def cut(self) -> tuple[Float[Tensor, "V D"], Float[Tensor, " V"] | None]:
        """Weight and bias without the padding."""
        return self.weight[: self.vocab_size], None if self.bias is None else self.bias[: self.vocab_size]


@runtime_checkable
class TransparentHead(Protocol):
    """A head that shows its formula, so that a loss can fuse it."""

    def as_linear(self) -> LinearHead | None:
        """Return the linear map, or None if the module itself must be called."""
        ...


@dataclass(frozen=True)
class ProjectedSignal:
    """A teacher's distributions, not yet projected to the vocabulary.

    Attributes:
        hidden: Last hidden state at each predicted position.
        head: Projects rows of `hidden` to logits over the student's vocabulary.
        weight_temperature: Divides the logits before the entropy that sets the weight is taken.
        target_temperature: Divides the logits of the distribution that is mixed.
        valid: False where the teacher is absent; None: it speaks everywhere.
    """

    hidden: Float[Tensor, "N E"]
    head: Head
    weight_temperature: float = 1.0
    target_temperature: float = 1.0
    valid: Bool[Tensor, " N"] | None = None

    def __len__(self) -> int:
        return self.hidden.shape[0]

    def to(self, device: torch.device) -> "ProjectedSignal":
        """The same signal with its tensors on `device`; the head stays where it is."""
        valid = None if self.valid is None else self.valid.to(device)
        return replace(self, hidden=self.hidden.to(device), valid=valid)

    def logits(self, rows: slice) -> Float[Tensor, "n V"]:
        """Logits of these rows, in the head's dtype whatever the student trains in."""
        with torch.autocast(self.hidden.device.type, enabled=False):
            return self.head(self.hidden[rows])


@dataclass(frozen=True)
class DenseSignal:
    """A teacher's full log-probabilities, for small vocabularies; else like `ProjectedSignal`."""

    logprobs: Float[Tensor, "N V"]
    weight_temperature: float = 1.0
    target_temperature: float = 1.0
    valid: Bool[Tensor, " N"] | None = None

    def __len__(self) -> int:
        return self.logprobs.shape[0]

    def to(self, device: torch.device) -> "DenseSignal":
        """The same signal with its tensors on `device`."""
        valid = None if self.valid is None else self.valid.to(device)
        return replace(self, logprobs=self.logprobs.to(device), valid=valid)

    def logits(self, rows: slice) -> Float[Tensor, "n V"]:
        """Log-probabilities of these rows; a log-softmax leaves them as they are."""
        return self.logprobs[rows]


class Carrier(Protocol):
    """Turns a teacher's distributions over its own vocabulary into distributions over the student's."""

    def __len__(self) -> int: ...

    def __call__(self, rows: slice) -> Float[Tensor, "n V"]:
        """Log-probabilities at these positions; anything finite where the teacher is absent."""
        ...

    def to(self, device: torch.device) -> "Carrier":
        """The same with its tensors on `device`."""
        ...


@dataclass(frozen=True)
class CarriedSignal:
    """Distributions of a teacher with another tokenizer; they exist a chunk at a time.

    Temperatures act on the carried distributions, so that all teachers are softened in one vocabulary.

    Attributes:
        carrier: Makes the distributions.
        weight_temperature: Divides the log-probabilities before the entropy that sets the weight is taken.
        target_temperature: Divides those of the distribution that is mixed.
        valid: False where nothing can be carried.
        entropy: Sets the weight instead of the entropy of the carried distribution; None: that one does.
        exact: True where the carried distribution is exact, not an approximation; for metrics.
    """

    carrier: Carrier
    weight_temperature: float = 1.0
    target_temperature: float = 1.0
    valid: Bool[Tensor, " N"] | None = None
    entropy: Float[Tensor, " N"] | None = None
    exact: Bool[Tensor, " N"] | None = None

    def __len__(self) -> int:
        return len(self.carrier)

    def to(self, device: torch.device) -> "CarriedSignal":
        """The same signal with its tensors on `device`."""
        parts = {"valid": self.valid, "entropy": self.entropy, "exact": self.exact}
        moved: dict[str, Any] = {name: part.to(device) for name, part in parts.items() if part is not None}
        return replace(self, carrier=self.carrier.to(device), **moved)

    def logits(self, rows: slice) -> Float[Tensor, "n V"]:
        """Log-probabilities of these rows; a log-softmax leaves them as they are."""
        return self.carrier(rows)


TailPolicy = Literal["bucket", "uniform", "renormalize"]


@dataclass(frozen=True)
class TopKSignal:
    """The most probable tokens of a teacher, with exact figures of its full distribution.

    An entropy or a label's probability taken from the list alone would be wrong: at k = 64 the list holds
    0.86 of the mass and says 2.0 nats where the truth is 2.9.

    Attributes:
        token_ids: Different ids in each row; -1 fills up a row that lists fewer.
        logprobs: Their log-probabilities under the full distribution, not renormalised.
        entropy: Of the full distribution at the weight temperature.
        label_logprob: Log-probability of the label under the full distribution.
        vocab_size: Student's vocabulary.
        tail: Use of the mass that is not listed. `bucket`: student and teacher are compared on it as on one
            more token, so that the student keeps its own shape within it. `uniform`: every other token gets
            the same share. `renormalize`: the list gets it, which makes a student overconfident.
        tail_logprob: Log of that mass; 1 - sum(exp(logprobs)) if not given.
        weight_label_logprob: `label_logprob` at the weight temperature, where that is another one.
        kd_temperature: Softened the listed distribution; a loss at another one cannot use it.
        drawn: True if the list was drawn from the distribution, and is right on average only.
        valid: False where the teacher is absent; None: it speaks everywhere.
    """

    token_ids: Int[Tensor, "N K"]
    logprobs: Float[Tensor, "N K"]
    entropy: Float[Tensor, " N"]
    label_logprob: Float[Tensor, " N"]
    vocab_size: int
    tail: TailPolicy = "bucket"
    tail_logprob: Float[Tensor, " N"] | None = None
    weight_label_logprob: Float[Tensor, " N"] | None = None
    kd_temperature: float = 1.0
    drawn: bool = False
    valid: Bool[Tensor, " N"] | None = None

    def __len__(self) -> int:
        return self.token_ids.shape[0]

    def map(self, change: Callable[[Tensor], Tensor]) -> "TopKSignal":
        """The same signal with each of its tensors changed."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        changed: dict[str, Any] = {n: change(v) for n, v in values.items() if isinstance(v, Tensor)}
        return replace(self, **changed)

    def to(self, device: torch.device) -> "TopKSignal":
        """The same signal with its tensors on `device`."""
        return self.map(lambda tensor: tensor.to(device))


TeacherSignal = ProjectedSignal | DenseSignal | CarriedSignal | TopKSignal

"""Teachers that run in this process.

A teacher runs its trunk once a batch and hands over hidden states with its head; logits are made later, a chunk
at a time. Adapters over one base share its weights: five adapter teachers of a 135M model hold 0.54 GB of float32
once, not five times.
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor
from transformers import PreTrainedModel

from collegium.base.errors import DataError
from collegium.fused.products import FastLinear
from collegium.losses.divergences import entropy
from collegium.losses.precision import full_precision
from collegium.models.adapters import put_adapter
from collegium.models.decoding import Decoder
from collegium.models.head import ProjectionHead
from collegium.models.inner_states import attention_shape, recording
from collegium.models.pretrained import causal_lm_of, last_hidden_states, reads_documents_alone, trunk_of
from collegium.signals.contracts import Batch, Capability, NextToken, Positions, TeacherOutput
from collegium.signals.inner_states import AttentionShape, InnerLayers, UnderlyingModel
from collegium.signals.signals import Head, ProjectedSignal
from collegium.teachers.defaults import TeacherDefaults, require_provided


@dataclass
class SharedBase:
    """One base model and the adapters that were put on it; None selects the base itself."""

    model: PreTrainedModel | PeftModel
    _selected: tuple[str | None] | None = None  # None: nothing yet; (None,): the base itself

    def add_adapter(self, path: str, name: str, *, revision: str | None = None) -> None:
        """Load a PEFT adapter under `name`.

        Raises:
            DataError: it cannot be read, does not fit the base, or changes it.
        """
        self.model = put_adapter(self.model, path, name, revision=revision)
        self.model.to(self.causal_lm.dtype)  # an adapter of another type would be slower
        self._selected = None

    def select(self, adapter: str | None) -> None:
        """Let later calls of the model use this adapter, or none."""
        if not isinstance(self.model, PeftModel) or (self._selected and self._selected[0] == adapter):
            return
        tuner = cast(BaseTuner, self.model.base_model)
        if adapter is None:
            tuner.disable_adapter_layers()
        else:
            tuner.enable_adapter_layers()
            self.model.set_adapter(adapter)
        self.model.requires_grad_(False)  # set_adapter marks the adapter as trainable
        self._selected = (adapter,)

    @property
    def causal_lm(self) -> PreTrainedModel:
        """The model below any adapter."""
        return causal_lm_of(self.model)


@dataclass(frozen=True)
class AdapterHead:
    """A head that may itself hold adapters: it selects its own before projecting."""

    head: ProjectionHead
    base: SharedBase
    adapter: str | None

    def __call__(self, hidden: Float[Tensor, "n E"]) -> Float[Tensor, "n V"]:
        """Logits with this teacher's adapter."""
        self.base.select(self.adapter)
        return self.head(hidden)


class LocalTeacher(TeacherDefaults):
    """A frozen Hugging Face causal language model, or an adapter over one.

    Args:
        name: Name in metrics and errors.
        base: The model, shared with other teachers if they are adapters over it.
        vocab_size: Size of the common vocabulary; logits beyond it are cut.
        fingerprint: Identity of weights, revision and tokenizer.
        adapter: Name of the adapter in `base`; None for the base itself.
        weight_temperature: Divides the logits before the entropy that sets the weight is taken.
        target_temperature: Divides the logits of the distribution that is mixed.
    """

    def __init__(
        self,
        name: str,
        base: SharedBase | PreTrainedModel,
        *,
        vocab_size: int,
        fingerprint: str,
        adapter: str | None = None,
        weight_temperature: float = 1.0,
        target_temperature: float = 1.0,
    ) -> None:
        self.name = name
        self.fingerprint = fingerprint
        self._base = base if isinstance(base, SharedBase) else SharedBase(base)
        self._adapter = adapter
        self._temperatures = (weight_temperature, target_temperature)
        self._inner_layers: InnerLayers | None = None
        self._base.model.requires_grad_(False)
        self._base.model.eval()
        head = ProjectionHead.from_model(self._base.causal_lm, vocab_size)
        # Logits are made later, when another teacher's adapter may be selected: then the head selects its own.
        holds_adapters = isinstance(head.projection, BaseTunerLayer | ModulesToSaveWrapper)
        self._head: Head = AdapterHead(head, self._base, adapter) if holds_adapters else head

    @property
    def settings(self) -> Mapping[str, Any]:
        """Temperatures."""
        weight_temperature, target_temperature = self._temperatures
        return {"weight_temperature": weight_temperature, "target_temperature": target_temperature}

    @property
    def model(self) -> PreTrainedModel | PeftModel:
        """The model, with all adapters that lie on it."""
        return self._base.model

    @cached_property
    def provides(self) -> frozenset[Capability]:
        """Everything; queries, keys and values only of an attention whose layout is known.

        No inner states if each document is read in a row of its own.
        """
        if reads_documents_alone(self._base.model):
            return frozenset(Capability) - {Capability.HIDDEN_STATES, Capability.ATTENTION}
        return frozenset(Capability) - (frozenset() if self._attention else {Capability.ATTENTION})

    @cached_property
    def underlying_model(self) -> UnderlyingModel:
        """The model with its own adapter; other adapters on the base do not count."""
        text = self._base.causal_lm.config.get_text_config()
        return UnderlyingModel(
            hidden_size=int(text.hidden_size),
            num_layers=self._num_layers,
            hidden_layers=frozenset(range(self._num_layers + 1)),
            before_norm=True,
            attention=self._attention,
            embed=self._embed,
            num_parameters=self._num_parameters(),
        )

    @property
    def _num_layers(self) -> int:
        return int(self._base.causal_lm.config.get_text_config().num_hidden_layers)

    @cached_property
    def _attention(self) -> AttentionShape | None:
        try:
            return attention_shape(self._base.causal_lm)
        except DataError:
            return None

    def _num_parameters(self) -> int:
        named = self._base.model.named_parameters()
        return sum(p.numel() for name, p in named if ".lora_" not in name or f".{self._adapter}." in name)

    def limit_inner_states(self, layers: InnerLayers) -> None:
        """Read these layers only. See `collegium.signals.contracts.Teacher`."""
        self._inner_layers = layers

    @torch.no_grad()
    def score(self, batch: Batch, positions: Positions, *, need: frozenset[Capability]) -> TeacherOutput:
        """Run the trunk. See `collegium.signals.contracts.Teacher`."""
        require_provided(self, need)
        self._base.select(self._adapter)
        device = next(self._base.causal_lm.get_input_embeddings().parameters()).device
        layers = self._layers(need)
        record = recording(self._base.model, layers) if layers else nullcontext()
        # The student's autocast must not reach a teacher, whose answers are those of its own type.
        with torch.autocast(batch.input_ids.device.type, enabled=False), FastLinear(), record as read:
            states = last_hidden_states(
                self._base.model, batch.input_ids.to(device), batch.position_ids.to(device)
            )
        hidden = states.to(batch.input_ids.device)  # [B S E]
        weight_temperature, target_temperature = self._temperatures
        signal = ProjectedSignal(
            hidden=positions.select(hidden),
            head=self._head,
            weight_temperature=weight_temperature,
            target_temperature=target_temperature,
        )
        return TeacherOutput(signal, None if read is None else read.states().to(hidden.device))

    @torch.no_grad()
    def _embed(self, token_ids: Int[Tensor, "*"]) -> Float[Tensor, "* E"]:
        embedding = self._base.causal_lm.get_input_embeddings()
        device = next(embedding.parameters()).device
        embedded: Tensor = embedding(token_ids.to(device))
        return embedded.to(token_ids.device)

    def next_tokens(self, max_new_tokens: int) -> "LocalNextTokens":
        """Begin a continuation. See `collegium.signals.contracts.Teacher`."""
        decoder = Decoder(trunk_of(self._base.model), self._head, max_new_tokens)
        return LocalNextTokens(decoder, self._base, self._adapter, self._temperatures)

    def _layers(self, need: frozenset[Capability]) -> InnerLayers:
        """Choose the layers to read."""
        all_layers = frozenset(range(self._num_layers + 1))
        layers = self._inner_layers or InnerLayers(all_layers, all_layers - {0})
        return InnerLayers(
            layers.hidden if Capability.HIDDEN_STATES in need else frozenset(),
            layers.attention if Capability.ATTENTION in need else frozenset(),
        )


@dataclass(frozen=True)
class LocalNextTokens:
    """A local teacher's view of texts that grow; it selects its adapter before each call."""

    decoder: Decoder
    base: SharedBase
    adapter: str | None
    temperatures: tuple[float, float]

    def prefill(self, input_ids: Int[Tensor, "R P"], attention_mask: Bool[Tensor, "R P"]) -> NextToken:
        """Read the prompts."""
        return self._read(self.decoder.prefill, input_ids, attention_mask)

    def step(self, tokens: Int[Tensor, " R"]) -> NextToken:
        """Read one more token of each sequence."""
        return self._read(self.decoder.step, tokens)

    def score(
        self, continuations: Int[Tensor, "R C T"], attended: Bool[Tensor, "R C T"]
    ) -> Float[Tensor, "R C T"]:
        """Log-probabilities of C continuations of each prompt at temperature 1. See `Decoder.score`."""
        return self._run(self.decoder.score, continuations, attended)

    @torch.no_grad()
    def _run(self, read: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        self.base.select(self.adapter)
        device = next(self.base.causal_lm.get_input_embeddings().parameters()).device
        with torch.autocast(inputs[0].device.type, enabled=False), FastLinear():
            return full_precision(read(*(part.to(device) for part in inputs)).to(inputs[0].device))

    def _read(self, read: Callable[..., Tensor], *inputs: Tensor) -> NextToken:
        logits = self._run(read, *inputs)
        weight_temperature, target_temperature = self.temperatures
        entropies = entropy((logits / weight_temperature).log_softmax(-1))
        return NextToken((logits / target_temperature).log_softmax(-1), entropies)

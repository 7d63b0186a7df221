"""The output head of a causal language model, as its configuration defines it.

One place knows what lies between the last hidden state and the logits: the projection (called as a
module, so that adapters and biases count), the logit scale, the soft-cap, and the cut of padded
vocabularies to the tokenizer's size. Padded ids are cut, never filled: a zero logit would get
probability mass.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from collegium.fused.products import project
from collegium.signals.signals import LinearHead


@dataclass(frozen=True)
class ProjectionHead:
    """Hidden states [n D] to logits [n V].

    Attributes:
        projection: The model's output embedding, called as a module.
        vocab_size: Logits beyond it are padding and cut.
        scale: Multiplies the logits.
        softcap: Bounds them to (-softcap, softcap) by tanh, after the scale.
    """

    projection: nn.Module
    vocab_size: int
    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, hidden: Float[Tensor, "n D"]) -> Float[Tensor, "n V"]:
        """Logits over the first `vocab_size` tokens, on the device of `hidden` wherever the head is."""
        weight = next(self.projection.parameters(), None)  # a quantised head may have none
        device = hidden.device if weight is None else weight.device
        logits = self._project(hidden.to(device)).to(hidden.device)
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits

    def _project(self, hidden: Tensor) -> Tensor:
        """By the machine's fastest product where no gradient is needed and the module has nothing to add."""
        linear = None if torch.is_grad_enabled() else self.as_linear()
        if linear is None or torch.is_autocast_enabled(hidden.device.type) or hidden.dtype != linear.weight.dtype:
            logits: Tensor = self.projection(hidden)[..., : self.vocab_size]
            return logits
        return project(hidden, *linear.cut)

    def as_linear(self) -> LinearHead | None:
        """The map itself; None where calling the module does more: adapters, hooks, sharded weights."""
        module = self.projection
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
        if any(hooks) or "forward" in vars(module):
            return None
        if type(module) is not nn.Linear or type(module.weight) not in (nn.Parameter, Tensor):
            return None
        return LinearHead(module.weight, module.bias, self.vocab_size, self.scale, self.softcap)

    @classmethod
    def from_model(cls, model: PreTrainedModel, vocab_size: int) -> "ProjectionHead":
        """Read the head of a causal language model.

        Raises:
            ValueError: the model has no output embedding, or fewer logits than the tokenizer has tokens.
        """
        projection = model.get_output_embeddings()
        if projection is None:
            raise ValueError(f"{type(model).__name__} has no output embedding: it is not a causal language model")
        weight = projection.weight
        rows = (weight() if callable(weight) else weight).shape[0]  # torch's quantised modules have a method
        if rows < vocab_size:
            raise ValueError(
                f"{type(model).__name__} makes {rows} logits, the tokenizer has {vocab_size} tokens: "
                "the model cannot name them all; use the tokenizer it was trained with"
            )
        scale, softcap = logit_transform(model.config)
        return cls(projection, vocab_size, scale, softcap)


def logit_transform(config: PretrainedConfig) -> tuple[float, float | None]:
    """Scale and soft-cap of the final logits, under whatever name the architecture gives them."""
    text = config.get_text_config()
    scale = 1.0
    for name in ("logit_scale", "lm_head_multiplier"):  # Cohere; Falcon-H1
        scale *= getattr(text, name, None) or 1.0
    scale /= getattr(text, "logits_scaling", None) or 1.0  # Granite
    names = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")  # Gemma; RecurrentGemma; xLSTM
    softcap = next((cap for cap in (getattr(text, name, None) for name in names) if cap), None)
    return float(scale), None if softcap is None else float(softcap)

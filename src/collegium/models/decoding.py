"""A causal language model, one token at a time.

The trunk runs over the prompts once and then over one token a step with a key-value cache; the head is
called at the last position only, so a step makes [R V] logits whatever the length. Prompts are padded on the
left, so that the next token of every sequence stands in the same column.

A model of two layers and width 32 on one core continues 32 prompts of 32 tokens by 64 at 46,000 tokens/s, against
8,700 without a cache.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from collegium.losses.precision import full_precision
from collegium.signals.signals import Head


@dataclass
class Decoder:
    """Next-token logits of R sequences. Call it under `torch.no_grad`, with the model in evaluation mode.

    Attributes:
        trunk: The model below its head.
        head: Projects its hidden states.
        max_new_tokens: Steps at most.
    """

    trunk: nn.Module
    head: Head
    max_new_tokens: int
    _mask: Tensor | None = field(default=None, init=False)
    _lengths: Tensor | None = field(default=None, init=False)
    _cache: Any = field(default=None, init=False)
    _seen: int = field(default=0, init=False)
    _logits: Tensor | None = field(default=None, init=False)

    def prefill(self, input_ids: Int[Tensor, "R P"], attention_mask: Bool[Tensor, "R P"]) -> Float[Tensor, "R V"]:
        """Read the prompts, padded on the left."""
        self._seen = input_ids.shape[1]
        self._mask = torch.nn.functional.pad(attention_mask, (0, self.max_new_tokens), value=True)
        self._lengths = attention_mask.sum(-1)
        positions = (attention_mask.cumsum(-1) - 1).clamp_min(0)
        self._logits = self._read(input_ids, positions)
        return self._logits

    def step(self, tokens: Int[Tensor, " R"]) -> Float[Tensor, "R V"]:
        """Read one more token of each sequence."""
        assert self._lengths is not None, "prefilled first"
        positions = self._lengths.unsqueeze(-1)
        self._seen += 1
        self._lengths = self._lengths + 1
        return self._read(tokens.unsqueeze(-1), positions)

    def score(
        self, continuations: Int[Tensor, "R C T"], attended: Bool[Tensor, "R C T"]
    ) -> Float[Tensor, "R C T"]:
        """Log-probability of each token of C continuations of each prompt, which is read once for all of them.

        This ends the text: nothing can be read after it.

        Args:
            continuations: One token or more each, padded on the right.
            attended: False on padding, whose log-probability is 0.
        """
        assert self._logits is not None and self._mask is not None and self._lengths is not None, "prefilled first"
        rows, count, length = continuations.shape
        tokens = continuations.flatten(0, 1)
        known = attended.flatten(0, 1)
        first = full_precision(self._logits).log_softmax(-1).repeat_interleave(count, 0)  # [R*C V]
        logprobs = first.gather(-1, tokens[:, :1])
        if length > 1:
            self._cache.batch_repeat_interleave(count)
            before = self._mask[:, : self._seen].repeat_interleave(count, 0)
            self._mask = torch.cat([before, known[:, :-1]], -1)
            steps = torch.arange(length - 1, device=tokens.device)
            positions = self._lengths.repeat_interleave(count)[:, None] + steps
            self._seen += length - 1
            hidden = self._states(tokens[:, :-1], positions)
            rest = [  # one place at a time, as [R*C T V] logits may be large
                full_precision(self.head(hidden[:, place])).log_softmax(-1).gather(-1, tokens[:, place + 1, None])
                for place in range(length - 1)
            ]
            logprobs = torch.cat([logprobs, *rest], -1)
        scored: Tensor = logprobs.masked_fill(~known, 0.0).unflatten(0, (rows, count))
        return scored

    def _read(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        return self.head(self._states(input_ids, positions)[:, -1])

    def _states(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        assert self._mask is not None
        output = self.trunk(
            input_ids=input_ids,
            attention_mask=self._mask[:, : self._seen],
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
        )
        self._cache = output.past_key_values
        states: Tensor = output.last_hidden_state
        return states

"""Answers of a model: the completion that it finds most probable, and the text that it writes itself.

Prompt and completion are tokenised as for training, each by itself. A prompt is read once for all of its choices;
items of about one length go together. With SmolLM2-135M on one core, 100 prompts of 150 tokens with four choices
take half a minute.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from collegium.base.progress import Phase
from collegium.data.documents import Document
from collegium.data.tasks.items import TaskItem
from collegium.data.tokenization import DocumentTokenizer
from collegium.signals.contracts import Teacher


class AnswerSheet:
    """A model with its tokenizer.

    Args:
        model: A model that writes: a teacher that provides `Capability.GENERATE`.
        tokenizer: Its tokenizer.
        add_bos: Begin prompts with BOS.
        device: Where batches go.
        batch_tokens: Tokens of prompts at once, padding included and once for each choice: what is kept of them.
    """

    def __init__(
        self,
        model: Teacher,
        tokenizer: PreTrainedTokenizerBase,
        *,
        add_bos: bool,
        device: torch.device,
        batch_tokens: int = 4096,
    ) -> None:
        self.model = model
        self._tokenizer = tokenizer
        self._encoder = DocumentTokenizer(tokenizer, add_bos=add_bos, add_eos=False)
        self._device = device
        self._batch_tokens = batch_tokens

    @torch.no_grad()
    def choice_logprobs(self, items: Sequence[TaskItem]) -> list[NDArray[np.float64]]:
        """Sum of the log-probabilities of the tokens of each choice after its prompt, [C] for each item."""
        asked = [_Choices.of(item, self._encoder) for item in items]
        found: dict[int, NDArray[np.float64]] = {}
        copies = max((len(item.choices) for item in items), default=1)
        with Phase("choosing answers", total=len(items), unit="items") as phase:
            for batch in self._batches([choices.prompt for choices in asked], copies):
                texts = self.model.next_tokens(max(len(c) for i in batch for c in asked[i].choices))
                texts.prefill(*self._prompts([asked[i].prompt for i in batch]))
                tokens, attended = _padded_choices([asked[i].choices for i in batch])
                scored = texts.score(tokens.to(self._device), attended.to(self._device))
                logprobs = scored.double().sum(-1).cpu()
                found |= {i: row[: len(asked[i].choices)].numpy() for i, row in zip(batch, logprobs, strict=True)}
                phase.advance(len(batch))
        return [found[i] for i in range(len(items))]

    @torch.no_grad()
    def write(self, items: Sequence[TaskItem], max_new_tokens: int) -> list[str]:
        """Continue each prompt by the most probable token, up to a line feed, EOS, or so many tokens."""
        prompts = [document.tokens for document in self._encoder.encode([item.prompt for item in items])]
        found: dict[int, str] = {}
        with Phase("writing answers", total=len(items), unit="items") as phase:
            for batch in self._batches(prompts, 1):
                rows = self._continue([prompts[i] for i in batch], max_new_tokens)
                found |= {i: self._until_line_feed(row) for i, row in zip(batch, rows, strict=True)}
                phase.advance(len(batch))
        return [found[i] for i in range(len(items))]

    def _continue(self, prompts: Sequence[NDArray[np.int32]], max_new_tokens: int) -> list[list[int]]:
        texts = self.model.next_tokens(max_new_tokens)
        view = texts.prefill(*self._prompts(prompts))
        written: list[Tensor] = []
        ended = torch.zeros(len(prompts), dtype=torch.bool)
        for step in range(max_new_tokens):
            chosen = view.logprobs.argmax(-1)
            written.append(chosen.cpu())
            ended |= self._ends(written[-1])
            if bool(ended.all()) or step + 1 == max_new_tokens:
                break
            view = texts.step(chosen)
        return torch.stack(written, -1).tolist() if written else [[] for _ in prompts]

    def _ends(self, tokens: Tensor) -> Tensor:
        """Mark tokens that end an answer: EOS, or one that holds a line feed."""
        decoded = self._tokenizer.batch_decode([[token] for token in tokens.tolist()])
        eos = self._tokenizer.eos_token_id
        return torch.tensor(["\n" in text for text in decoded]) | (tokens == (-1 if eos is None else eos))

    def _until_line_feed(self, tokens: list[int]) -> str:
        eos = self._tokenizer.eos_token_id
        own = tokens[: tokens.index(eos)] if eos in tokens else tokens
        text = str(self._tokenizer.decode(own, skip_special_tokens=True))
        return text.split("\n", 1)[0]

    def _batches(self, prompts: Sequence[NDArray[np.int32]], copies: int) -> Iterator[list[int]]:
        """Numbers of prompts of about one length, the longest first."""
        batch: list[int] = []
        for index in sorted(range(len(prompts)), key=lambda i: -len(prompts[i])):
            if batch and (len(batch) + 1) * copies * len(prompts[batch[0]]) > self._batch_tokens:
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch

    def _prompts(self, prompts: Sequence[NDArray[np.int32]]) -> tuple[Tensor, Tensor]:
        """Padded on the left, and what is no padding."""
        longest = max(len(prompt) for prompt in prompts)
        input_ids = torch.zeros((len(prompts), longest), dtype=torch.int64)
        mask = torch.zeros((len(prompts), longest), dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            input_ids[row, longest - len(prompt) :] = torch.from_numpy(prompt.astype(np.int64))
            mask[row, longest - len(prompt) :] = True
        return input_ids.to(self._device), mask.to(self._device)


@dataclass(frozen=True)
class _Choices:
    """Tokens of a prompt and of each of its choices."""

    prompt: NDArray[np.int32]
    choices: list[NDArray[np.int32]]

    @classmethod
    def of(cls, item: TaskItem, encoder: DocumentTokenizer) -> "_Choices":
        documents = [Document(item.prompt + choice, None, len(item.prompt)) for choice in item.choices]
        encoded = encoder.encode_documents(documents)
        border = encoded[0].prompt_tokens
        assert border > 0, "a prompt has tokens"
        return cls(encoded[0].tokens[:border], [document.tokens[border:] for document in encoded])


def _padded_choices(choices: Sequence[Sequence[NDArray[np.int32]]]) -> tuple[Tensor, Tensor]:
    """Tokens [R C T], padded on the right, and what is no padding."""
    count = max(map(len, choices))
    length = max(len(choice) for row in choices for choice in row)
    tokens = torch.zeros((len(choices), count, max(1, length)), dtype=torch.int64)
    attended = torch.zeros_like(tokens, dtype=torch.bool)
    for r, row in enumerate(choices):
        for c, choice in enumerate(row):
            tokens[r, c, : len(choice)] = torch.from_numpy(choice.astype(np.int64))
            attended[r, c, : len(choice)] = True
    return tokens, attended

"""From rows of the packed data set to a batch of tensors.

The only place that writes -100: on padding, on the first token of every segment, and on prompts that are given.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedTokenizerBase

from collegium.alignment.tokenizer_match import vocab_size_of
from collegium.signals.contracts import IGNORE_INDEX


_OF_SEGMENTS = {
    "document_ids": "segment_documents",
    "segment_starts": "segment_starts",
    "segment_ends": "segment_ends",
}


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Token id on padding, which no model attends to: the tokenizer's own, else its EOS, else 0.

    One without a row in the embedding, as was often added to Llama 2's tokenizer, is none.
    """
    ids: tuple[object, ...] = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    size = vocab_size_of(tokenizer)
    return next(token_id for token_id in ids if isinstance(token_id, int) and token_id < size)


class BlockCollator:
    """Pads rows to one length; see `collegium.signals.contracts.Batch` for what the tensors mean.

    Args:
        pad_token_id: Token id on padding; any will do, as it is neither attended nor predicted.
        padding_side: Side on which shorter blocks are padded.
        pad_to: Length of every batch; by default that of its longest block.
        domains: Names of the domains that blocks may be of, for weights by domain.
        learn_prompts: Predict the tokens of prompts too.
    """

    def __init__(
        self,
        *,
        pad_token_id: int,
        padding_side: Literal["left", "right"] = "right",
        pad_to: int | None = None,
        domains: Sequence[str] | None = None,
        learn_prompts: bool = False,
    ) -> None:
        self._learn_prompts = learn_prompts
        self._pad_token_id = pad_token_id
        self._padding_side = padding_side
        self._pad_to = pad_to
        self._domain_ids = None if domains is None else {name: i for i, name in enumerate(domains)}

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the domains, in the order of `Batch.domain_ids`; none if batches do not have these."""
        return tuple(self._domain_ids or ())

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Batch with what is known of each token's segment beside the tensors of `Batch`.

        `document_ids`, `segment_starts` and `segment_ends` [B S] are the number of its document and the
        UTF-8 bytes of that before the segment and up to its end; -1 on padding and where unknown.

        Raises:
            ValueError: a block does not fit into `pad_to`, or is of a domain that is not known.
        """
        length = max(len(row["input_ids"]) for row in rows)
        if self._pad_to is not None:
            if length > self._pad_to:
                raise ValueError(f"pad_to={self._pad_to} is too small for a block of {length}")
            length = self._pad_to
        padded = [self._pad(row, length) for row in rows]
        batch = {key: torch.from_numpy(np.stack([row[key] for row in padded])) for key in padded[0]}
        batch["sample_ids"] = torch.tensor([int(row["sample_id"]) for row in rows])
        if self._domain_ids is not None:
            batch["domain_ids"] = torch.tensor([_domain_id(row, self._domain_ids) for row in rows])
        return batch

    def _pad(self, row: Mapping[str, Any], length: int) -> dict[str, NDArray[Any]]:
        input_ids = np.asarray(row["input_ids"], np.int64)  # [S]
        segment_lengths = np.asarray(row["segment_lengths"], np.int64)
        positions = _positions(segment_lengths)
        no_prompts = np.zeros(len(segment_lengths), np.int64)
        prompts = (
            no_prompts if self._learn_prompts else np.asarray(row.get("segment_prompts", no_prompts), np.int64)
        )
        is_given = positions < np.repeat(np.maximum(prompts, 1), segment_lengths)
        unknown = np.full(len(segment_lengths), -1)
        num_padding = length - len(input_ids)
        columns = {
            "input_ids": (input_ids, np.full(num_padding, self._pad_token_id)),
            "attention_mask": (np.ones(len(input_ids), bool), np.zeros(num_padding, bool)),
            "labels": (
                np.where(is_given, IGNORE_INDEX, input_ids),
                np.full(num_padding, IGNORE_INDEX),
            ),
            "position_ids": (positions, np.arange(num_padding)),
        }
        for key, column in _OF_SEGMENTS.items():
            values = np.asarray(row.get(column, unknown), np.int64)
            columns[key] = (np.repeat(values, segment_lengths), np.full(num_padding, -1))
        order = 1 if self._padding_side == "right" else -1
        return {key: np.concatenate(parts[::order]) for key, parts in columns.items()}


def _domain_id(row: Mapping[str, Any], known: Mapping[str, int]) -> int:
    name = row.get("domain")
    number = known.get(str(name))
    if number is None:
        raise ValueError(f"a block is of domain {name!r}, the domains are {', '.join(known)}: name all of them")
    return number


def with_continuations(
    inputs: Mapping[str, Tensor],
    chosen: Sequence[int],
    continuations: Sequence[tuple[Tensor, Tensor]],
    *,
    pad_token_id: int,
) -> dict[str, Tensor]:
    """A batch in which some blocks are one prompt each and what it was continued with.

    Labels are on the continuations alone. Every row keeps its place and what is said of whole blocks, such as
    `sample_ids`; what was stored of the old text is gone. Rows are padded on the right to the longest.

    Args:
        inputs: A batch of this collator.
        chosen: Rows that are replaced.
        continuations: Prompt and continuation of each of them, on the CPU or not.
        pad_token_id: Token id on padding.
    """
    places = dict(zip(chosen, continuations, strict=True))
    rows = []
    for index, old in enumerate(inputs["input_ids"]):
        new = (part.to(old.device) for part in places.get(index, ()))
        rows.append(_continued(*new) if index in places else {name: inputs[name][index] for name in _ROW})
    longest = max(len(row["input_ids"]) for row in rows)
    padding = {"input_ids": pad_token_id, "attention_mask": False, "labels": IGNORE_INDEX}
    batch = {
        name: torch.stack([pad(row[name], (0, longest - len(row[name])), value=value) for row in rows])
        for name, value in padding.items()
    }
    batch["position_ids"] = torch.stack([_restarted(row["position_ids"], longest) for row in rows])
    of_blocks = {name: v for name, v in inputs.items() if isinstance(v, Tensor) and v.ndim == 1}
    return {**of_blocks, **batch}


_ROW = ("input_ids", "attention_mask", "labels", "position_ids")


def _continued(prompt: Tensor, continuation: Tensor) -> dict[str, Tensor]:
    input_ids = torch.cat([prompt, continuation])
    return {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids, dtype=torch.bool),
        "labels": torch.cat([torch.full_like(prompt, IGNORE_INDEX), continuation]),
        "position_ids": torch.arange(len(input_ids), device=input_ids.device),
    }


def _restarted(positions: Tensor, length: int) -> Tensor:
    """Padding is a segment of its own."""
    return torch.cat([positions, torch.arange(length - len(positions), device=positions.device)])


def _positions(segment_lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions that restart at 0 at each segment."""
    starts = np.cumsum(segment_lengths) - segment_lengths
    return np.arange(segment_lengths.sum()) - np.repeat(starts, segment_lengths)

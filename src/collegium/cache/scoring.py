"""Blocks of text to rows of a cache, by one teacher."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from collegium.cache.capture import arrays_of_hidden, arrays_of_lists, capture, rows_of_batch
from collegium.cache.hidden import head_bytes, last_states
from collegium.cache.keys import keys_of
from collegium.cache.manifest import CacheSettings, TeacherIdentity
from collegium.cache.shard import Arrays, StoredRow
from collegium.signals.contracts import Batch, Capability, Positions, Teacher, predicted_positions
from collegium.signals.signals import ProjectedSignal


Row = Mapping[str, Any]


class Scorer:
    """Scores blocks with a teacher that is loaded when it is needed.

    Args:
        teacher: Loads the teacher, which gives hidden states and a head.
        rows: All blocks.
        collate: Makes a batch of blocks.
        identity: What is known of the teacher before it is loaded.
        settings: What to keep.
        batch_size: Blocks scored together.
        device: Where batches go.
    """

    def __init__(
        self,
        teacher: Callable[[], Teacher],
        rows: Sequence[Row],
        collate: Callable[[Sequence[Row]], Mapping[str, Tensor]],
        identity: TeacherIdentity,
        settings: CacheSettings,
        *,
        batch_size: int,
        device: torch.device,
    ) -> None:
        self._load = teacher
        self._rows = rows
        self._collate = collate
        self._settings = settings
        self._identity = identity
        self._batch_size = batch_size
        self._device = device

    @cached_property
    def _teacher(self) -> Teacher:
        return self._load()

    def score(self, span: range) -> Iterator[tuple[list[StoredRow], int]]:
        """Rows of a cache, a batch at a time, each with the number of its positions."""
        for rows in self._batches(span):
            inputs, batch = self._batch(rows)
            names = ("input_ids", "attention_mask", "position_ids")
            keys = keys_of(*(inputs[name].numpy() for name in names))
            positions = predicted_positions(batch)
            if self._settings.mode == "hidden_states":
                states = last_states(self._teacher, batch, positions, self._identity.num_layers)
                arrays = [arrays_of_hidden(block, name=self._teacher.name) for block in states]
            else:
                arrays = self._lists(batch, positions, keys)
            yield [StoredRow(key, stored) for key, stored in zip(keys, arrays, strict=True)], len(positions)

    def head(self) -> bytes:
        """The teacher's head as a file."""
        _, batch = self._batch([self._rows[0]])
        signal = self._signal(batch, predicted_positions(batch))
        return head_bytes(signal.head, name=self._teacher.name)

    def _batches(self, span: range) -> Iterator[list[Row]]:
        """Blocks of one length each: padding would change a teacher's last digits."""
        batch: list[Row] = []
        for row in (self._rows[index] for index in span):
            if batch and (len(batch) == self._batch_size or len(row["input_ids"]) != len(batch[0]["input_ids"])):
                yield batch
                batch = []
            batch.append(row)
        yield batch

    def _batch(self, rows: Sequence[Row]) -> tuple[Mapping[str, Tensor], Batch]:
        """Blocks with all their labels, those of prompts too, so that what is stored depends on the text alone."""
        inputs = self._collate(rows)
        moved = {name: value.to(self._device) for name, value in inputs.items()}
        is_text = moved["attention_mask"].bool()
        labels = Batch.of_text(moved["input_ids"], is_text, moved["position_ids"]).labels
        return inputs, Batch.from_inputs({**moved, "labels": labels})

    def _lists(self, batch: Batch, positions: Positions, keys: Sequence[int]) -> list[Arrays]:
        settings = self._settings
        signal = self._signal(batch, positions)
        spans = rows_of_batch(batch, positions)
        uniform = None
        if settings.mode == "sampled":  # decided by the block, not by where it stands
            draws = [_draws(key, settings, span) for key, span in zip(keys, spans, strict=True)]
            uniform = np.concatenate(draws)
        size = self._identity.vocab_size
        figures, lists = capture(signal, positions, settings, vocab_size=size, uniform=uniform)
        return [arrays_of_lists(figures, lists, span, settings) for span in spans]

    def _signal(self, batch: Batch, positions: Positions) -> ProjectedSignal:
        output = self._teacher.score(batch, positions, need=frozenset({Capability.FULL_VOCAB}))
        assert isinstance(output.signal, ProjectedSignal), "a teacher that runs here"
        return output.signal


def _draws(key: int, settings: CacheSettings, span: slice) -> NDArray[np.float64]:
    """Numbers that decide what is drawn at the positions of a block."""
    source = np.random.Philox(key=np.array([key, settings.seed], np.uint64))
    return np.random.Generator(source).random((span.stop - span.start, settings.num_samples))

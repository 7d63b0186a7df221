"""Teachers read from a cache on disk instead of being run.

The cache is read where batches are made (`ReadAhead`), by a worker of the data loader if there are any, so that
a step finds everything in its batch. A batch that was made in another way is read when it is scored.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from numpy.typing import NDArray
from torch import Tensor

from collegium.base.errors import DataError
from collegium.cache.codec import padded, stored_lists
from collegium.cache.hidden import StoredHead
from collegium.cache.keys import keys_of
from collegium.cache.reader import CacheReader
from collegium.cache.shard import Arrays
from collegium.signals.contracts import Batch, Capability, Positions, Teacher, TeacherOutput
from collegium.signals.inner_states import InnerStates, UnderlyingModel
from collegium.signals.signals import ProjectedSignal, TailPolicy, TopKSignal
from collegium.teachers.defaults import TeacherDefaults, require_provided


FIGURES = ("entropy", "weight_entropy", "label_logprob", "weight_label_logprob")


class CachedTeacher(TeacherDefaults):
    """A teacher whose answers were stored in a cache.

    Args:
        name: Name in metrics and errors.
        location: Folder or URL of the cache.
        tail: Use of the mass that is not listed; see `collegium.signals.signals.TopKSignal`.
        kd_temperature: Temperature of the loss; lists that were made at another are refused.
        target_temperature: The teacher's own, of the distribution that is mixed. Lists likewise.
        weight_temperature: The teacher's own, of the entropy that sets its weight. Lists likewise.

    Raises:
        DataError: the cache is not finished or damaged, or holds another temperature.
    """

    def __init__(
        self,
        name: str,
        location: str | Path,
        *,
        tail: TailPolicy = "bucket",
        kd_temperature: float = 1.0,
        target_temperature: float = 1.0,
        weight_temperature: float = 1.0,
    ) -> None:
        self.name = name
        self._reader = CacheReader(location)
        self.manifest = self._reader.manifest
        self._tail: TailPolicy = tail
        self._weight_temperature = weight_temperature
        self._target_temperature = target_temperature
        asked = {
            "kd_temperature": kd_temperature,
            "target_temperature": target_temperature,
            "weight_temperature": weight_temperature,
        }
        if not self._keeps_hidden:
            for key, value in asked.items():
                captured = getattr(self.manifest.settings, key)
                if captured != value:
                    raise DataError(
                        f"teacher {name!r}: its cache was made at {key} {captured:g}, now {value:g} is asked for: "
                        f"set it to {captured:g}, make the cache again, or keep hidden states (cache.mode), "
                        "which serve every temperature"
                    )
        self._head = StoredHead(self._reader.head) if self._keeps_hidden else None

    @property
    def _keeps_hidden(self) -> bool:
        return self.manifest.settings.mode == "hidden_states"

    @property
    def provides(self) -> frozenset[Capability]:
        """Lists, or everything that follows from the last hidden states."""
        lists = {Capability.SAMPLES}
        if self.manifest.settings.mode != "sampled":
            lists.add(Capability.TOP_K)
        return frozenset(
            lists | ({Capability.FULL_VOCAB, Capability.HIDDEN_STATES} if self._keeps_hidden else set())
        )

    @property
    def fingerprint(self) -> str:
        """Identity of weights, revision and tokenizer, and of the cache's settings and text."""
        return f"{self.manifest.teacher.fingerprint}/{self.manifest.identity}"

    @property
    def settings(self) -> Mapping[str, Any]:
        """Temperatures, and the use of what is not listed."""
        return {
            "weight_temperature": self._weight_temperature,
            "target_temperature": self._target_temperature,
            "tail": self._tail,
        }

    @property
    def is_cached(self) -> bool:
        """True: it knows the text of its cache only."""
        return True

    @property
    def underlying_model(self) -> UnderlyingModel:
        """The model that filled the cache; only the states after its final norm may be there."""
        teacher = self.manifest.teacher
        known = frozenset({teacher.num_layers}) if self._keeps_hidden else frozenset[int]()
        return UnderlyingModel(teacher.hidden_size, teacher.num_layers, hidden_layers=known)

    @property
    def reads_ahead(self) -> bool:
        """True: the cache is read where batches are made."""
        return True

    def read(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Read what is stored of the blocks of a batch, as tensors.

        Raises:
            DataError: a block is not in the cache, or its row is damaged.
        """
        tokens = inputs["input_ids"].cpu()
        attended = inputs["attention_mask"].cpu()
        places = inputs["position_ids"].cpu()
        input_ids = tokens.numpy()
        mask = attended.bool().numpy()
        rows = [self._reader.read(key).arrays for key in keys_of(input_ids, mask, places.numpy())]
        if not rows and not self._keeps_hidden:  # a restricted teacher may have no block in a batch
            return _no_lists()
        if self._keeps_hidden:
            return {"hidden": torch.from_numpy(self._states(rows, mask))}
        follows = _followed(attended.bool(), places).numpy()
        return self._lists(rows, np.roll(input_ids, -1, 1)[follows])

    def _states(self, rows: Sequence[Arrays], mask: NDArray[np.bool_]) -> NDArray[np.float16]:
        width = self.manifest.teacher.hidden_size
        states = np.zeros((*mask.shape, width), np.float16)  # [B S E]
        for block, attended, row in zip(states, mask, rows, strict=True):
            block[attended] = row["hidden"].reshape(-1, width)
        return states

    def _lists(self, rows: Sequence[Arrays], labels: NDArray[np.int64]) -> dict[str, Tensor]:
        arrays = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        lists, tail = stored_lists(arrays, labels, self.manifest.settings)
        width = int(lists.lengths.max(initial=1))
        # A probability that was rounded to 0 would have a log of -inf, which reads as a broken teacher.
        logprobs = np.log(np.maximum(lists.probs, np.finfo(np.float32).tiny))
        stored = {
            "token_ids": padded(lists.ids.astype(np.int32), lists.lengths, width, -1),
            "logprobs": padded(logprobs, lists.lengths, width, 0.0),
            "tail_logprob": tail,
            **{name: arrays[name] for name in FIGURES if name in arrays},
        }
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in stored.items()}

    def score(self, batch: Batch, positions: Positions, *, need: frozenset[Capability]) -> TeacherOutput:
        """Return what is stored at these positions. See `collegium.signals.contracts.Teacher`."""
        require_provided(self, need)
        stored = batch.stored.get(self.name)
        if stored is None:
            stored = self.read(vars(batch))
        stored = {name: tensor.to(batch.input_ids.device) for name, tensor in stored.items()}
        if self._head is not None:
            return self._from_states(self._head, stored["hidden"], positions)
        if len(stored["token_ids"]) != len(positions):  # a cache has rows for masked labels too
            follows = _followed(batch.attention_mask, batch.position_ids)
            places = (follows.flatten().cumsum(0) - 1)[positions.index]
            stored = {name: tensor[places] for name, tensor in stored.items()}
        signal = TopKSignal(
            stored["token_ids"],
            stored["logprobs"],
            stored.get("weight_entropy", stored["entropy"]),
            stored["label_logprob"],
            self.manifest.teacher.vocab_size,
            tail=self._tail,
            tail_logprob=stored["tail_logprob"],
            weight_label_logprob=stored.get("weight_label_logprob"),
            kd_temperature=self.manifest.settings.kd_temperature,
            drawn=self.manifest.settings.mode == "sampled",
        )
        return TeacherOutput(signal)

    def _from_states(self, head: StoredHead, hidden: Tensor, positions: Positions) -> TeacherOutput:
        head.to(hidden.device)
        hidden = hidden.to(head.dtype)
        signal = ProjectedSignal(
            positions.select(hidden),
            head,
            weight_temperature=self._weight_temperature,
            target_temperature=self._target_temperature,
        )
        return TeacherOutput(signal, InnerStates({self.manifest.teacher.num_layers: hidden}))


def _followed(mask: Bool[Tensor, "B S"], position_ids: Int[Tensor, "B S"]) -> Bool[Tensor, "B S"]:
    """Mark the positions that a cache stores: those whose next token belongs to the same segment."""
    return torch.nn.functional.pad(mask[:, 1:] & (position_ids[:, 1:] != 0), (0, 1))


def _no_lists() -> dict[str, Tensor]:
    """Return what is stored of no blocks at all: the same tensors with no rows."""
    none = torch.zeros(0)
    return {
        "token_ids": torch.zeros((0, 1), dtype=torch.int32),
        "logprobs": torch.zeros((0, 1)),
        "tail_logprob": none,
        "entropy": none,
        "label_logprob": none,
    }


class ReadAhead:
    """Makes batches that hold the tensors that teachers read ahead.

    Args:
        collate: Makes a batch of rows.
        teachers: Teachers that read ahead.
    """

    def __init__(self, collate: Callable[[Sequence[Any]], dict[str, Any]], teachers: Sequence[Teacher]) -> None:
        self._collate = collate
        self._teachers = tuple(teachers)

    def __call__(self, rows: Sequence[Any]) -> dict[str, Any]:
        """Make the batch, with `stored` by teacher."""
        inputs = self._collate(rows)
        return {**inputs, "stored": {teacher.name: teacher.read(inputs) for teacher in self._teachers}}

"""The text that a training has read, as its collator delivered it: counted once, here, and read by everybody else.

Steps times batch size times length of a block is more than that: the last block of a source is short, a document
with a prompt leaves room, and padding is no text. Counts stay on the device and are added up over ranks when they
are logged or saved; they are part of a checkpoint, so a resumed run goes on counting.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from collegium.report import metric_names as names
from collegium.signals.contracts import Batch, predicts


NAME = "text_count"
"""Of its document in a checkpoint."""


class TextCount:
    """Blocks, tokens and predicted positions of all ranks, by domain.

    Args:
        domains: Names, in the order of `Batch.domain_ids`; none if batches do not say of which domain they are.
        device: Of the batches.
    """

    def __init__(self, domains: Sequence[str], device: torch.device) -> None:
        self._domains = tuple(domains)
        self._own = torch.zeros(max(1, len(self._domains)), len(names.READ), dtype=torch.int64, device=device)
        self._before: torch.Tensor | None = torch.zeros_like(self._own, device="cpu")

    def add(self, samples: Sequence[Mapping[str, Any]]) -> None:
        """Count micro-batches of this rank, without waiting for the device."""
        for inputs in samples:
            batch = Batch.from_inputs(inputs)
            tokens = batch.attention_mask.sum(1)  # [B]
            columns = torch.stack([torch.ones_like(tokens), tokens, predicts(batch).sum(1)], 1)
            domains = batch.domain_ids
            if domains is None or not self._domains:
                domains = torch.zeros_like(tokens)
            self._own.index_add_(0, domains.to(tokens), columns)

    def logged(self, *, by_domain: bool = False) -> dict[str, int]:
        """Counts over all ranks as metrics; empty where they are not known. A collective call."""
        counts = self._total()
        if counts is None:
            return {}
        found = {names.read(part): int(count) for part, count in zip(names.READ, counts.sum(0), strict=True)}
        if by_domain:
            for domain, row in zip(self._domains, counts, strict=False):
                found |= {names.read(part, domain): int(n) for part, n in zip(names.READ, row, strict=True)}
        return found

    def document(self) -> dict[str, Any]:
        """What a checkpoint keeps. A collective call."""
        counts = self._total()
        return {"domains": list(self._domains), "counts": None if counts is None else counts.tolist()}

    def load(self, checkpoint: Path) -> None:
        """Go on from a checkpoint; one of an earlier version did not count, so the whole is not known then."""
        path = checkpoint / f"{NAME}.json"
        stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        counts = stored.get("counts") if stored.get("domains") == list(self._domains) else None
        self._own.zero_()
        self._before = None if counts is None else torch.tensor(counts, dtype=torch.int64)

    def _total(self) -> torch.Tensor | None:
        own = self._own.clone()
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(own)
        return None if self._before is None else self._before + own.cpu()

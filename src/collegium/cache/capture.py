"""Takes what a cache keeps of a teacher's distributions from its logits, a chunk at a time.

Everything but the list is exact, from the full distribution. The list is what lies above a probability,
found by one comparison instead of a sort, which also gives the ids in order; only a position with more
than `max_kept` such tokens is sorted. With the files written that costs 7 % on top of a 135M model's forward pass.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from collegium.base.errors import TeacherError
from collegium.cache.codec import TokenLists, codes_of, gaps_of
from collegium.cache.manifest import CacheSettings
from collegium.cache.shard import Arrays
from collegium.fused.compiled import run
from collegium.fused.elementwise import LabelledRows, teacher_figures
from collegium.losses.precision import full_precision
from collegium.signals.contracts import Batch, Positions
from collegium.signals.signals import ProjectedSignal


CHUNK_ELEMENTS = 6 * 2**20
"""Logits alive at once: 24 MB."""

_HALF_TINY = -6e4
_HALF_MAX = 6e4
_TINY = 1e-30


@dataclass
class _Columns:
    """Arrays of one chunk, and which position each list entry belongs to."""

    figures: dict[str, NDArray[Any]]
    lists: TokenLists


def capture(
    signal: ProjectedSignal,
    positions: Positions,
    settings: CacheSettings,
    *,
    vocab_size: int,
    uniform: NDArray[np.float64] | None = None,
) -> tuple[dict[str, NDArray[Any]], TokenLists]:
    """Figures of each position and its list.

    Args:
        signal: The teacher's.
        positions: What is predicted.
        settings: What to keep.
        vocab_size: Logits of each position.
        uniform: Numbers in [0, 1), [N num_samples], that decide what is drawn, for `sampled`.

    Returns:
        Arrays [N], and the lists.
    """
    size = max(1, CHUNK_ELEMENTS // vocab_size)
    spans = [slice(start, start + size) for start in range(0, len(positions), size)]
    parts = [_capture_rows(signal, positions.labels[rows], settings, rows, uniform) for rows in spans]
    figures = {name: np.concatenate([part.figures[name] for part in parts]) for name in parts[0].figures}
    lists = TokenLists(
        *(np.concatenate([getattr(p.lists, name) for p in parts]) for name in ("lengths", "ids", "probs"))
    )
    return figures, lists


@torch.no_grad()
def _capture_rows(
    signal: ProjectedSignal,
    labels: Tensor,
    settings: CacheSettings,
    rows: slice,
    uniform: NDArray[np.float64] | None,
) -> _Columns:
    logits = signal.logits(rows)  # [n V]
    own, weight, mixed = _temperatures(settings)
    at_label = logits.gather(-1, labels[:, None])
    entropy, log_total, rank = run(teacher_figures, LabelledRows(logits, at_label), mixed)
    figures = {"entropy": entropy, "label_rank": rank.int()}
    at_label = full_precision(at_label.squeeze(-1))
    own_total = log_total if own == mixed else (full_precision(logits) / own).logsumexp(-1)
    figures["label_logprob"] = at_label / own - own_total
    if weight != mixed:
        at_weight = run(teacher_figures, LabelledRows(logits, at_label[:, None]), weight)
        figures["weight_entropy"] = at_weight.entropy
        figures["weight_label_logprob"] = at_label / weight - at_weight.log_total
    if settings.mode == "sampled":
        assert uniform is not None, "draws need numbers"
        lists = _drawn(logits, log_total, mixed, uniform[rows])
    else:
        lists, tail, top = _most_probable(logits, log_total, mixed, settings)
        figures |= {"tail_logprob": _half(tail.log()), "top_logprob": _half(top.log())}
    return _Columns({name: figure.cpu().numpy() for name, figure in figures.items()}, lists)


def _temperatures(settings: CacheSettings) -> tuple[float, float, float]:
    """Temperatures of the distribution that is mixed, of the one that sets the weight, and of the list."""
    own = settings.target_temperature
    return own, settings.weight_temperature, own * settings.kd_temperature


def _half(logprobs: Tensor) -> Tensor:
    return logprobs.clamp(_HALF_TINY, 0.0).half()


def _most_probable(
    logits: Tensor, log_total: Tensor, temperature: float, settings: CacheSettings
) -> tuple[TokenLists, Tensor, Tensor]:
    """Lists, the mass outside them, and the highest probability."""
    top, best = logits.max(-1)
    top = (full_precision(top) / temperature - log_total).exp()
    least = (log_total + math.log(max(settings.min_probability, _TINY))) * temperature
    keep = full_precision(logits) >= least.unsqueeze(-1)
    finite = log_total.isfinite()
    keep.scatter_(-1, best.unsqueeze(-1), finite.unsqueeze(-1))  # nothing else may be that probable
    row, ids = keep.nonzero(as_tuple=True)
    lengths = row.bincount(minlength=len(keep))
    if int(lengths.max()) > settings.max_kept:
        many = lengths > settings.max_kept
        most = logits[many].topk(settings.max_kept).indices
        keep[many] = torch.zeros_like(keep[many]).scatter_(-1, most, True)
        row, ids = keep.nonzero(as_tuple=True)
        lengths = row.bincount(minlength=len(keep))
    probs = (full_precision(logits[row, ids]) / temperature - log_total[row]).exp()
    listed = torch.zeros_like(log_total).index_add_(0, row, probs)
    lists = TokenLists(lengths.cpu().numpy(), ids.cpu().numpy(), probs.float().cpu().numpy().astype(np.float32))
    return lists, (1.0 - listed).clamp(0.0, 1.0), top


def _drawn(logits: Tensor, log_total: Tensor, temperature: float, uniform: NDArray[np.float64]) -> TokenLists:
    """Counts of tokens drawn with replacement, as probabilities (RS-KD, arXiv:2503.16870).

    Draws are stratified: one point in each of as many equal parts of [0, 1), against the cumulative
    distribution. Each token is drawn as often as it is probable on average, with less noise than by
    independent draws.
    """
    num_samples = uniform.shape[1]
    probs = (full_precision(logits).double() / temperature - log_total.double().unsqueeze(-1)).exp()
    ends = probs.cumsum(-1)
    ends = ends / ends[:, -1:]
    points = torch.from_numpy((np.arange(num_samples) + uniform) / num_samples).to(ends.device)
    drawn = torch.searchsorted(ends, points, right=True).clamp_max(logits.shape[-1] - 1)
    rows = [np.unique(row, return_counts=True) for row in drawn.cpu().numpy()]
    total = np.concatenate([times for _, times in rows]).astype(np.float32) / num_samples
    lengths = np.array([len(found) for found, _ in rows])
    ids = np.concatenate([found for found, _ in rows])
    return TokenLists(lengths, ids.astype(np.int64), total)


def arrays_of_lists(
    figures: dict[str, NDArray[Any]], lists: TokenLists, rows: slice, settings: CacheSettings
) -> Arrays:
    """Arrays that are stored for the positions of one block."""
    ends = np.cumsum(lists.lengths)
    first = int(ends[rows.start] - lists.lengths[rows.start]) if rows.stop > rows.start else 0
    last = int(ends[rows.stop - 1]) if rows.stop > rows.start else 0
    own = TokenLists(lists.lengths[rows], lists.ids[first:last], lists.probs[first:last])
    arrays = {name: figure[rows] for name, figure in figures.items()}
    if settings.mode == "sampled":
        codes = np.rint(own.probs * settings.num_samples).astype(np.uint8)
    else:
        codes = codes_of(own, np.exp(arrays["top_logprob"].astype(np.float32)))
    return {**arrays, "lengths": own.lengths.astype(np.uint16), "gaps": gaps_of(own), "codes": codes}


def arrays_of_hidden(hidden: Float[Tensor, "S E"], *, name: str) -> Arrays:
    """Arrays that are stored for a block whose hidden states are kept.

    Raises:
        TeacherError: they are too large for 16 bits.
    """
    if bool((hidden.abs() > _HALF_MAX).any()):
        raise TeacherError(
            f"teacher {name!r}: hidden states above {_HALF_MAX:g} cannot be kept in 16 bits; use mode: top_k"
        )
    return {"hidden": hidden.half().flatten().cpu().numpy()}


def rows_of_batch(batch: Batch, positions: Positions) -> Sequence[slice]:
    """Positions of each block of a batch."""
    block = batch.blocks_at(positions.index)
    counts = torch.bincount(block, minlength=len(batch.input_ids)).tolist()
    ends = np.cumsum(counts)
    return [slice(int(end - count), int(end)) for end, count in zip(ends, counts, strict=True)]

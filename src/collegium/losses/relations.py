"""Matching of attention and of relations among tokens, a stretch of rows at a time.

Sources: TinyBERT (arXiv:1909.10351, equation 7), MobileBERT (arXiv:2004.02984), MiniLM (arXiv:2002.10957),
MiniLMv2 (arXiv:2012.15828). All compare [S S] matrices, one a head, made of queries and keys (or of queries,
keys or values with themselves). Attention is causal and stays inside a segment, so only keys up to a stretch's
end are read, and each stretch is computed again in backward: at most 8 buffers of B * A * chunk_size * S numbers
are alive at once, never one of B * A * S * S. With A = 9 heads, S = 1,024 and 64 rows a buffer of float32 is
2.4 MB a block, the whole matrix 38 MB. Stretches that stay in a CPU's cache are also faster: 64 relation heads
of a block of 1,024 tokens take 0.8 s forward and backward on one core with 64 rows, 4.5 s with all at once.

Every function returns a sum over text positions; padding is not a row and, as a segment of its own, never a key.
Rows where the teacher is not finite are left out. Numbers of heads may differ: then means over heads are compared.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from collegium.losses.chunks import chunks
from collegium.losses.precision import full_precision


CHUNK_SIZE = 64
"""Rows whose scores are alive at once."""

MAX_RELATION_HEADS = 64
"""Limit of `auto`: MiniLMv2 takes 48 for a base model, 64 for a large one."""


class Scorer(NamedTuple):
    """Factors of the scores of one layer: scale * queries @ keys^T.

    Attributes:
        queries: Before rotary embedding.
        keys: Before rotary embedding too; K divides A, each serving A / K consecutive heads of queries.
        scale: Factor of the product; 1 / sqrt(d) if not given.
    """

    queries: Float[Tensor, "B A S d"]
    keys: Float[Tensor, "B K S d"]
    scale: float | None = None

    def rows(self, rows: slice) -> Float[Tensor, "B A n s"]:
        """Scores of these rows with all keys up to the last of them, in float32 at least."""
        queries = full_precision(self.queries[:, :, rows])
        keys = full_precision(self.keys[:, :, : rows.stop])
        size, heads, num_rows, width = queries.shape
        scale = width**-0.5 if self.scale is None else self.scale
        grouped = (queries * scale).reshape(size, keys.shape[1], -1, width)  # heads of a group under one another
        with torch.autocast(queries.device.type, enabled=False):
            return (grouped @ keys.mT).reshape(size, heads, num_rows, rows.stop)


Compare = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Scores of student and teacher [B A n s] and the keys that count [B n s] -> an error for each row [B n]."""


def attention_score_error(
    student: Scorer,
    teacher: Scorer,
    position_ids: Int[Tensor, "B S"],
    attention_mask: Bool[Tensor, "B S"],
    *,
    chunk_size: int = CHUNK_SIZE,
) -> Float[Tensor, ""]:
    """Sum over text positions i of mean over heads and over keys j of (a_S[i, j] - a_T[i, j])^2.

    TinyBERT, equation 7, on scores before the softmax. Its code takes the mean over all S keys, with masked ones
    set to 0; here it is over the keys that row i may see.
    """

    def compare(scores: Tensor, target: Tensor, seen: Tensor) -> Tensor:
        scores, target = _comparable(scores, target, lambda tensor: tensor.mean(1, keepdim=True))
        error = (scores - target).square().mean(1)  # [B n s]
        return torch.where(seen, error, 0.0).sum(-1) / seen.sum(-1)

    return _sum_over_rows(compare, student, teacher, position_ids, attention_mask, chunk_size)


def attention_divergence(
    student: Scorer,
    teacher: Scorer,
    position_ids: Int[Tensor, "B S"],
    attention_mask: Bool[Tensor, "B S"],
    *,
    chunk_size: int = CHUNK_SIZE,
) -> Float[Tensor, ""]:
    """Sum over text positions of the mean over heads of KL(teacher || student), in nats.

    L_AT of MiniLM. MobileBERT's attention transfer is the cross-entropy, whose gradient is the same.
    """

    def compare(scores: Tensor, target: Tensor, seen: Tensor) -> Tensor:
        hidden = ~seen.unsqueeze(1)
        # A finite number, not -inf: means over heads and products with 0 stay free of NaN, gradients too.
        logq, logp = (
            tensor.masked_fill(hidden, torch.finfo(tensor.dtype).min / 4).log_softmax(-1)
            for tensor in (scores, target)
        )
        logq, logp = _comparable(logq, logp, _mean_of_distributions)
        return (logp.exp() * (logp - logq)).sum(-1).mean(1)

    return _sum_over_rows(compare, student, teacher, position_ids, attention_mask, chunk_size)


def relation_divergence(
    student: Float[Tensor, "B A S d"],
    teacher: Float[Tensor, "B H S e"],
    position_ids: Int[Tensor, "B S"],
    attention_mask: Bool[Tensor, "B S"],
    *,
    num_relation_heads: int | None,
    chunk_size: int = CHUNK_SIZE,
) -> Float[Tensor, ""]:
    """Sum over text positions of the mean over relation heads of KL(R_T || R_S), R = softmax(X X^T / sqrt(d_r)).

    MiniLMv2, causal, for X the queries, keys or values; widths of student and teacher may differ.

    Args:
        student: Queries, keys or values.
        teacher: The same of the teacher.
        position_ids: Restart at 0 where a segment begins.
        attention_mask: True on text.
        num_relation_heads: Heads into which the concatenated ones are split again; None leaves them as they are
            (the value relation of MiniLM).
        chunk_size: Rows at a time.
    """
    heads = [x if num_relation_heads is None else split_heads(x, num_relation_heads) for x in (student, teacher)]
    mine, theirs = (Scorer(x, x) for x in heads)
    return attention_divergence(mine, theirs, position_ids, attention_mask, chunk_size=chunk_size)


def split_heads(heads: Float[Tensor, "B A S d"], num: int) -> Float[Tensor, "B R S r"]:
    """Concatenate heads and split them into another number."""
    size, _, length, _ = heads.shape
    return heads.transpose(1, 2).reshape(size, length, num, -1).transpose(1, 2)


def relation_heads(num: int | Literal["auto"], widths: Sequence[int]) -> int:
    """Number of relation heads for concatenated heads of these widths.

    `auto` is the largest number up to `MAX_RELATION_HEADS` that divides all of them.

    Raises:
        ValueError: `num` does not divide all of them.
    """
    common = math.gcd(*widths)
    fitting = [heads for heads in range(1, MAX_RELATION_HEADS + 1) if common % heads == 0]
    if num == "auto":
        return fitting[-1]
    if num < 1 or common % num:
        raise ValueError(
            f"num_relation_heads is {num}, which must divide the widths {_listed(sorted(set(widths)))}; "
            f"{_listed(fitting)} would, or auto"
        )
    return num


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _sum_over_rows(
    compare: Compare,
    student: Scorer,
    teacher: Scorer,
    position_ids: Tensor,
    attention_mask: Tensor,
    chunk_size: int,
) -> Tensor:
    segments = (position_ids == 0).cumsum(1)  # [B S]
    places = torch.arange(position_ids.shape[1], device=position_ids.device)

    def of_rows(rows: slice) -> Tensor:
        seen = segments[:, rows, None] == segments[:, None, : rows.stop]  # [B n s]
        seen = seen & (places[rows, None] >= places[: rows.stop])  # a position sees itself: no row is empty
        with torch.no_grad():
            target = teacher.rows(rows)
            usable = (target.isfinite() | ~seen.unsqueeze(1)).all(-1).all(1) & attention_mask[:, rows]
            target = torch.where(seen.unsqueeze(1) & usable[:, None, :, None], target, 0.0)
        errors = compare(student.rows(rows), target, seen)
        return torch.where(usable, errors, 0.0).sum()

    sums = [
        checkpoint(of_rows, rows, use_reentrant=False, preserve_rng_state=False)
        for rows in chunks(position_ids.shape[1], chunk_size)
    ]
    return torch.stack(sums).sum()


def _comparable(
    student: Tensor, teacher: Tensor, mean: Callable[[Tensor], Tensor]
) -> tuple[Float[Tensor, "B A n s"], Float[Tensor, "B A n s"]]:
    """Head by head where there are as many, else the means over heads."""
    same = student.shape[1] == teacher.shape[1]
    return (student, teacher) if same else (mean(student), mean(teacher))


def _mean_of_distributions(logprobs: Float[Tensor, "B A n s"]) -> Float[Tensor, "B 1 n s"]:
    return logprobs.logsumexp(1, keepdim=True) - math.log(logprobs.shape[1])

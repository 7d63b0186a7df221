"""MGSKD: relations of inner states to one another, matched between tokens, phrases and documents.

Liu et al., Multi-Granularity Structural Knowledge Distillation for Language Model Compression (ACL 2022);
`src/loss.py` of LC97-pku/MGSKD. Only products and angles of one model's states are compared with another's, so
student and teacher may have other widths, and there is nothing to train besides the student.

A relation lies within a segment, which is the paper's sample. Tokens and phrases are summed as the mean over
the relations of a segment times its text positions; divided by the number of all text positions this is a
mean over the text, however it is packed or cut into micro-batches. Relations between samples exist only among
those that are in a micro-batch together, so that part does depend on how a step is cut.

Products of pairs are B * S^2 * (D + E) / 2 multiplications a layer, made a few rows at a time and again in
backward: `BUFFER` numbers are alive at once instead of 64 * B * S^2, which for one block of 1,024 are 268 MB.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import smooth_l1_loss
from torch.utils.checkpoint import checkpoint

from collegium.losses.chunks import chunks
from collegium.losses.precision import full_precision


BUFFER = 2**22
"""Numbers in the largest tensor of a chunk; 16 MB in float32."""
MIN_PHRASES = 3
"""Segments with fewer phrases have no relations between phrases, as in the official code."""


@dataclass(frozen=True)
class Relations:
    """Choice of the relations that are compared.

    Attributes:
        num_heads: Parts of equal width that states are cut into for products of pairs and for samples.
        salient: Items of a segment at which angles are taken, k1.
        neighbours: Items of the same segment that span angles there, k2.
    """

    num_heads: int = 64
    salient: int = 20
    neighbours: int = 20


@dataclass(frozen=True)
class Items:
    """Tokens or phrases of a micro-batch in reading order, on a grid with empty places.

    Attributes:
        mask: Where there is one.
        segments: Segment that each belongs to, from 1 to the number of places.
        text: Text positions of that segment.
        emphasis: Factor of the relations of each.
    """

    mask: Bool[Tensor, "B P"]
    segments: Int[Tensor, "B P"]
    text: Float[Tensor, "B P"]
    emphasis: Float[Tensor, "B P"]

    def total(self, sums: Float[Tensor, "B P"], counts: Int[Tensor, "B P"]) -> Float[Tensor, ""]:
        """Sum over segments of their text positions times the mean of their relations.

        Args:
            sums: Sum of the relations of each item.
            counts: Number of these.
        """
        of_segment = _per_segment(counts, self.segments).clamp_min(1)
        return (sums * self.emphasis.to(sums) * self.text.to(sums) / of_segment).sum()


def check_relation_heads(num_heads: int, widths: Sequence[int]) -> None:
    """Widths of student and teachers must be multiples of the number of relation heads.

    Raises:
        ValueError: one is not.
    """
    if num_heads >= 1 and not any(width % num_heads for width in widths):
        return
    common = math.gcd(*widths)
    fitting = ", ".join(str(n) for n in range(1, common + 1) if common % n == 0)
    raise ValueError(
        f"relation_heads is {num_heads}, which must divide the widths of the models, "
        f"{', '.join(map(str, widths))}: what fits is {fitting}"
    )


# ---- items


def token_items(
    position_ids: Int[Tensor, "B S"], mask: Bool[Tensor, "B S"], emphasis: Float[Tensor, "B S"] | None = None
) -> Items:
    """The tokens at which there is text and every state is finite."""
    segments = (position_ids == 0).flatten().cumsum(0).view_as(position_ids)
    emphasis = torch.ones_like(mask, dtype=torch.float32) if emphasis is None else emphasis
    return Items(mask, segments, _per_segment(mask, segments).to(emphasis), emphasis)


def phrase_slots(position_ids: Int[Tensor, "B S"], begins: Bool[Tensor, "B S"]) -> Int[Tensor, "B S"]:
    """Place of each token's phrase on a flat grid of B * S; a phrase ends with its segment."""
    order = (begins | (position_ids == 0)).long()
    order[:, 0] = 0  # a row's first phrase is number 0, whether or not its first token begins a word
    offsets = torch.arange(order.shape[0], device=order.device).unsqueeze(1) * order.shape[1]
    return order.cumsum(1) + offsets


def phrase_items(tokens: Items, slots: Int[Tensor, "B S"]) -> Items:
    """Phrases of these tokens; none in segments that have fewer than `MIN_PHRASES`."""
    flat = slots.flatten()
    segments = torch.ones_like(flat).scatter(0, flat, tokens.segments.flatten())
    text = torch.zeros_like(tokens.text).flatten().scatter(0, flat, tokens.text.flatten())
    some = torch.zeros_like(flat).index_add(0, flat, tokens.mask.flatten().long()) > 0
    grid = tokens.mask.shape
    mask = some.view(grid)
    segments = segments.view(grid)
    mask = mask & (_per_segment(mask, segments) >= MIN_PHRASES)
    emphasis = pool(tokens.emphasis.unsqueeze(-1), tokens.mask, slots).squeeze(-1)
    return Items(mask, segments, text.view(grid), emphasis)


def pool(
    states: Float[Tensor, "B S D"], mask: Bool[Tensor, "B S"], slots: Int[Tensor, "B S"]
) -> Float[Tensor, "B S D"]:
    """Mean of the states of each place; 0 where there is none."""
    flat = slots.flatten()
    weight = mask.flatten().to(states.dtype)
    counts = torch.zeros_like(weight).index_add(0, flat, weight).clamp_min(1.0)
    masked = torch.where(mask.unsqueeze(-1), states, 0.0).flatten(0, 1)
    sums = torch.zeros_like(masked).index_add(0, flat, masked)
    return (sums / counts.unsqueeze(-1)).view_as(states)


def _per_segment(values: Tensor, segments: Int[Tensor, "B P"]) -> Tensor:
    flat = segments.flatten()
    values = values.long() if values.dtype == torch.bool else values
    return values.new_zeros(flat.numel() + 1).index_add(0, flat, values.flatten())[flat].view_as(segments)


# ---- tokens and phrases


def structure_loss(
    student: Float[Tensor, "B P D"],
    teacher: Float[Tensor, "B P E"],
    items: Items,
    relations: Relations,
    *,
    buffer: int = BUFFER,
) -> Float[Tensor, ""]:
    """Squared error of products of pairs plus smooth L1 of angles of triplets (`TokenPhraseLoss`).

    Args:
        student: States of the items.
        teacher: Theirs in the teacher; finite.
        items: Tokens or phrases.
        relations: Which relations are compared.
        buffer: Numbers in the largest tensor of a chunk; changes nothing but memory.

    Returns:
        Sum of two means over relations, each summed as `Items.total` says.
    """
    empty = ~items.mask.unsqueeze(-1)
    student = full_precision(student).masked_fill(empty, 0.0)
    teacher = full_precision(teacher).masked_fill(empty, 0.0)
    pairs = items.total(*pair_errors(student, teacher, items, relations.num_heads, buffer=buffer))
    choice = salient_items(teacher, items, relations, buffer=buffer)
    return pairs + items.total(*triplet_errors(student, teacher, items, choice, buffer=buffer))


def pair_errors(
    student: Float[Tensor, "B P D"], teacher: Float[Tensor, "B P E"], items: Items, num_heads: int, *, buffer: int
) -> tuple[Float[Tensor, "B P"], Int[Tensor, "B P"]]:
    """Sum over heads and items j of the same segment of (s_ij - t_ij)^2, and their number.

    s_ij = h_i . h_j / sqrt(d), h being one head's part, of width d. Both halves of the symmetric matrix count, as
    in the official code; of i != j one is computed and counted twice.
    """
    ours = _heads(student, num_heads)
    theirs = _heads(teacher, num_heads)  # [B H P d]
    errors = []
    counts = []
    for rows in _row_chunks(items.mask, num_heads, buffer):
        related = _related(items, rows)[..., : rows.stop]
        times = (
            related.tril(rows.start).long() + related.tril(rows.start - 1).long()
        )  # [B r j]: 1 at j = i, 2 below
        errors.append(checkpoint(_squared, ours, theirs, times, rows, use_reentrant=False))
        counts.append(num_heads * times.sum(-1))
    return torch.cat(errors, 1), torch.cat(counts, 1)


def _squared(ours: Tensor, theirs: Tensor, times: Int[Tensor, "B r j"], rows: slice) -> Float[Tensor, "B r"]:
    errors = (_products(ours, rows, rows.stop) - _products(theirs, rows, rows.stop)).square().sum(1)
    return torch.where(times > 0, errors * times, 0.0).sum(2)


def _products(heads: Float[Tensor, "B H P d"], rows: slice, stop: int | None = None) -> Float[Tensor, "B H r j"]:
    return heads[:, :, rows] @ heads[:, :, :stop].transpose(-1, -2) / math.sqrt(heads.shape[-1])


def _heads(states: Float[Tensor, "B P D"], num_heads: int) -> Float[Tensor, "B H P d"]:
    parts: Tensor = states.unflatten(-1, (num_heads, -1))
    return parts.transpose(1, 2)


def _row_chunks(mask: Bool[Tensor, "B P"], num_heads: int, buffer: int) -> list[slice]:
    return list(chunks(mask.shape[1], max(1, buffer // max(1, num_heads * mask.numel()))))


def _related(items: Items, rows: slice) -> Bool[Tensor, "B r P"]:
    same = items.segments[:, rows, None] == items.segments[:, None]
    return same & items.mask[:, rows, None] & items.mask[:, None]


@dataclass(frozen=True)
class Choice:
    """Items at which angles are taken.

    Attributes:
        salient: Place of each on the flat grid.
        neighbours: Places of those that span the angles with it.
        usable: False where a segment has no more neighbours.
    """

    salient: Int[Tensor, " A"]
    neighbours: Int[Tensor, "A k"]
    usable: Bool[Tensor, "A k"]


@torch.no_grad()
def salient_items(teacher: Float[Tensor, "B P E"], items: Items, relations: Relations, *, buffer: int) -> Choice:
    """The items that a segment attends to most, and the neighbours that each attends to most.

    Attention is a softmax over all items of the segment of the teacher's products, summed over heads. Salience is
    what an item gets from all. The number chosen depends on the data, so a GPU is waited for here.
    """
    heads = _heads(teacher, relations.num_heads)
    salience = teacher.new_zeros(items.mask.shape)
    nearest = []
    usable = []
    for rows in _row_chunks(items.mask, relations.num_heads, buffer):
        related = _related(items, rows)
        scores = _products(heads, rows).masked_fill(~related.unsqueeze(1), -torch.inf)
        attention = scores.softmax(-1).nan_to_num(0.0).sum(1)  # [B r P]; an empty row has none
        salience += attention.sum(1)
        related = related & ~torch.ones_like(related).tril(rows.start).triu(rows.start)  # without itself
        local = (
            attention.masked_fill(~related, -1.0).topk(min(relations.neighbours, related.shape[-1]), -1).indices
        )
        nearest.append(local)
        usable.append(related.gather(-1, local))
    offsets = torch.arange(items.mask.shape[0], device=teacher.device)[:, None, None] * items.mask.shape[1]
    chosen = _first_of_segments(salience.masked_fill(~items.mask, -1.0), items, relations.salient)
    neighbours = (torch.cat(nearest, 1) + offsets).flatten(0, 1)
    return Choice(chosen, neighbours[chosen], torch.cat(usable, 1).flatten(0, 1)[chosen])


def _first_of_segments(scores: Float[Tensor, "B P"], items: Items, count: int) -> Int[Tensor, " A"]:
    """Places on the flat grid of the `count` items of each segment with the highest scores."""
    segments = items.segments.flatten()
    # Two stable sorts leave segments in order and scores falling within each, so a rank is a distance.
    by_score = scores.flatten().argsort(descending=True, stable=True)
    order = by_score[segments[by_score].argsort(stable=True)]
    ordered = segments[order]
    rank = torch.arange(len(order), device=order.device) - torch.searchsorted(ordered, ordered)
    return order[(rank < count) & items.mask.flatten()[order]]


def triplet_errors(
    student: Float[Tensor, "B P D"], teacher: Float[Tensor, "B P E"], items: Items, choice: Choice, *, buffer: int
) -> tuple[Float[Tensor, "B P"], Int[Tensor, "B P"]]:
    """Sum over neighbours j != k of a salient item i of smooth_l1(cos(i; j, k)), and their number.

    The angle is that between h_i - h_j and h_i - h_k over the whole width, as the official code calls it with one
    head. Where two states are equal there is none.
    """
    ours = student.flatten(0, 1)
    theirs = teacher.flatten(0, 1)
    width = max(student.shape[-1], teacher.shape[-1])
    size = max(1, buffer // (max(1, choice.neighbours.shape[1]) * width))
    sums = []
    counts = []
    for rows in chunks(len(choice.salient), size):
        i = choice.salient[rows]
        others = choice.neighbours[rows]
        usable = choice.usable[rows]
        # [a k D] differences are made again in backward instead of being kept.
        of_rows = checkpoint(_angle_errors, ours, theirs, i, others, usable, use_reentrant=False)
        sums.append(of_rows[0])
        counts.append(of_rows[1])
    empty = torch.zeros_like(ours[:, 0])
    grid = empty.index_add(0, choice.salient, torch.cat(sums))
    number = empty.long().index_add(0, choice.salient, torch.cat(counts))
    return grid.view(items.mask.shape), number.view(items.mask.shape)


def _angle_errors(
    ours: Float[Tensor, "n D"], theirs: Float[Tensor, "n E"], i: Tensor, others: Tensor, usable: Tensor
) -> tuple[Float[Tensor, " a"], Int[Tensor, " a"]]:
    student = _directions(ours[i].unsqueeze(1) - ours[others])  # [a k D]
    teacher = _directions(theirs[i].unsqueeze(1) - theirs[others])
    usable = usable & (student != 0).any(-1) & (teacher != 0).any(-1)
    counted = usable.unsqueeze(1) & usable.unsqueeze(2)  # [a k k]
    counted = counted & ~torch.eye(counted.shape[-1], dtype=torch.bool, device=counted.device)
    errors = smooth_l1_loss(student @ student.mT, teacher @ teacher.mT, reduction="none")
    return torch.where(counted, errors, 0.0).sum((1, 2)), counted.sum((1, 2))


def _directions(difference: Tensor) -> Tensor:
    """Unit vectors; 0 with a gradient of 0 where there is no difference."""
    squares = difference.square().sum(-1, keepdim=True)
    apart = squares > 0
    return torch.where(apart, difference * torch.where(apart, squares, 1.0).rsqrt(), 0.0)


# ---- samples


def sample_loss(
    student: Float[Tensor, "B S D"],
    teacher: Float[Tensor, "B S E"],
    items: Items,
    num_heads: int,
    *,
    buffer: int = BUFFER,
) -> Float[Tensor, ""]:
    """Smooth L1 of the angles between the mean states of all segments of a micro-batch (`SampleLoss`).

    Returns:
        Mean over heads and all G^3 triplets, as in the official code, times the text positions of the micro-batch.
        Triplets of fewer than three segments count as 0. The sum changes with what is in a micro-batch.
    """
    empty = ~items.mask.unsqueeze(-1)
    ours, theirs, emphasis = (
        _segment_means(full_precision(states).masked_fill(empty, 0.0), items)
        for states in (student, teacher, items.emphasis.unsqueeze(-1))
    )
    ours, theirs = (means.unflatten(-1, (num_heads, -1)).transpose(0, 1) for means in (ours, theirs))  # [H G d]
    size = max(1, buffer // max(1, ours.numel() + theirs.numel(), num_heads * ours.shape[1] ** 2))
    errors = [
        checkpoint(_sample_errors, ours, theirs, rows, use_reentrant=False) for rows in chunks(ours.shape[1], size)
    ]
    total = (torch.cat(errors) * emphasis.squeeze(-1).to(ours)).sum()
    mean: Tensor = total / max(1, num_heads * ours.shape[1] ** 3)
    return mean * items.mask.sum()


def _segment_means(states: Float[Tensor, "B S D"], items: Items) -> Float[Tensor, "G D"]:
    _, group = items.segments[items.mask].unique_consecutive(return_inverse=True)
    counts = group.bincount().unsqueeze(-1)
    sums = states.new_zeros(len(counts), states.shape[-1]).index_add(0, group, states[items.mask])
    means: Tensor = sums / counts
    return means


def _sample_errors(
    ours: Float[Tensor, "H G d"], theirs: Float[Tensor, "H G e"], rows: slice
) -> Float[Tensor, " r"]:
    student, teacher = (_directions(means[:, rows, None] - means[:, None]) for means in (ours, theirs))
    return smooth_l1_loss(student @ student.mT, teacher @ teacher.mT, reduction="none").sum((0, 2, 3))

"""Lists of a teacher's most probable tokens, carried from its vocabulary to the student's.

As `carry` does for full distributions, but only what is listed can be carried: the probability of what is
not stays with the tail, and an entropy counts tokens of the tail as different ones.
The label's probability is exact where its token of the teacher's is listed or is the text's own.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from collegium.alignment.carry import CarryRows, path_probs
from collegium.losses.divergences import LOG_ZERO
from collegium.losses.precision import full_precision
from collegium.signals.signals import TopKSignal


def carried_lists(
    signal: TopKSignal,
    own_labels: Int[Tensor, " U"],
    first: Int[Tensor, " T"],
    rows: CarryRows,
    vocab_size: int,
) -> TopKSignal:
    """The lists over the student's vocabulary. Arguments as for `carry.carried_logprobs`.

    Drawn lists have no entries and no chains: a quotient of draws would not be right on average.
    """
    own_probs = full_precision(signal.logprobs).exp().masked_fill(signal.token_ids < 0, 0.0)  # [U K]
    gold = full_precision(signal.label_logprob).exp()
    path, chain = path_probs(gold, rows)
    start = rows.main.clamp_min(0)
    parts = [_of_main(signal, own_probs, first, start, path, vocab_size)]
    if not signal.drawn:
        parts.append(_of_entries(signal, own_probs, rows))
        moved = torch.where(rows.chain > 0, path * chain, 0.0)
        parts += _of_chain(moved, first[own_labels[start]], rows.labels, vocab_size)
    place, ids, probs = (torch.cat(column) for column in zip(*parts, strict=True))
    # Z of `carry`: all of the row where both have cut, listed or not, and what crosses the place.
    listed_main = own_probs.sum(-1)[start] * path
    crossing = parts[1][2].new_zeros(len(rows)).index_add_(0, parts[1][0], parts[1][2]) if len(parts) > 1 else 0.0
    total = path + crossing
    valid = total > 0
    total = total.clamp_min(torch.finfo(path.dtype).tiny)
    place, ids, probs = _merged(place, ids, probs / total[place], vocab_size)
    own_rest = _unlisted_entropy(signal, own_probs)[start]
    tail = (path - listed_main).clamp_min(0.0) / total  # what the teacher did not list
    scale = path / total
    # Entropy of the list, and of the teacher's own tail scaled by s: s H - (s * tail mass) log s.
    listed = -torch.special.xlogy(probs, probs)
    entropy = probs.new_zeros(len(rows)).index_add_(0, place, listed)
    entropy = entropy + scale * own_rest - torch.special.xlogy(tail, scale)
    at_label = probs.new_zeros(len(rows)).index_add_(0, place, probs * (ids == rows.labels[place]))
    # A label that the teacher did not list still has an exact figure, unless it is carried in pieces.
    own_label = own_labels[start]
    is_listed = (signal.token_ids[start] == own_label.unsqueeze(-1)).any(-1)
    is_carried = (first[own_label] == rows.labels) & (rows.main >= 0) & (rows.chain == 0)
    at_label = at_label + torch.where(is_carried & ~is_listed, gold[start] * scale, 0.0)
    token_ids, logprobs = _padded(place, ids, probs, len(rows))
    rest = 1.0 - logprobs.exp().masked_fill(token_ids < 0, 0.0).sum(-1)
    return replace(
        signal,
        token_ids=token_ids,
        logprobs=logprobs,
        entropy=entropy.clamp_min(0.0),
        label_logprob=at_label.log().clamp_min(LOG_ZERO),
        vocab_size=vocab_size,
        tail_logprob=rest.clamp_min(0.0).log(),
        weight_label_logprob=None,
        valid=valid,
    )


def certain_elsewhere(signal: TopKSignal, labels: Int[Tensor, " N"], carried: Bool[Tensor, " N"]) -> TopKSignal:
    """The same lists with the label alone at places where nothing was carried."""
    is_first = torch.arange(signal.token_ids.shape[1], device=labels.device) == 0  # [K]
    certain = torch.where(is_first, labels.unsqueeze(-1), -1)
    assert signal.tail_logprob is not None, "made by `carried_lists`"
    return replace(
        signal,
        token_ids=torch.where(carried.unsqueeze(-1), signal.token_ids, certain),
        logprobs=signal.logprobs.masked_fill(~carried.unsqueeze(-1), 0.0),
        entropy=signal.entropy.masked_fill(~carried, 0.0),
        label_logprob=signal.label_logprob.masked_fill(~carried, 0.0),
        tail_logprob=signal.tail_logprob.masked_fill(~carried, -torch.inf),
        valid=None,
    )


_Part = tuple[Int[Tensor, " L"], Int[Tensor, " L"], Float[Tensor, " L"]]
"""Place, token of the student's, and probability before all are divided by their sum."""


def _of_main(
    signal: TopKSignal, own_probs: Tensor, first: Tensor, start: Tensor, path: Tensor, vocab_size: int
) -> _Part:
    """Entries listed where both have cut; a token without counterpart stays in the tail."""
    token_ids = signal.token_ids.long()[start]  # [N K]
    ids = torch.where(token_ids < 0, vocab_size, first[token_ids.clamp_min(0)])
    probs = own_probs[start] * path.unsqueeze(-1)
    kept = (ids < vocab_size) & (probs > 0)
    place = torch.arange(len(start), device=ids.device).unsqueeze(-1).expand_as(ids)
    return place[kept], ids[kept], probs[kept]


def _of_entries(signal: TopKSignal, own_probs: Tensor, rows: CarryRows) -> _Part:
    """Entries listed at the cut before that continue after the place."""
    known = rows.entry_follows >= 0
    place = rows.entry_rows[known]
    follows = rows.entry_follows[known]
    probs = _listed_probs(signal, own_probs, rows.before[place], rows.entry_tokens[known])
    found = probs > 0
    return place[found], follows[found], probs[found]


def _listed_probs(signal: TopKSignal, own_probs: Tensor, at: Tensor, tokens: Tensor) -> Float[Tensor, " C"]:
    """Probability of one token at each of some rows; 0 where it is not listed."""
    # One sorted list of row * size + token for all rows, so that every question is a binary search.
    size = int(max(signal.token_ids.max().item() if signal.token_ids.numel() else 0, 0)) + 1
    row = torch.arange(len(signal), device=tokens.device).unsqueeze(-1)
    listed = signal.token_ids >= 0
    codes, order = (row * size + signal.token_ids.long())[listed].sort()
    if not len(codes):
        return own_probs.new_zeros(len(tokens))
    asked = at * size + tokens
    place = torch.searchsorted(codes, asked).clamp_max(len(codes) - 1)
    found = (tokens < size) & (codes[place] == asked)
    return torch.where(found, own_probs[listed][order[place]], 0.0)


def unknown_share_at_most(signal: TopKSignal, rows: CarryRows, inside: Bool[Tensor, " N"]) -> Float[Tensor, " N"]:
    """`carry.unknown_share` for lists: a token that is not listed may be as probable as the last that is.

    Infinite where the text's own continuation is not listed, which a target would call impossible. 0 outside of
    `inside`.
    """
    own_probs = full_precision(signal.logprobs).exp().masked_fill(signal.token_ids < 0, 0.0)  # [U K]
    least = own_probs.masked_fill(signal.token_ids < 0, torch.inf).amin(-1)
    most = torch.minimum(least, (1.0 - own_probs.sum(-1)).clamp_min(0.0))  # of a token that is not listed
    here = inside[rows.entry_rows]
    place = rows.entry_rows[here]
    tokens = rows.entry_tokens[here]
    follows = rows.entry_follows[here]
    before = rows.before[place]
    probs = _listed_probs(signal, own_probs, before, tokens)
    # For an upper bound, tokens that end here count as much as they may, those that go on as little.
    ending = torch.where(probs > 0, probs, most[before]).masked_fill(follows >= 0, 0.0)
    parts = (ending, probs.masked_fill(follows < 0, 0.0), probs * (follows == rows.labels[place]))
    unknown, known, label = (probs.new_zeros(len(rows)).index_add_(0, place, part) for part in parts)
    share = torch.where(label > 0, unknown / (unknown + known).clamp_min(torch.finfo(probs.dtype).tiny), torch.inf)
    return share.masked_fill(~inside, 0.0)


def _of_chain(moved: Tensor, source: Tensor, labels: Tensor, vocab_size: int) -> Sequence[_Part]:
    """The text's own continuation, from the token that its beginning is carried to, to the student's next one."""
    place = (moved > 0).nonzero().squeeze(-1)
    within = place[source[place] < vocab_size]
    return [(within, source[within], -moved[within]), (place, labels[place], moved[place])]


def _merged(place: Tensor, ids: Tensor, probs: Tensor, vocab_size: int) -> _Part:
    """One entry for each place and token; what is below 0 had not been listed."""
    codes, inverse = (place * vocab_size + ids).unique(return_inverse=True)
    summed = probs.new_zeros(len(codes)).index_add_(0, inverse, probs)
    kept = summed > 0
    return codes[kept] // vocab_size, codes[kept] % vocab_size, summed[kept]


def _unlisted_entropy(signal: TopKSignal, own_probs: Tensor) -> Float[Tensor, " U"]:
    """-sum p log p over what is not listed, from the exact entropy."""
    listed: Tensor = torch.special.xlogy(own_probs, own_probs).sum(-1)
    return (full_precision(signal.entropy) + listed).clamp_min(0.0)


def _padded(place: Tensor, ids: Tensor, probs: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Lists of one width, filled up with -1."""
    lengths = torch.bincount(place, minlength=num_rows)
    width = int(lengths.max()) if num_rows else 1
    column = torch.arange(len(place), device=place.device) - (lengths.cumsum(0) - lengths)[place]
    token_ids = ids.new_full((num_rows, max(width, 1)), -1)
    logprobs = probs.new_zeros(token_ids.shape)
    token_ids[place, column] = ids
    logprobs[place, column] = probs.log()
    return token_ids, logprobs

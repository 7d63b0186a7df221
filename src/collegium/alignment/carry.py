"""A teacher's distributions carried from its vocabulary to the student's.

Where both tokenizers have cut, at place a, the student's next token y has the probability

    p(y) = [ P(s) * sum over w that begin with y of P(w | ..a) + sum over v of P(v) ] / Z

where s are the teacher's tokens since the last common cut, and v those it might have written there that go
on behind a with y where the student has cut them. Z makes it a distribution. The first sum is one addition
for each token of the teacher's (`index_add`); the second is empty at most places.

No probability is lost: a student token that is the beginning of several of the teacher's gets the sum of
theirs. What is not known is how a token of the teacher's goes on that is only the beginning of some student
token: it counts for the longest student token in it, but for the text's own continuation, whose probability is
the product of its tokens' (`chain`).

For 262,144 tokens carried to 49,152 at 128 places: 22 ms on two cores, beside 224 ms for the logits.
"""

from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from collegium.losses.divergences import LOG_ZERO
from collegium.losses.precision import full_precision
from collegium.signals.signals import (
    Carrier,
    DenseSignal,
    LinearHead,
    ProjectedSignal,
    TeacherSignal,
    TopKSignal,
    TransparentHead,
)


@dataclass(frozen=True)
class CarryRows:
    """Source of the distributions at N places; see `collegium.alignment.plan.AlignmentPlan`.

    Attributes:
        main: Row of the teacher that predicts from the same text; -1 for none.
        before: Row at the last common cut before, of which the entries are; -1 for none.
        chain: Number of rows from `main` on whose labels are the student's next token together; 0 where the
            first of them is carried to it.
        labels: The student's next token.
        entry_rows: Place of each of C entries, in order.
        entry_tokens: The teacher's token, predicted at `before`.
        entry_follows: The student's next token in it; -1 where it is not known.
    """

    main: Int[Tensor, " N"]
    before: Int[Tensor, " N"]
    chain: Int[Tensor, " N"]
    labels: Int[Tensor, " N"]
    entry_rows: Int[Tensor, " C"]
    entry_tokens: Int[Tensor, " C"]
    entry_follows: Int[Tensor, " C"]

    def __len__(self) -> int:
        return len(self.main)

    def __getitem__(self, rows: slice) -> "CarryRows":
        first, last = torch.searchsorted(
            self.entry_rows, self.entry_rows.new_tensor([rows.start, rows.stop])
        ).tolist()
        entries = slice(first, last)
        return CarryRows(
            self.main[rows],
            self.before[rows],
            self.chain[rows],
            self.labels[rows],
            self.entry_rows[entries] - rows.start,
            self.entry_tokens[entries],
            self.entry_follows[entries],
        )

    def to(self, device: torch.device) -> "CarryRows":
        """The same with its tensors on `device`."""
        return CarryRows(*(getattr(self, field.name).to(device) for field in fields(self)))

    def needed(self, num_rows: int) -> Bool[Tensor, " U"]:
        """Teacher's rows that are read: from the cut before, or the place itself, to the end of a chain."""
        last = torch.where(self.main >= 0, self.main + self.chain.clamp_min(1), self.before + 1)
        first = torch.where(self.before >= 0, self.before, self.main)
        used = first >= 0
        # +1 where a span of rows begins and -1 past its end: the running sum counts the spans over each row.
        change = self.main.new_zeros(num_rows + 1)
        change.index_add_(0, first[used], torch.ones_like(first[used]))
        change.index_add_(0, last[used], -torch.ones_like(last[used]))
        return change.cumsum(0)[:-1] > 0

    def renumbered(self, places: Int[Tensor, " U"]) -> "CarryRows":
        """The same with rows at other places."""
        if not len(places):
            return self
        main, before = (torch.where(r >= 0, places[r.clamp_min(0)], -1) for r in (self.main, self.before))
        return replace(self, main=main, before=before)


def carried_logprobs(
    logits: Float[Tensor, "R T"],
    own_labels: Int[Tensor, " R"],
    first: Int[Tensor, " T"],
    rows: CarryRows,
    vocab_size: int,
) -> Float[Tensor, "n V"]:
    """Log-probabilities over the student's vocabulary, at least `LOG_ZERO`; equal ones where nothing is carried.

    NaN where the teacher says NaN, or rules out all that is carried from it.

    Args:
        logits: The teacher's, at consecutive rows.
        own_labels: The teacher's token that follows each.
        first: Student token that each of the teacher's tokens begins with; `vocab_size` for none.
        rows: Where each place comes from, counted in these logits.
        vocab_size: Size of the student's vocabulary.
    """
    probs = full_precision(logits).softmax(-1)
    gold = probs.gather(-1, own_labels.unsqueeze(-1)).squeeze(-1)  # [R]
    # The first sum of the formula. Tokens without counterpart go to one more column, which is cut off at the end.
    pooled = probs.new_zeros((len(probs), vocab_size + 1)).index_add_(1, first, probs)
    path, chain = path_probs(gold, rows)
    # The second sum: tokens from the cut before that reach past the place, with the student's next token in each.
    known = rows.entry_follows >= 0
    place = rows.entry_rows[known]
    follows = rows.entry_follows[known]
    entries = probs[rows.before[place], rows.entry_tokens[known]]
    crossing = path.new_zeros(len(rows)).index_add_(0, place, entries)
    # Both too small for a float: what is said from the same text is still known.
    path = path.masked_fill((rows.main >= 0) & (path == 0) & (crossing == 0), 1.0)
    start = rows.main.clamp_min(0)
    moved = torch.where(rows.chain > 0, path * chain, 0.0)
    # One pass for what would be three: sums are known before places are filled.
    kept = pooled[:, :vocab_size].sum(-1)
    total = crossing + torch.where(rows.main >= 0, path * kept[start], 0.0) if len(pooled) else crossing
    # A teacher's NaN must show, and so must a place at which it rules out all that could be said.
    total = total.masked_fill((rows.main < 0) & (rows.before < 0), 1.0)
    if len(pooled):
        carried = pooled[start].mul_((path / total).unsqueeze(-1))
        carried[rows.main < 0] = 0.0  # 0 * NaN is NaN
    else:
        carried = pooled.new_zeros((len(rows), vocab_size + 1))
    carried.index_put_((place, follows), entries / total[place], accumulate=True)
    # The text's own continuation is known to the end: what its first token gave to `source` moves to the label.
    split = rows.chain.nonzero().squeeze(-1)
    source = first[own_labels[rows.main[split]]]
    share = moved[split] / total[split]
    carried[split, source] = (carried[split, source] - share).clamp_min(0.0)  # rounding may leave -1e-9
    carried.index_put_((split, rows.labels[split]), share, accumulate=True)
    return carried[:, :vocab_size].log_().clamp_min_(LOG_ZERO)


def path_probs(gold: Float[Tensor, " R"], rows: CarryRows) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Probability of the teacher's tokens since the cut before, 0 without `main`; and of those of the chain."""
    logs = gold.double().clamp_min(torch.finfo(gold.dtype).tiny).log()  # a sum that is -inf would not end
    is_bad = logs.isnan()
    # Sums over differences: one NaN in them would be everyone's from there on.
    sums, bad = (
        torch.nn.functional.pad(values.cumsum(0), (1, 0)) for values in (logs.masked_fill(is_bad, 0.0), is_bad)
    )  # [R + 1]
    start = rows.main.clamp_min(0)
    before = torch.where(rows.before >= 0, rows.before, start)

    def between(first: Tensor, last: Tensor) -> Tensor:
        return (sums[last] - sums[first]).masked_fill(bad[last] > bad[first], torch.nan)

    path = torch.where(rows.main >= 0, between(before, start), -torch.inf).exp()
    chain = between(start, start + rows.chain).exp()
    return path.to(gold.dtype), chain.to(gold.dtype)


@dataclass(frozen=True)
class LogitCarrier:
    """Carries distributions that a teacher has in full; see `collegium.signals.signals.Carrier`.

    Attributes:
        signal: The teacher's, in its own vocabulary, at temperature 1.
        own_labels: Its token that follows each of its rows.
        first: As for `carried_logprobs`.
        rows: Where each place comes from.
        vocab_size: Size of the student's vocabulary.
    """

    signal: TeacherSignal
    own_labels: Int[Tensor, " U"]
    first: Int[Tensor, " T"]
    rows: CarryRows
    vocab_size: int

    def __len__(self) -> int:
        return len(self.rows)

    def __call__(self, rows: slice) -> Float[Tensor, "n V"]:
        """Log-probabilities at these places."""
        part = self.rows[rows]
        needed = part.needed(len(self.own_labels))
        part = part.renumbered(needed.cumsum(0) - 1)
        logits = logits_at(self.signal, needed.nonzero().squeeze(-1))
        return carried_logprobs(logits, self.own_labels[needed], self.first, part, self.vocab_size)

    def to(self, device: torch.device) -> "LogitCarrier":
        """The same with its tensors on `device`."""
        return LogitCarrier(
            self.signal.to(device),
            self.own_labels.to(device),
            self.first.to(device),
            self.rows.to(device),
            self.vocab_size,
        )


@dataclass(frozen=True)
class LabelsElsewhere:
    """A carrier whose places without anything carried are sure of the text's own next token, as in FuseLLM.

    Attributes:
        carrier: Makes the distributions.
        labels: The student's next tokens.
        carried: Where the carrier has something.
    """

    carrier: Carrier
    labels: Int[Tensor, " N"]
    carried: Bool[Tensor, " N"]

    def __len__(self) -> int:
        return len(self.carrier)

    def __call__(self, rows: slice) -> Float[Tensor, "n V"]:
        """Log-probabilities at these places."""
        logprobs = self.carrier(rows)
        certain = torch.full_like(logprobs, LOG_ZERO).scatter_(-1, self.labels[rows].unsqueeze(-1), 0.0)
        return torch.where(self.carried[rows].unsqueeze(-1), logprobs, certain)

    def to(self, device: torch.device) -> "LabelsElsewhere":
        """The same with its tensors on `device`."""
        return LabelsElsewhere(self.carrier.to(device), self.labels.to(device), self.carried.to(device))


def logits_at(signal: TeacherSignal, rows: Int[Tensor, " R"]) -> Float[Tensor, "R T"]:
    """A teacher's logits at some of its rows, in ascending order."""
    assert not isinstance(signal, TopKSignal), "carried by lists"
    first, last = (int(rows[0]), int(rows[-1]) + 1) if len(rows) else (0, 0)
    if last - first == len(rows):
        return signal.logits(slice(first, last))
    if isinstance(signal, ProjectedSignal):
        return replace(signal, hidden=signal.hidden[rows], valid=None).logits(slice(0, len(rows)))
    return signal.logits(slice(first, last))[rows - first]


def unknown_share(
    signal: ProjectedSignal | DenseSignal, rows: CarryRows, inside: Bool[Tensor, " N"]
) -> Float[Tensor, " N"]:
    """Share, of what a teacher may have written at places inside one of its tokens, that ends there.

    What follows such a token it would have said from a text that it did not read. Of the head only the rows of
    the tokens concerned are needed, as the share does not depend on the others. 0 outside of `inside`.
    """
    here = inside[rows.entry_rows]
    place = rows.entry_rows[here]
    tokens = rows.entry_tokens[here]
    head = signal.head if isinstance(signal, ProjectedSignal) else None
    linear = head.as_linear() if isinstance(head, TransparentHead) else None
    if linear is not None and isinstance(signal, ProjectedSignal):
        logits = _logits_of_tokens(linear, signal.hidden[rows.before[place]], tokens)
    else:
        places, inverse = rows.before[place].unique(return_inverse=True)
        logits = full_precision(logits_at(signal, places))[inverse, tokens]
    ends = rows.entry_follows[here] < 0
    # A softmax over the entries of each place: the normaliser over the vocabulary cancels in the share.
    total = torch.full((len(rows),), -torch.inf, dtype=logits.dtype, device=logits.device)
    total = total.scatter_reduce(0, place, logits, "amax")
    masses = (logits - total[place]).exp()
    whole, unknown = (torch.zeros_like(total).index_add_(0, place, part) for part in (masses, masses * ends))
    return torch.where(whole > 0, unknown / whole.clamp_min(torch.finfo(whole.dtype).tiny), 0.0)


def _logits_of_tokens(head: LinearHead, hidden: Tensor, tokens: Tensor) -> Float[Tensor, " C"]:
    """Logit of one token at each row, 4,096 rows at a time."""
    parts = []
    for start in range(0, max(len(tokens), 1), 4096):
        ids = tokens[start : start + 4096]
        product = (full_precision(hidden[start : start + 4096]) * full_precision(head.weight[ids])).sum(-1)
        if head.bias is not None:
            product = product + full_precision(head.bias[ids])
        parts.append(product)
    logits = torch.cat(parts) * head.scale
    return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)

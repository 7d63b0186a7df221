"""Teachers that are lists of their most probable tokens, without any [n V] tensor of theirs.

Of what a teacher does not list two things are known: how much mass it has, and that none of it is above
the least probable token of the list. Of all distributions that agree with that, the one nearest to the
student q is

    p_v = min(c q_v, cap)    outside the list, with c such that the mass is right,

for every f-divergence (the ratio to q is constant but where the cap binds), and by the envelope theorem
the gradient of that least divergence is the gradient at this p held fixed. So a `bucket` claims nothing
that is not known: for one teacher it never exceeds the dense divergence. For several it does at most by
the conflict among them, since each is completed by itself.

On a 135M teacher with 49 tokens listed at a position the gradient is off by 1.9 % near the student and
1.3 % far from it; with 64 and no cap, as a bucket is usually made, by 13 % and 4.6 % (docs/cache.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from collegium.fused.compiled import run
from collegium.fused.elementwise import finish_lists, finish_predictions, mass_above
from collegium.losses.divergences import LOG_ZERO
from collegium.signals.signals import TeacherSignal, TopKSignal


ROUNDS = 6
"""Of the search for c, which doubles its digits each round: 4 leave 3e-6 of the gradient on real text."""

MAX_ROUNDS = 50

BLOCK, MAX_BLOCKS = 64, 128
"""Tokens of a block of the vocabulary, and blocks in which the cap is looked for: those with the student's highest
logits. A cap binds at 10 to 20 tokens of 49,152, so these few hold them, and everything else is c q."""


def all_listed(signals: Sequence[TeacherSignal]) -> bool:
    """Whether the mixture of these teachers is known from their lists and the student alone."""
    return bool(signals) and all(isinstance(s, TopKSignal) and s.tail != "uniform" for s in signals)


@dataclass(frozen=True)
class Entries:
    """Some rows of a list, in the type that is computed in.

    Attributes:
        ids: Token ids; 0 where nothing is listed.
        listed: False on what fills up a row.
        logprobs: Log-probabilities; LOG_ZERO where nothing is listed.
        tail: Mass that is not listed; 0 if the list was renormalised.
        cap: Highest probability that an unlisted token can have.
    """

    ids: Int[Tensor, "n K"]
    listed: Bool[Tensor, "n K"]
    logprobs: Float[Tensor, "n K"]
    tail: Float[Tensor, " n"]
    cap: Float[Tensor, " n"]

    @classmethod
    def of(cls, signal: TopKSignal, rows: slice) -> "Entries":
        """Read rows of a signal."""
        ids, logprobs = signal.token_ids[rows].long(), signal.logprobs[rows]
        listed = ids >= 0
        logprobs = logprobs if logprobs.dtype == torch.float64 else logprobs.float()
        logprobs = logprobs.masked_fill(~listed, -torch.inf)
        if signal.tail == "renormalize":
            logprobs, tail = logprobs.log_softmax(-1), torch.zeros_like(logprobs[:, 0])
        elif signal.tail_logprob is None:
            tail = (1.0 - logprobs.exp().sum(-1)).clamp_min(0.0)
        else:
            tail = signal.tail_logprob[rows].to(logprobs.dtype).exp()
        least = logprobs.masked_fill(~listed, torch.inf).amin(-1).exp().clamp_max(1.0)
        num_rest = (signal.vocab_size - listed.sum(-1)).clamp_min(1)
        return cls(ids.clamp_min(0), listed, logprobs.clamp_min(LOG_ZERO), tail, least.maximum(tail / num_rest))


def dense_logprobs(
    signal: TopKSignal, rows: slice, student_logprobs: Float[Tensor, "n V"] | None = None
) -> Float[Tensor, "n V"]:
    """Log-probabilities over the whole vocabulary, with a tail as the signal's policy says.

    Where there is no student, a bucket is spread evenly.
    """
    entries = Entries.of(signal, rows)
    # What fills up a row repeats its first entry: the same value is written again.
    ids = torch.where(entries.listed, entries.ids, entries.ids[:, :1])
    kept = torch.where(entries.listed, entries.logprobs, entries.logprobs[:, :1])
    if signal.tail == "bucket" and student_logprobs is not None:
        student = student_logprobs.to(kept.dtype).scatter(-1, ids, -torch.inf)
        factor = _factor(student.exp(), entries.tail, entries.cap)
        dense = (student + factor.log().unsqueeze(-1)).minimum(entries.cap.log().unsqueeze(-1))
        dense = dense.clamp_min(LOG_ZERO)
    else:
        num_rest = (signal.vocab_size - entries.listed.sum(-1)).clamp_min(1)
        even = (entries.tail.log() - num_rest.log()).clamp_min(LOG_ZERO)
        dense = even.unsqueeze(-1).expand(len(ids), signal.vocab_size).contiguous()
    return dense.scatter_(-1, ids, kept)


def _factor(
    rest: Float[Tensor, "n V"], tail: Float[Tensor, " n"], cap: Float[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """c, for the student's probabilities `rest` outside the list."""
    factor = _next_factor(tail, cap, torch.zeros_like(tail), rest.sum(-1))
    for _ in range(MAX_ROUNDS):
        over = rest * factor.unsqueeze(-1) > cap.unsqueeze(-1)
        found = _next_factor(tail, cap, over.sum(-1).to(cap.dtype), (rest * ~over).sum(-1)).maximum(factor)
        if torch.equal(found, factor):
            break
        factor = found
    return factor


def _next_factor(tail: Tensor, cap: Tensor, num_capped: Tensor, student_mass: Tensor) -> Tensor:
    """c, if these tokens are capped and the student has this mass on the others."""
    return (tail - cap * num_capped).clamp_min(0.0) / student_mass.clamp_min(8 * torch.finfo(tail.dtype).eps)


class ListedMixture:
    """The mixture of lists against the student, on some rows.

    Args:
        signals: One per teacher, none with a uniform tail.
        rows: Which positions.
        weights: Teacher weights; 0 where a teacher does not count, and is not read.
        logits: Finished logits of the student.
        log_total: Their log-sum-exp at `temperature`.
        survey: Entropy at `temperature` [n], and the highest logit of each whole block of tokens.
        temperature: Softens the student; the lists were made at it.

    Attributes:
        ids: Union of the lists; what fills up a row repeats its first id.
        student: The student's log-probabilities there.
        probs: The mixture's probabilities there.
    """

    def __init__(
        self,
        signals: Sequence[TopKSignal],
        rows: slice,
        weights: Float[Tensor, "n M"],
        logits: Float[Tensor, "n V"],
        log_total: Float[Tensor, " n"],
        survey: tuple[Tensor, Tensor],
        temperature: float,
    ) -> None:
        self.weights = weights
        self._entropy, maxima = survey
        self._high = _HighTokens(maxima, logits.shape[-1])
        self._lists = [_Student(Entries.of(s, rows), logits, log_total, temperature) for s in signals]
        self._high_logits = self._high.read(logits)
        self._solve(self._high_logits, log_total, temperature)
        # What does not count is in no union, so that it changes nothing, not even a rounding.
        active = weights.unsqueeze(-1) > 0  # [n M 1]
        counted = [
            replace(teacher.entries, listed=teacher.entries.listed & active[:, m])
            for m, teacher in enumerate(self._lists)
        ]
        self.ids, self._real, places = _union(counted, logits.shape[-1])
        self.student = _student_at(self.ids, logits, log_total, temperature)
        self._completed = self._complete(self.student)  # [n M U]
        self.probs = self._mix(counted, places)

    def _solve(self, logits: Tensor, log_total: Tensor, temperature: float) -> None:
        """Find each teacher's c, given the logits where a cap may bind; all with one pass a round."""
        teachers = self._lists
        tails, caps, rests = (
            torch.stack(column, -1)
            for column in zip(*((t.entries.tail, t.entries.cap, t.rest) for t in teachers), strict=True)
        )
        tails, caps = (figure.to(log_total.dtype) for figure in (tails, caps))
        dead = ~(tails > 0) | ~caps.isfinite()  # NaN too
        tails, caps, rests = (
            tails.masked_fill(dead, 0.0),
            caps.masked_fill(dead, 1.0),
            rests.masked_fill(dead, 1.0),
        )
        factors = _next_factor(tails, caps, torch.zeros_like(tails), rests)
        for _ in range(ROUNDS):
            limits = (caps.log() - factors.clamp_min(torch.finfo(factors.dtype).tiny).log()).contiguous()
            counts, masses = run(mass_above, (logits, log_total, limits), temperature)
            own = [t.above(limits[:, m]) for m, t in enumerate(teachers)]
            own_counts, own_masses = (torch.stack(column, -1) for column in zip(*own, strict=True))
            capped = (counts - own_counts).masked_fill(dead, 0.0)
            rest = rests - (masses - own_masses).masked_fill(dead, 0.0)
            factors = _next_factor(tails, caps, capped, rest).maximum(factors)
        self.factors = factors
        self.caps = caps.masked_fill(dead, 0.0)

    def _complete(self, student: Float[Tensor, "n U"]) -> Float[Tensor, "n M U"]:
        """What each teacher would have at tokens that it does not list."""
        return (student.exp().unsqueeze(1) * self.factors.unsqueeze(-1)).minimum(self.caps.unsqueeze(-1))

    def _mix(self, lists: Sequence[Entries], places: Sequence[Tensor]) -> Float[Tensor, "n U"]:
        probs = torch.zeros_like(self.student)
        for m, (entries, place) in enumerate(zip(lists, places, strict=True)):
            own = torch.where(entries.listed, entries.logprobs.exp(), 0.0).to(probs.dtype)
            on_union = torch.zeros_like(probs).scatter_(-1, place, own)
            listed = torch.zeros_like(self._real).scatter_(-1, place, entries.listed)
            share = torch.where(listed, on_union, self._completed[:, m])
            probs = probs + torch.where(self.weights[:, m : m + 1] > 0, self.weights[:, m : m + 1] * share, 0.0)
        return torch.where(self._real, probs, probs[:, :1])

    def finish(
        self,
        logits: Tensor,
        log_total: Tensor,
        softened: Tensor,
        factors: tuple[Tensor, Tensor],
        temperature: float,
        smoothing: float,
        scale: float,
        softcap: float | None,
    ) -> "ListedFigures":
        """Overwrite the logits by the gradient, as if nothing were listed, and measure. Call it once.

        Args:
            logits: Finished logits of the student.
            log_total: Their log-sum-exp at temperature 1.
            softened: At the loss's temperature.
            factors: Of the divergence and of the cross-entropy, [n] each.
            temperature: Softens the student.
            smoothing: Label smoothing.
            scale: Of the logits.
            softcap: Of the logits.
        """
        kd_factor, ce_factor = factors
        high, size = self._high_logits, logits.shape[-1]
        multiple = _sum_weighted(self.weights, self.factors)  # C
        dense = (logits, log_total, softened, kd_factor * (1.0 - multiple), ce_factor)
        run(finish_predictions, dense, temperature, smoothing, scale, softcap)
        rows = (high, log_total, softened, *factors, self.weights.contiguous(), self.factors, self.caps)
        sums = run(finish_lists, rows, temperature, smoothing, size, scale, softcap)
        self._high.write(logits, high)
        return self._figures(multiple, *sums)

    def _figures(
        self, multiple: Tensor, mass: Tensor, qlogq: Tensor, plogp: Tensor, cross: Tensor, *of_teachers: Tensor
    ) -> "ListedFigures":
        """Add to the sums over high tokens what is elsewhere, and exchange completed for listed tokens."""
        rest, rest_qlogq = (1.0 - mass).clamp_min(0.0), -self._entropy - qlogq
        if self._high.are_all:
            rest, rest_qlogq = torch.zeros_like(rest), torch.zeros_like(rest)

        def elsewhere(factor: Tensor) -> tuple[Tensor, Tensor]:
            return rest * torch.xlogy(factor, factor) + factor * rest_qlogq, factor * rest_qlogq

        mixed = _sum_weighted(self.weights.unsqueeze(-1), self._completed)  # as it was taken at the union
        change = torch.xlogy(self.probs, self.probs) - torch.xlogy(mixed, mixed)
        moved = torch.where(self._real, (self.probs - mixed) * self.student, 0.0)
        more = elsewhere(multiple)
        plogp = plogp + more[0] + torch.where(self._real, change, 0.0).sum(-1)
        cross = cross + more[1] + moved.sum(-1)
        entropies, kls = [], []
        for m, teacher in enumerate(self._lists):
            own, more = teacher.change(self.factors[:, m], self.caps[:, m]), elsewhere(self.factors[:, m])
            own_plogp, own_cross = (figure[:, m] + own[i] + more[i] for i, figure in enumerate(of_teachers))
            entropies.append(-own_plogp)
            kls.append(own_plogp - own_cross)
        return ListedFigures(plogp - cross, -plogp, entropies, kls)


class _HighTokens:
    """The blocks of the vocabulary with the student's highest logits, and what fills up no block.

    Args:
        maxima: Highest logit of each whole block.
        vocab_size: Tokens in all.

    Attributes:
        are_all: Whether no token is left out.
    """

    def __init__(self, maxima: Float[Tensor, "n b"], vocab_size: int) -> None:
        num_blocks = maxima.shape[1]
        self._whole = num_blocks * BLOCK
        self.are_all = num_blocks <= MAX_BLOCKS
        self._blocks = None if self.are_all else maxima.topk(MAX_BLOCKS, sorted=False).indices
        self._vocab_size = vocab_size

    def read(self, logits: Float[Tensor, "n V"]) -> Float[Tensor, "n H"]:
        """Their logits, in a tensor of their own."""
        if self._blocks is None:
            return logits.clone()
        index = self._blocks.unsqueeze(-1).expand(-1, -1, BLOCK)
        found = logits[:, : self._whole].unflatten(-1, (-1, BLOCK)).gather(1, index).flatten(1)
        return torch.cat([found, logits[:, self._whole :]], -1) if self._whole < self._vocab_size else found

    def write(self, logits: Float[Tensor, "n V"], values: Float[Tensor, "n H"]) -> None:
        """Put values in their places."""
        if self._blocks is None:
            logits.copy_(values)
            return
        index = self._blocks.unsqueeze(-1).expand(-1, -1, BLOCK)
        size = self._blocks.shape[1] * BLOCK
        view = logits[:, : self._whole].unflatten(-1, (-1, BLOCK))
        view.scatter_(1, index, values[:, :size].unflatten(-1, (-1, BLOCK)))
        logits[:, self._whole :] = values[:, size:]


def _sum_weighted(weights: Tensor, values: Tensor) -> Tensor:
    """Sum over teachers, in dimension 1, one after another: adding a 0 changes nothing."""
    total = torch.zeros_like(values[:, 0])
    for m in range(values.shape[1]):
        total = total + weights[:, m] * values[:, m]
    return total


@dataclass(frozen=True)
class ListedFigures:
    """What is measured of a mixture of lists.

    Attributes:
        value: Forward KL of the mixture from the student.
        entropy: Of the mixture.
        entropies: Of each teacher, completed.
        teacher_kls: KL(teacher || student) of each, completed.
    """

    value: Float[Tensor, " n"]
    entropy: Float[Tensor, " n"]
    entropies: list[Float[Tensor, " n"]]
    teacher_kls: list[Float[Tensor, " n"]]


class _Student:
    """The student at one teacher's list.

    Attributes:
        entries: The list.
        rest: The student's mass outside it.
    """

    def __init__(self, entries: Entries, logits: Tensor, log_total: Tensor, temperature: float) -> None:
        self.entries = entries
        self._logprobs = _student_at(entries.ids, logits, log_total, temperature)
        self._probs = torch.where(entries.listed, self._logprobs.exp(), 0.0)
        self.rest = (1.0 - self._probs.sum(-1)).clamp_min(0.0)

    def above(self, limit: Float[Tensor, " n"]) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """Number and mass of listed tokens whose log-probability is above `limit`, as `mass_above` sees them."""
        over = self.entries.listed & (self._logprobs > limit.unsqueeze(-1))
        return over.sum(-1).to(limit.dtype), torch.where(over, self._probs, 0.0).sum(-1)

    def change(self, factor: Tensor, cap: Tensor) -> tuple[Tensor, Tensor]:
        """What the list adds to the sums of p log p and of p log q over a completion of all tokens."""
        completed = (self._probs * factor.unsqueeze(-1)).minimum(cap.unsqueeze(-1))
        listed = torch.where(self.entries.listed, self.entries.logprobs.exp(), 0.0).to(completed.dtype)
        plogp = torch.xlogy(listed, listed) - torch.xlogy(completed, completed)
        return plogp.sum(-1), torch.where(self.entries.listed, (listed - completed) * self._logprobs, 0.0).sum(-1)


def _student_at(ids: Tensor, logits: Tensor, log_total: Tensor, temperature: float) -> Tensor:
    z = logits.gather(-1, ids).to(log_total.dtype)
    return (z / temperature - log_total.unsqueeze(-1)).clamp_min(LOG_ZERO)


def _union(lists: Sequence[Entries], vocab_size: int) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Ids of all lists once each, where they are real, and the place of each list's entries among them.

    What fills up a list goes to a place that is not real; such a place repeats the row's first id.
    """
    filled = torch.cat([entries.ids.masked_fill(~entries.listed, vocab_size) for entries in lists], -1)  # [n U]
    ordered, order = filled.sort(-1)
    slots = (ordered.diff(dim=-1, prepend=ordered[:, :1]) != 0).cumsum(-1)
    places = torch.empty_like(order).scatter_(-1, order, slots)
    ids = torch.full_like(filled, vocab_size).scatter_(-1, places, filled)
    real = ids < vocab_size
    first = ids[:, :1].where(real[:, :1], 0)
    sizes = [entries.ids.shape[1] for entries in lists]
    return torch.where(real, ids, first), real, list(places.split(sizes, -1))

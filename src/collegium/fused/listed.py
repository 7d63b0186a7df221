"""Teachers that are lists of their most probable tokens, mixed without any [n V] tensor of theirs.

Derivation. `completion` makes of each list a distribution p_k = min(c_k q_v, u_k) outside of it, with q = q^T
the student's at the loss's temperature. Under weights w_k the target p = sum_k w_k p_k is then of three kinds:

    1. elsewhere   no list names the token, no cap binds:  p_v = C q_v,                C = sum_k w_k c_k
    2. high        a cap may bind, as q_v is high:         p_v = sum_k w_k min(c_k q_v, u_k)
    3. union       some list names the token:              p_v = sum_k w_k (own probability, or min(c_k q_v, u_k))

and the gradient of the forward KL, A (q - p) / T, is in turn

    1. A (1 - C) q / T     a multiple of q: one pass over the student's logits, and no target
    2. by `finish_lists`   over H tokens, 8,192 of the student's highest in blocks of 64
    3. by gather/scatter   over U tokens, a hundred or so

each written over the one before. A cap binds where q_v > u_k / c_k, so at the highest q_v only: at 10 to 20
tokens of 49,152, which the H hold.

Figures are two sums over the vocabulary, P = sum p log p and X = sum p log q: the entropy of p is -P and its KL
to the student P - X. With ^p for what kinds 1 and 2 would give at a listed token too,

    P = sum over high of ^p log ^p  + sum elsewhere of C q log(C q)  + sum over the union of (p log p - ^p log ^p)
    X = sum over high of ^p log q   + sum elsewhere of C q log q     + sum over the union of (p - ^p) log q

and elsewhere needs no pass at all: with Q = 1 - sum over high of q, and R = -H(q) - sum over high of q log q,

    sum elsewhere of C q log(C q)  =  C log C  Q + C R            sum elsewhere of C q log q  =  C R

The same holds of each teacher alone, with c_k for C and its own list for the union.

Time goes from left to right, for one chunk (`*` overwritten; only the student's is [n V]):

    student's logits [n V]  ==student_pass==================*kind 1==*kind 2==*kind 3======> dL/dx
    high logits      [n H]         copied====rounds of c====*finish_lists=====|
    union: ids, q, p [n U]                          ========================scattered==|
    lists            [n K]    M of them ==============================================figures==|
    c, u, w          [n M]              ==*rounds===================================figures==|
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from collegium.fused.compiled import run
from collegium.fused.completion import Entries, next_factor
from collegium.fused.elementwise import KernelOptions, StudentPass
from collegium.fused.finishing import PredictionRows, finish_predictions
from collegium.fused.listed_kernels import Above, LimitRows, ListRows, ListSums, finish_lists, mass_above
from collegium.losses.divergences import LOG_ZERO
from collegium.signals.signals import TopKSignal


ROUNDS = 6
"""Of the search for c, which doubles its digits each round: 4 leave 3e-6 of the gradient on real text."""

BLOCK = 64
"""Tokens of a block of the vocabulary, whose highest logit says whether it is high."""

MAX_BLOCKS = 128
"""Blocks in which the cap is looked for, those with the student's highest logits."""


class StudentRows(NamedTuple):
    """The student on the rows of a chunk.

    Attributes:
        logits: Finished, [n V].
        found: Their sums, with the survey of blocks of `BLOCK` tokens.
        temperature: T, which softens the student; the lists were made at it.
    """

    logits: Tensor
    found: StudentPass
    temperature: float


class ListedMixture:
    """The mixture of lists against the student, on some rows.

    Args:
        signals: One per teacher, none with a uniform tail.
        rows: The positions, in the signals.
        weights: Teacher weights; 0 where a teacher does not count, and is not read.
        student: The student there.

    Attributes:
        ids: Union of the lists; what fills up a row repeats its first id.
        student: The student's log-probabilities there.
        probs: The mixture's probabilities there.
    """

    def __init__(
        self, signals: Sequence[TopKSignal], rows: slice, weights: Float[Tensor, "n M"], student: StudentRows
    ) -> None:
        found = student.found
        assert found.entropy is not None and found.block_maxima is not None, "student_pass made the survey"
        self.weights = weights
        self._found = found
        self._entropy = found.entropy
        self._high = _HighTokens(found.block_maxima, student.logits.shape[-1])
        self._lists = [_Student(Entries.of(signal, rows), student) for signal in signals]
        # A copy: it becomes the gradient of these tokens while the logits become that of all others.
        self._high_logits = self._high.read(student.logits)
        self._solve(student.temperature)
        # What does not count is in no union, so that it changes nothing, not even a rounding.
        active = weights.unsqueeze(-1) > 0  # [n M 1]
        counted = [
            replace(teacher.entries, listed=teacher.entries.listed & active[:, m])
            for m, teacher in enumerate(self._lists)
        ]
        union = _union(counted, student.logits.shape[-1])
        self.ids = union.ids
        self._real = union.real
        self.student = _student_at(self.ids, student)
        self._completed = self._complete(self.student)  # [n M U]
        self.probs = self._mix(counted, union.places)

    def _solve(self, temperature: float) -> None:
        """Find each teacher's c and u, all with one pass a round over the high tokens."""
        softened = self._found.softened
        tails = torch.stack([teacher.entries.tail for teacher in self._lists], -1).to(softened.dtype)
        caps = torch.stack([teacher.entries.cap for teacher in self._lists], -1).to(softened.dtype)
        rests = torch.stack([teacher.rest for teacher in self._lists], -1)
        # Nothing to complete, or a list of NaN: harmless numbers keep these columns out of the others' way.
        dead = ~(tails > 0) | ~caps.isfinite()
        tails = tails.masked_fill(dead, 0.0)
        caps = caps.masked_fill(dead, 1.0)
        rests = rests.masked_fill(dead, 1.0)
        factors = next_factor(tails, caps, torch.zeros_like(tails), rests)
        # A fixed number of rounds: to ask whether they agree would make a GPU's queue wait each time.
        for _ in range(ROUNDS):
            limits = (caps.log() - factors.clamp_min(torch.finfo(factors.dtype).tiny).log()).contiguous()
            above = run(mass_above, LimitRows(self._high_logits, softened, limits), temperature)
            # The kernel knows no lists: a list's own tokens are not completed, and are taken out again.
            own = [teacher.above(limits[:, m]) for m, teacher in enumerate(self._lists)]
            own_counts = torch.stack([listed.counts for listed in own], -1)
            own_masses = torch.stack([listed.masses for listed in own], -1)
            capped = (above.counts - own_counts).masked_fill(dead, 0.0)
            rest = rests - (above.masses - own_masses).masked_fill(dead, 0.0)
            factors = next_factor(tails, caps, capped, rest).maximum(factors)
        self.factors = factors
        self.caps = caps.masked_fill(dead, 0.0)

    def _complete(self, student: Float[Tensor, "n U"]) -> Float[Tensor, "n M U"]:
        """min(c q, u) of each teacher, at tokens that it lists too."""
        return (student.exp().unsqueeze(1) * self.factors.unsqueeze(-1)).minimum(self.caps.unsqueeze(-1))

    def _mix(self, lists: Sequence[Entries], places: Sequence[Tensor]) -> Float[Tensor, "n U"]:
        """p at the union: each teacher's own probability where it lists a token, else its completion."""
        probs = torch.zeros_like(self.student)
        for m, (entries, place) in enumerate(zip(lists, places, strict=True)):
            own = torch.where(entries.listed, entries.logprobs.exp(), 0.0).to(probs.dtype)
            on_union = torch.zeros_like(probs).scatter_(-1, place, own)
            listed = torch.zeros_like(self._real).scatter_(-1, place, entries.listed)
            share = torch.where(listed, on_union, self._completed[:, m])
            weight = self.weights[:, m : m + 1]
            # An absent teacher's list may be NaN: selected, as in the kernels that mix.
            probs = probs + torch.where(weight > 0, weight * share, 0.0)
        # What fills up a row repeats its first id, and so must write that one's value.
        return torch.where(self._real, probs, probs[:, :1])

    def finish(
        self, logits: Float[Tensor, "n V"], kd_factor: Tensor, ce_factor: Tensor, options: KernelOptions
    ) -> "ListedFigures":
        """Overwrite the logits by the gradient of kinds 1 and 2, and measure. Call it once.

        Args:
            logits: Finished logits of the student.
            kd_factor: A, [n].
            ce_factor: B, [n].
            options: Temperature, smoothing, and what the head does.
        """
        found = self._found
        multiple = _sum_weighted(self.weights, self.factors)  # C
        predictions = PredictionRows(
            logits, found.log_total, found.softened, kd_factor * (1.0 - multiple), ce_factor
        )
        run(finish_predictions, predictions, options)
        high = ListRows(
            self._high_logits,
            found.log_total,
            found.softened,
            kd_factor,
            ce_factor,
            self.weights.contiguous(),
            self.factors,
            self.caps,
        )
        sums = run(finish_lists, high, logits.shape[-1], options)
        self._high.write(logits, self._high_logits)
        return self._figures(multiple, sums)

    def _figures(self, multiple: Float[Tensor, " n"], sums: ListSums) -> "ListedFigures":
        """P and X of the mixture and of each teacher, by the three summands of the module's derivation."""
        rest = (1.0 - sums.mass).clamp_min(0.0)  # Q
        rest_qlogq = -self._entropy - sums.qlogq  # R
        # Both are differences that leave rounding behind: where the high tokens are all, nothing is elsewhere.
        if self._high.are_all:
            rest = torch.zeros_like(rest)
            rest_qlogq = torch.zeros_like(rest)

        # The second summand, of P and of X; c log c is 0 at c = 0, as xlogy has it.
        def elsewhere(factor: Tensor) -> tuple[Tensor, Tensor]:
            return rest * torch.xlogy(factor, factor) + factor * rest_qlogq, factor * rest_qlogq

        # The third: at the union, what kinds 1 and 2 took (^p) goes out and p comes in.
        taken = _sum_weighted(self.weights.unsqueeze(-1), self._completed)
        change = torch.xlogy(self.probs, self.probs) - torch.xlogy(taken, taken)
        moved = torch.where(self._real, (self.probs - taken) * self.student, 0.0)
        more_plogp, more_cross = elsewhere(multiple)
        plogp = sums.plogp + more_plogp + torch.where(self._real, change, 0.0).sum(-1)
        cross = sums.cross + more_cross + moved.sum(-1)
        entropies = []
        kls = []
        for m, teacher in enumerate(self._lists):
            own_plogp, own_cross = teacher.change(self.factors[:, m], self.caps[:, m])
            more_plogp, more_cross = elsewhere(self.factors[:, m])
            teacher_plogp = sums.teacher_plogps[:, m] + own_plogp + more_plogp
            teacher_cross = sums.teacher_crosses[:, m] + own_cross + more_cross
            entropies.append(-teacher_plogp)
            kls.append(teacher_plogp - teacher_cross)
        return ListedFigures(plogp - cross, -plogp, entropies, kls)


class _HighTokens:
    """The blocks of the vocabulary with the student's highest logits, and what fills up no block.

    Args:
        maxima: Highest logit of each whole block.
        vocab_size: Tokens in all.

    Attributes:
        are_all: True if no token is left out.
    """

    def __init__(self, maxima: Float[Tensor, "n b"], vocab_size: int) -> None:
        num_blocks = maxima.shape[1]
        self._whole = num_blocks * BLOCK
        self.are_all = num_blocks <= MAX_BLOCKS
        # Blocks and not single tokens: for 128 rows it takes 0.5 ms to find 128 of 768 maxima, which come with
        # `student_pass`, and 64 ms to find 8,192 of 49,152 logits.
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
    """Figures of a mixture of lists.

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

    def __init__(self, entries: Entries, student: StudentRows) -> None:
        self.entries = entries
        self._logprobs = _student_at(entries.ids, student)
        self._probs = torch.where(entries.listed, self._logprobs.exp(), 0.0)
        self.rest = (1.0 - self._probs.sum(-1)).clamp_min(0.0)

    def above(self, limit: Float[Tensor, " n"]) -> Above:
        """Number and mass of listed tokens whose log-probability is above `limit`, as `mass_above` sees them."""
        over = self.entries.listed & (self._logprobs > limit.unsqueeze(-1))
        return Above(over.sum(-1).to(limit.dtype), torch.where(over, self._probs, 0.0).sum(-1))

    def change(self, factor: Tensor, cap: Tensor) -> tuple[Tensor, Tensor]:
        """Third summand of this teacher's P and X: its list in, its completion at the same tokens out."""
        completed = (self._probs * factor.unsqueeze(-1)).minimum(cap.unsqueeze(-1))
        listed = torch.where(self.entries.listed, self.entries.logprobs.exp(), 0.0).to(completed.dtype)
        plogp = torch.xlogy(listed, listed) - torch.xlogy(completed, completed)
        cross = torch.where(self.entries.listed, (listed - completed) * self._logprobs, 0.0)
        return plogp.sum(-1), cross.sum(-1)


def _student_at(ids: Int[Tensor, "n U"], student: StudentRows) -> Float[Tensor, "n U"]:
    z = student.logits.gather(-1, ids).to(student.found.softened.dtype)
    return (z / student.temperature - student.found.softened.unsqueeze(-1)).clamp_min(LOG_ZERO)


class _Union(NamedTuple):
    """Ids of all lists once each, where they are real, and the place of each list's entries among them."""

    ids: Int[Tensor, "n U"]
    real: Bool[Tensor, "n U"]
    places: list[Tensor]


def _union(lists: Sequence[Entries], vocab_size: int) -> _Union:
    """Unite lists; what fills one up goes to a place that is not real, which repeats the row's first id."""
    filled = torch.cat([entries.ids.masked_fill(~entries.listed, vocab_size) for entries in lists], -1)  # [n U]
    # Sorted, equal ids are neighbours: counting the steps between unequal ones numbers the places.
    ordered, order = filled.sort(-1)
    slots = (ordered.diff(dim=-1, prepend=ordered[:, :1]) != 0).cumsum(-1)
    places = torch.empty_like(order).scatter_(-1, order, slots)
    ids = torch.full_like(filled, vocab_size).scatter_(-1, places, filled)
    real = ids < vocab_size
    first = ids[:, :1].where(real[:, :1], 0)
    sizes = [entries.ids.shape[1] for entries in lists]
    return _Union(torch.where(real, ids, first), real, list(places.split(sizes, -1)))

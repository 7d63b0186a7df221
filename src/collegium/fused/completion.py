"""Lists of a teacher's most probable tokens, and the distributions that they are completed to.

A list says of some tokens how probable they are, of the others how much mass t they have together, and that
none of them is above the least probable token of the list, which is a cap u. Of all distributions that agree
with that, a `bucket` takes the one nearest to the student q. Derivation, for any f-divergence, of which tokens
outside the list have the part D = sum q_v f(p_v / q_v):

    minimise D   subject to   sum p_v = t,   p_v <= u
    Lagrange:    the slope dD / dp_v is a function of p_v / q_v alone, and equal wherever the cap does not bind, so
                 p_v / q_v is equal there:             p_v = min(c q_v, u),      c such that the sum is t
    envelope:    dD* / dq = dD / dq at that p held fixed, so the gradient needs no derivative of c

So a `bucket` claims nothing that is not known: for one teacher its divergence never exceeds the dense one. For
several it does at most by the conflict among them, since each is completed by itself. On a 135M teacher with 49
tokens listed at a position the gradient is off by 1.9 % near the student and 1.3 % far from it; with 64 and no
cap, as a bucket is usually made, by 13 % and 4.6 % (docs/cache.md).

c solves F(c) = sum min(c q_v, u) = t. F is concave, increasing and linear between the points where one more
token reaches the cap, so Newton's step from below never overshoots:

    c' = (t - u K) / (q's mass outside the list, without capped tokens)     K tokens are capped at the present c

from K = 0, c = t / (q's mass outside the list), until no token joins; the digits double each round.

    F(c)                   ________     the tangent at c lies above F and meets t at c' <= c*, the solution
      t - - - - - - __+-''
                _-'/ .
            _-'   /  .                  rows of `dense_logprobs` over time:
         _-'    c'   c*                     q outside   [n V] ==rounds of c==|
      _-' c                                 dense       [n V]              ==min(c q, u)==list written over==>
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from collegium.losses.divergences import LOG_ZERO
from collegium.signals.signals import TeacherSignal, TopKSignal


MAX_ROUNDS = 50
"""Of the search for c over the whole vocabulary, which ends by itself long before."""


def all_listed(signals: Sequence[TeacherSignal]) -> bool:
    """True if the mixture of these teachers is known from their lists and the student alone."""
    # A uniform tail is a claim about every token, so it needs the [n V] buffer that lists do without.
    return bool(signals) and all(isinstance(s, TopKSignal) and s.tail != "uniform" for s in signals)


@dataclass(frozen=True)
class Entries:
    """Some rows of a list, in the type that is computed in.

    Attributes:
        ids: Token ids; 0 where nothing is listed.
        listed: False on what fills up a row.
        logprobs: Log-probabilities; LOG_ZERO where nothing is listed.
        tail: t, the mass that is not listed; 0 if the list was renormalised.
        cap: u, the highest probability that an unlisted token can have.
    """

    ids: Int[Tensor, "n K"]
    listed: Bool[Tensor, "n K"]
    logprobs: Float[Tensor, "n K"]
    tail: Float[Tensor, " n"]
    cap: Float[Tensor, " n"]

    @classmethod
    def of(cls, signal: TopKSignal, rows: slice) -> "Entries":
        """Read rows of a signal."""
        ids = signal.token_ids[rows].long()
        logprobs = signal.logprobs[rows]
        listed = ids >= 0
        logprobs = logprobs if logprobs.dtype == torch.float64 else logprobs.float()
        # What fills up a row may hold anything, NaN too.
        logprobs = logprobs.masked_fill(~listed, -torch.inf)
        if signal.tail == "renormalize":
            logprobs = logprobs.log_softmax(-1)
            tail = torch.zeros_like(logprobs[:, 0])
        elif signal.tail_logprob is None:
            # Log-probabilities that were stored in 16 bits may sum to a little more than 1.
            tail = (1.0 - logprobs.exp().sum(-1)).clamp_min(0.0)
        else:
            tail = signal.tail_logprob[rows].to(logprobs.dtype).exp()
        least = logprobs.masked_fill(~listed, torch.inf).amin(-1).exp().clamp_max(1.0)
        num_rest = (signal.vocab_size - listed.sum(-1)).clamp_min(1)
        # A drawn list need not hold the most probable tokens: its cap is raised to where the mass fits at all.
        cap = least.maximum(tail / num_rest)
        return cls(ids.clamp_min(0), listed, logprobs.clamp_min(LOG_ZERO), tail, cap)


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
        # min(c q, u) in log space, since q underflows long before log q does.
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
    """Solve for c, given the student's probabilities `rest` outside the list."""
    factor = next_factor(tail, cap, torch.zeros_like(tail), rest.sum(-1))
    for _ in range(MAX_ROUNDS):
        over = rest * factor.unsqueeze(-1) > cap.unsqueeze(-1)
        # Newton never steps back; rounding may, and would then go to and fro for ever.
        found = next_factor(tail, cap, over.sum(-1).to(cap.dtype), (rest * ~over).sum(-1)).maximum(factor)
        if torch.equal(found, factor):
            break
        factor = found
    return factor


def next_factor(tail: Tensor, cap: Tensor, num_capped: Tensor, student_mass: Tensor) -> Tensor:
    """One step of Newton: c' if so many tokens are capped and the student has this mass on the others."""
    # A student with no mass outside the list leaves nothing to scale; a few ulp keep c finite.
    return (tail - cap * num_capped).clamp_min(0.0) / student_mass.clamp_min(8 * torch.finfo(tail.dtype).eps)

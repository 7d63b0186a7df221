"""Kernels of `listed`: the search for caps that bind, and the gradient where they may.

Derivation. With q = q^T the student, c_k and u_k of teacher k (`completion`) and weights w_k, the target at
tokens that are in no list is

    p_v = sum_k w_k min(c_k q_v, u_k)

and c_k is searched by counting: a token is capped if c_k q_v > u_k, that is if log q_v > log u_k - log c_k, the
limit. The gradient is A (q - p) / T plus that of the cross-entropy, as in `finishing`. For the figures each
token gives

    p log p
    p log q

of the mixture and of every teacher: summed over tokens they are -H(p) and the cross-entropy to the student. Of a
teacher log p_k = min(log c_k + log q, log u_k), which stays finite where q underflows; of the mixture it is the
log of at least the smallest normal number, so that 0 log 0 is 0.

Time goes from left to right; H tokens are those of the blocks with the student's highest logits (`listed`):

    logits of these [n H]  read==mass_above=(a round)=mass_above=....=====*finish_lists (dL/dx)==> written back
    limits          [n M]      ==*===========*=....                       c, u, w read
    numbers         [n M]        K, mass      K, mass                     sums of p log p, p log q
"""

from typing import NamedTuple

import torch
from torch import Tensor

from collegium.fused.elementwise import KernelOptions, logprobs_at
from collegium.fused.finishing import cross_entropy_gradient, slope
from collegium.losses.precision import full_precision


class LimitRows(NamedTuple):
    """Logits [n H], their L_T [n] over the whole vocabulary, and a limit of each teacher [n M]."""

    logits: Tensor
    softened: Tensor
    limits: Tensor


class ListRows(NamedTuple):
    """All that the gradient at some tokens depends on where teachers are lists.

    Attributes:
        logits: z at these tokens, [n H]; becomes the gradient.
        log_total: L over the whole vocabulary, [n].
        softened: L_T likewise, [n].
        kd_factor: A, [n].
        ce_factor: B, [n].
        weights: w, [n M].
        factors: c, [n M].
        caps: u, [n M].
    """

    logits: Tensor
    log_total: Tensor
    softened: Tensor
    kd_factor: Tensor
    ce_factor: Tensor
    weights: Tensor
    factors: Tensor
    caps: Tensor


class Above(NamedTuple):
    """Number and mass of the tokens above each limit, [n M]."""

    counts: Tensor
    masses: Tensor


class ListSums(NamedTuple):
    """Sums over some tokens, [n], or [n M] for the last two.

    Attributes:
        mass: Of q.
        qlogq: Of q log q.
        plogp: Of p log p, p being the mixture.
        cross: Of p log q.
        teacher_plogps: Of p_k log p_k.
        teacher_crosses: Of p_k log q.
    """

    mass: Tensor
    qlogq: Tensor
    plogp: Tensor
    cross: Tensor
    teacher_plogps: Tensor
    teacher_crosses: Tensor


def mass_above(rows: LimitRows, temperature: float) -> Above:
    """Count the tokens whose log-probability is above each limit, and add up their mass."""
    logprobs = logprobs_at(rows.logits, rows.softened, temperature)
    probs = logprobs.exp()
    counts = []
    masses = []
    # One read of the logits for all teachers: the loop over them is inside of the one over tokens once compiled.
    for limit in rows.limits.unbind(-1):
        over = logprobs > limit.unsqueeze(-1)
        counts.append(over.to(probs.dtype).sum(-1))
        masses.append(torch.where(over, probs, 0.0).sum(-1))
    return Above(torch.stack(counts, -1), torch.stack(masses, -1))


def finish_lists(rows: ListRows, vocab_size: int, options: KernelOptions) -> ListSums:
    """Overwrite logits by their gradient as if none of their tokens were listed, and sum; see the module.

    `vocab_size` is that of the whole vocabulary, over which a smoothed label is spread.
    """
    z = full_precision(rows.logits)
    logprobs = logprobs_at(z, rows.softened, options.temperature)
    probs = logprobs.exp()
    # Teachers by turns, not as [n M H]: the mixture is one buffer whatever M is.
    mixture = torch.zeros_like(probs)
    plogps = []
    crosses = []
    tiny = torch.finfo(probs.dtype).tiny
    columns = (rows.weights.unbind(-1), rows.factors.unbind(-1), rows.caps.unbind(-1))
    for weight, factor, cap in zip(*columns, strict=True):
        p = torch.minimum(factor.unsqueeze(-1) * probs, cap.unsqueeze(-1))
        # Not p.log(): where c q underflows its log is still known. A teacher with nothing left has c = 0.
        log_p = torch.minimum(
            factor.clamp_min(tiny).log().unsqueeze(-1) + logprobs, cap.clamp_min(tiny).log().unsqueeze(-1)
        )
        plogps.append((p * log_p).sum(-1))
        crosses.append((p * logprobs).sum(-1))
        mixture = mixture + weight.unsqueeze(-1) * p
    # Listed tokens among these get their true gradient later, at the union.
    gradient = (probs - mixture) * (rows.kd_factor / options.temperature).unsqueeze(-1)
    prediction = probs if options.temperature == 1.0 else (z - rows.log_total.unsqueeze(-1)).exp()
    # Over the whole vocabulary, of which these tokens are a part: L and V are not those of [n H].
    gradient = gradient + cross_entropy_gradient(prediction, rows.ce_factor, options.smoothing, vocab_size)
    rows.logits.copy_(gradient * slope(z, options.scale, options.softcap))
    return ListSums(
        mass=probs.sum(-1),
        qlogq=(probs * logprobs).sum(-1),
        plogp=(mixture * mixture.clamp_min(tiny).log()).sum(-1),
        cross=(mixture * logprobs).sum(-1),
        teacher_plogps=torch.stack(plogps, -1),
        teacher_crosses=torch.stack(crosses, -1),
    )

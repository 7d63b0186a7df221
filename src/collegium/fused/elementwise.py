"""Passes over the logits of student and teachers, and over the target while teachers are mixed in.

Symbols: z [n V] logits of the student, z_k of teacher k, T the distillation temperature, c the temperature that
a teacher is calibrated by. Everything that a softmax at temperature c says of a row follows from three sums over
it. With a = max z and e_v = exp((z_v - a) / c), which cannot overflow,

    S  = sum_v e_v                       S' = sum_v e_v (z_v - a) / c
    log-sum-exp of z / c  =  a / c + log S
    p_v                   =  e_v / S
    H(p) = -sum p log p   =  log S - S' / S            (log p_v = (z_v - a) / c - log S, weighted by e_v / S)

and against a student q^T, log q_v = z_v / T - L_T with L_T the log-sum-exp of z / T,

    KL(p || q^T)          =  -sum_v e_v log q_v / S - H(p)

so p is never stored: a row is read, some numbers of it remain. Mixing reads the teacher's row a second time,
when its weight is known, and adds to a running target (`streamed` derives the factors): keep, for what is in it
already, and share, for the next teacher,

    probs:    target <- keep target + share p_k
    logs:     target <- log(keep exp(target) + share p_k)        where a divergence reads log p below float32's p
    product:  target <- keep target + share log p_k

Time goes from left to right, for one chunk (`=` alive, `*` overwritten in place):

    student's [n V]   product ==*student_pass=====================================*finish (see `finishing`)
    teacher's [n V]                  product ==*cap==teacher_pass===mix==|
    target    [n V]   ============================================*mix====...=====finish reads it
    numbers   [n]                  L, L_T ...         H_k, L, KL

Logits may be of half precision; everything is computed in at least float32. `LOG_ZERO` is treated as in
`losses.divergences`: a token that is ruled out costs a large finite number.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from collegium.losses.divergences import LOG_ZERO
from collegium.losses.precision import full_precision


Space = Literal["probs", "logs", "product"]
"""In what a target is accumulated: probabilities, their logs, or a weighted sum of log-probabilities."""


class KernelOptions(NamedTuple):
    """The numbers that every pass over the student's logits depends on; hashable, as compiling needs it.

    Attributes:
        temperature: T, softens student and target.
        smoothing: Share of a label's probability that is spread over the vocabulary.
        scale: Factor of the logits in the student's head.
        softcap: Bound of the logits in the student's head, or None.
    """

    temperature: float
    smoothing: float
    scale: float
    softcap: float | None


class Temperatures(NamedTuple):
    """The three of a teacher: of the entropy that sets its weight, of its own distribution, of what is mixed."""

    weight: float
    own: float
    mixed: float


class LogitRows(NamedTuple):
    """Logits [n V] and nothing else."""

    logits: Tensor


class LabelledRows(NamedTuple):
    """Logits [n V] and one of each row, [n 1]."""

    logits: Tensor
    at_label: Tensor


class TeacherRows(NamedTuple):
    """A teacher's logits [n V] beside the student's [n V] and L_T of these, [n]."""

    logits: Tensor
    student: Tensor
    student_softened: Tensor


class MixRows(NamedTuple):
    """The target so far [n V], the logits [n V] that are mixed in, and [n] each: their log-sum-exp and factors."""

    target: Tensor
    logits: Tensor
    log_total: Tensor
    keep: Tensor
    share: Tensor


class StudentPass(NamedTuple):
    """Sums over each row of the student's logits.

    Attributes:
        log_total: L, log-sum-exp at temperature 1.
        softened: L_T, log-sum-exp at T.
        mean: Mean logit, for label smoothing; else None.
        entropy: H(q^T), where a survey was asked for.
        block_maxima: Highest logit of each whole block of tokens, [n b], likewise.
    """

    log_total: Tensor
    softened: Tensor
    mean: Tensor | None
    entropy: Tensor | None
    block_maxima: Tensor | None


class TeacherPass(NamedTuple):
    """Sums over each row of a teacher's logits; NaN where these are bad.

    Attributes:
        entropy: H_k at the weight temperature.
        log_total: Log-sum-exp at the weight temperature.
        own_log_total: At its own.
        mixed_log_total: At that of what is mixed.
        mixed_entropy: Entropy of what is mixed.
        kl: KL of what is mixed to the student at T.
    """

    entropy: Tensor
    log_total: Tensor
    own_log_total: Tensor
    mixed_log_total: Tensor
    mixed_entropy: Tensor
    kl: Tensor


class TeacherFigures(NamedTuple):
    """Entropy, log-sum-exp, and the number of logits above that of the label."""

    entropy: Tensor
    log_total: Tensor
    rank: Tensor


class Softmax(NamedTuple):
    """A softmax of each row by its sums; `exps` [n V] are e_v and `total` is S in the module's derivation."""

    entropy: Tensor
    log_total: Tensor
    exps: Tensor
    total: Tensor


# ---- the student


def cap(rows: LogitRows, scale: float, softcap: float | None) -> tuple[()]:
    """Scale and bound logits in place, as a head does to its product."""
    # The usual head is a product and no more: then the buffer is not even read.
    if scale != 1.0 or softcap is not None:
        scaled = full_precision(rows.logits) * scale
        rows.logits.copy_(scaled if softcap is None else torch.tanh(scaled / softcap) * softcap)
    return ()


def student_pass(rows: LogitRows, options: KernelOptions, block: int) -> StudentPass:
    """Finish the student's logits in place, and sum over them.

    Args:
        rows: The product of hidden states and head.
        options: Temperature, and what the head does to the product.
        block: Tokens of a block whose highest logit is looked for; 0 leaves the survey out.
    """
    cap(rows, options.scale, options.softcap)
    temperature = options.temperature
    z = full_precision(rows.logits)
    log_total = z.logsumexp(-1)
    # The same tensor at T = 1, so that a compiled kernel does not sum twice.
    softened = log_total if temperature == 1.0 else (z / temperature).logsumexp(-1)
    mean = z.mean(-1) if options.smoothing > 0.0 else None
    if block == 0:
        return StudentPass(log_total, softened, mean, None, None)
    entropy = softmax_figures(z, z.amax(-1, keepdim=True), temperature).entropy
    # Tokens that fill no block are few and are looked at anyway; see `listed._HighTokens`.
    whole = z.shape[-1] // block * block
    block_maxima = z[:, :whole].unflatten(-1, (-1, block)).amax(-1)
    return StudentPass(log_total, softened, mean, entropy, block_maxima)


# ---- a teacher


def teacher_pass(rows: TeacherRows, temperatures: Temperatures, temperature: float) -> TeacherPass:
    """Sum over a teacher's logits, before its weight is known.

    Args:
        rows: Teacher's and student's logits.
        temperatures: Of the teacher.
        temperature: T.
    """
    t = full_precision(rows.logits)
    top = t.amax(-1, keepdim=True)
    mixed = softmax_figures(t, top, temperatures.mixed)
    # Most teachers have one temperature: each softmax is taken only where it is another one.
    weight = mixed
    if temperatures.weight != temperatures.mixed:
        weight = softmax_figures(t, top, temperatures.weight)
    own_log_total = weight.log_total
    if temperatures.own != temperatures.weight:
        is_mixed = temperatures.own == temperatures.mixed
        own_log_total = mixed.log_total if is_mixed else softmax_figures(t, top, temperatures.own).log_total
    student_logprobs = logprobs_at(rows.student, rows.student_softened, temperature)
    # Divided by S after the sum, as p itself would be one more [n V] without a compiler.
    kl = -(mixed.exps * student_logprobs).sum(-1) / mixed.total - mixed.entropy
    return TeacherPass(weight.entropy, weight.log_total, own_log_total, mixed.log_total, mixed.entropy, kl)


def teacher_figures(rows: LabelledRows, temperature: float) -> TeacherFigures:
    """Figures of a teacher that is written to a cache, where there is no student."""
    t = full_precision(rows.logits)
    found = softmax_figures(t, t.amax(-1, keepdim=True), temperature)
    return TeacherFigures(found.entropy, found.log_total, (t > full_precision(rows.at_label)).sum(-1))


# ---- the target


def mix_probs(rows: MixRows, temperature: float) -> tuple[()]:
    """target <- keep target + share p."""
    probs = (full_precision(rows.logits) / temperature - rows.log_total.unsqueeze(-1)).exp()
    return _add_share(rows, probs)


def mix_logs(rows: MixRows, temperature: float) -> tuple[()]:
    """`mix_probs` in log space, for divergences that read log p where p itself underflows."""
    logprobs = logprobs_at(rows.logits, rows.log_total, temperature)
    shares = rows.share.unsqueeze(-1)
    # The log of a share of 0 is -inf, which logaddexp takes; but -inf + NaN of an absent teacher would be NaN.
    term = torch.where(shares > 0, logprobs + shares.log(), -torch.inf)
    rows.target.copy_(torch.logaddexp(rows.target + rows.keep.unsqueeze(-1).log(), term))
    return ()


def mix_product(rows: MixRows, temperature: float) -> tuple[()]:
    """target <- keep target + share log p."""
    return _add_share(rows, logprobs_at(rows.logits, rows.log_total, temperature))


def _add_share(rows: MixRows, term: Tensor) -> tuple[()]:
    shares = rows.share.unsqueeze(-1)
    # Selected, not multiplied: 0 * NaN is NaN, and a teacher of weight 0 must change nothing, whatever it holds.
    rows.target.copy_(rows.target * rows.keep.unsqueeze(-1) + torch.where(shares > 0, term * shares, 0.0))
    return ()


# ---- arithmetic that kernels share


def logprobs_at(logits: Tensor, log_total: Tensor, temperature: float) -> Tensor:
    """log softmax(logits / temperature), given its log-sum-exp; never below `LOG_ZERO`."""
    z = full_precision(logits)
    # Dividing by 1.0 changes no bit but costs a pass over the buffer without a compiler.
    scaled = z if temperature == 1.0 else z / temperature
    return (scaled - log_total.unsqueeze(-1)).clamp_min(LOG_ZERO)


def softmax_figures(logits: Tensor, top: Tensor, temperature: float) -> Softmax:
    """The sums of the module's derivation; `top` [n 1] is the highest logit of each row."""
    below = (logits - top) if temperature == 1.0 else (logits - top) / temperature
    # A logit of -inf has e = 0, and 0 * -inf would make S' NaN.
    below = below.clamp_min(LOG_ZERO)
    exps = below.exp()
    total = exps.sum(-1)
    log_total = total.log()
    entropy = log_total - (exps * below).sum(-1) / total
    return Softmax(entropy, log_total + top.squeeze(-1) / temperature, exps, total)

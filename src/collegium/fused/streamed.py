"""The fused target of one chunk, while teachers are added to it one after another.

Derivation. The weight of teacher k at a position is a softmax over teachers of scores s_k that depend on that
teacher alone (-H_k for entropy weights), w_k = exp(s_k / tau) / sum_j exp(s_j / tau), and the target is
p = sum_k w_k p_k. Neither can be finished before the last teacher has been seen, but both can be kept relative to
the highest score so far, as an online softmax does. With S the highest of s_1 .. s_k, after teacher k

    norm    N_k = sum over j <= k of exp((s_j - S) / tau)
    target  F_k = sum over j <= k of exp((s_j - S) / tau) p_j

and the next teacher, with S' = max(S, s), changes both alike:

    keep  = exp((S - S') / tau)          N <- keep N + share
    share = exp((s - S') / tau)          F <- keep F + share p

No exponent is above 0, so nothing overflows; at the end p = F / N. In the space `product` log p_j is added up in
place of p_j, and F / N is the weighted mean of logs: the geometric mean before it is normalised (`finishing`).
Weights that are known beforehand are the same with keep = 1, share = w_k and N = 1. A share of 0 leaves the target
unchanged bit for bit, and where no score is above -inf N stays 0: no teacher counts there.

Time goes from left to right, for one chunk of three teachers (`*` overwritten in place):

    student's logits     [n V]  ==============================================================> `finishing`
    target  F            [n V]  0=================*mix==============*mix==============*mix=====> `finishing`
    a teacher's logits   [n V]   product==figures==mix|product==figures==mix|product====mix|
    N, S                 [n]    0================*===================*==================*======> N
    figures of teachers  [n]                    +                   +                  +       > logged, weights

The teacher's buffer is one for all of them: their products are written into it in turn.
"""

from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from collegium.fused.chunked import KdTarget
from collegium.fused.compiled import run
from collegium.fused.completion import dense_logprobs
from collegium.fused.elementwise import (
    LogitRows,
    MixRows,
    Space,
    TeacherPass,
    TeacherRows,
    Temperatures,
    cap,
    mix_logs,
    mix_probs,
    mix_product,
    teacher_pass,
)
from collegium.fused.finishing import ClosedForm
from collegium.fused.products import project
from collegium.fused.teacher_stats import (
    TeacherColumns,
    checked_stats,
    listed_stats,
    require_captured,
    stats_of_absent,
)
from collegium.losses.divergences import (
    Divergence,
    PositionalDivergence,
    forward_kl,
    generalized_jsd,
    reverse_kl,
    total_variation,
)
from collegium.losses.fusion import geometric_logprobs
from collegium.losses.teacher_weights import shares_of, weights_from_scores
from collegium.losses.weighting import GivenWeights, Scorer
from collegium.signals.signals import (
    CarriedSignal,
    DenseSignal,
    ProjectedSignal,
    TeacherSignal,
    TopKSignal,
    TransparentHead,
)


MIXERS = {"probs": mix_probs, "logs": mix_logs, "product": mix_product}


class Covered(NamedTuple):
    """Positions where some teacher counts, and the divisor of the target, 1 where none does."""

    where: Bool[Tensor, " n"]
    norm: Float[Tensor, " n"]


def closed_form(divergence: Divergence | PositionalDivergence) -> ClosedForm | None:
    """The divergence as one whose gradient is written out, or None."""
    if divergence is forward_kl:
        return ClosedForm("forward_kl")
    if divergence is reverse_kl:
        return ClosedForm("reverse_kl")
    if divergence is total_variation:
        return ClosedForm("total_variation")
    if isinstance(divergence, partial) and divergence.func is generalized_jsd and not divergence.args:
        beta = float(divergence.keywords["beta"])
        # At both ends a KL is meant, not the formula, which is 0 there.
        if beta in (0.0, 1.0):
            return closed_form(forward_kl if beta == 0.0 else reverse_kl)
        return ClosedForm("jsd", beta) if 0.0 < beta < 1.0 else None
    return None


def logits_of(
    signal: ProjectedSignal | DenseSignal | CarriedSignal, rows: slice, buffers: dict[torch.dtype, Tensor]
) -> Float[Tensor, "n V"]:
    """A teacher's logits, in a buffer that all teachers share where its head is a linear map."""
    if not isinstance(signal, ProjectedSignal) or not isinstance(signal.head, TransparentHead):
        return signal.logits(rows)
    head = signal.head.as_linear()
    if head is None:
        return signal.logits(rows)
    hidden = signal.hidden[rows]
    weight, bias = head.cut
    # A head on another device, or in another type than its states, knows itself how to bring them together.
    if hidden.dtype != weight.dtype or hidden.device != weight.device:
        return signal.logits(rows)
    shape = (len(hidden), head.vocab_size)
    buffer = buffers.get(weight.dtype)
    # Made for the first teacher that needs it, and again only for a longer chunk.
    if buffer is None or buffer.shape[1] != shape[1] or len(buffer) < shape[0]:
        buffer = hidden.new_empty(shape)
        buffers[weight.dtype] = buffer
    logits = project(hidden, weight, bias, out=buffer[: shape[0]])
    if head.scale != 1.0 or head.softcap is not None:
        run(cap, LogitRows(logits), head.scale, head.softcap)
    return logits


class StreamedTarget:
    """The target of one chunk; see the module.

    Args:
        buffer: What the target is made in, [n V].
        target: Fusion, divergence and temperature.
        weighting: Weights, or what scores each teacher from its own figures.
        rows: The chunk's positions.
        labels: Tokens to be predicted, [n 1].

    Attributes:
        form: The divergence, if its gradient is written out.
        space: In what `fused` is kept: probabilities are the cheapest, but vanish where some divergences
            still read their log.
        fused: The target, relative to `norm`: F of the derivation.
        norm: Sum of the shares so far: N of the derivation.
        stats: Figures of each teacher so far.
        entropies: Of what is mixed, per teacher.
        teacher_kls: Sum over valid positions of KL(teacher || student), per teacher.
    """

    def __init__(
        self,
        buffer: Float[Tensor, "n V"],
        target: KdTarget,
        weighting: Scorer | GivenWeights,
        rows: slice,
        labels: Int[Tensor, "n 1"],
    ) -> None:
        self.target = target
        self.weighting = weighting
        self.rows = rows
        self.labels = labels
        self.form = closed_form(target.divergence)
        self.space: Space = "product"
        if target.fusion is not geometric_logprobs:
            # Where p underflows, forward KL has p as a factor of log p, Jensen-Shannon reads the log of m alone
            # and total variation none. Reverse KL has q as the factor, and a user's own divergence may have
            # anything.
            self.space = "logs" if self.form is None or self.form.name == "reverse_kl" else "probs"
        self.fused = buffer.fill_(-torch.inf if self.space == "logs" else 0.0)
        self.norm = buffer.new_zeros(len(buffer))
        self.stats: list[TeacherColumns] = []
        self.entropies: list[Tensor] = []
        self.teacher_kls: list[Tensor] = []
        self._top = torch.full_like(self.norm, -torch.inf)
        self._scores: list[Tensor] = []

    def add(
        self,
        signal: TeacherSignal,
        student_logits: Float[Tensor, "n V"],
        student_log_total: Float[Tensor, " n"],
        buffers: dict[torch.dtype, Tensor],
        *,
        absent: bool = False,
    ) -> None:
        """Make the next teacher's logits, take its figures, and mix it in.

        Args:
            signal: The teacher's.
            student_logits: For the teacher's KL.
            student_log_total: Their log-sum-exp at the target's temperature.
            buffers: One buffer of logits for each type, kept from one chunk to the next.
            absent: True if it says nothing in any of the rows, so that no logits are made.
        """
        if absent:
            self._skip()
            return
        temperature = self.target.temperature
        if isinstance(signal, TopKSignal):
            require_captured(signal, temperature)
            student = student_logits / temperature - student_log_total.unsqueeze(-1)
            logits = dense_logprobs(signal, self.rows, student)
            # A list was softened when it was made.
            temperatures = Temperatures(1.0, 1.0, 1.0)
        else:
            logits = logits_of(signal, self.rows, buffers)
            own = signal.target_temperature
            temperatures = Temperatures(signal.weight_temperature, own, own * temperature)
        found = run(
            teacher_pass, TeacherRows(logits, student_logits, student_log_total), temperatures, temperature
        )
        stats = self._stats(signal, logits, found, temperatures)
        keep, share = self._share(stats)
        run(
            MIXERS[self.space],
            MixRows(self.fused, logits, found.mixed_log_total, keep, share),
            temperatures.mixed,
        )
        if isinstance(self.weighting, GivenWeights):
            # Whoever made the weights has judged the teachers, and is to be reported.
            stats = stats._replace(valid=self.weighting.valid[self.rows, len(self.stats)])
        self.stats.append(stats)
        self.entropies.append(found.mixed_entropy)
        self.teacher_kls.append(torch.where(stats.valid, found.kl, 0.0).sum())

    def _stats(
        self, signal: TeacherSignal, logits: Tensor, found: TeacherPass, temperatures: Temperatures
    ) -> TeacherColumns:
        if isinstance(signal, TopKSignal):
            # What the list knows of its full distribution, which the completed one only resembles.
            return listed_stats(signal, self.rows)
        at_label = logits.gather(-1, self.labels).squeeze(-1).to(found.entropy.dtype)
        nll = found.own_log_total - at_label / temperatures.own
        weight_nll = found.log_total - at_label / temperatures.weight
        columns = TeacherColumns(found.entropy, nll, weight_nll, found.entropy.isfinite())
        return checked_stats(signal, self.rows, columns, logits.shape[-1])

    def _skip(self) -> None:
        """Count the next teacher as absent: its share is 0 in all rows, and no mixing is needed."""
        stats = stats_of_absent(self.norm, self.fused.shape[-1])
        # A scorer carries sums from chunk to chunk, so it is asked all the same.
        self._share(stats)
        self.stats.append(stats)
        self.entropies.append(stats.entropy)
        self.teacher_kls.append(torch.zeros_like(self.norm[:1]).sum())

    def _share(self, stats: TeacherColumns) -> tuple[Tensor, Tensor]:
        """Factors `keep` and `share` of the derivation, for the next teacher."""
        teacher = len(self.stats)
        if isinstance(self.weighting, GivenWeights):
            share = self.weighting.weights[self.rows, teacher].to(stats.entropy.dtype)
            return torch.ones_like(share), share
        score = self.weighting.of(teacher, stats.figures, self.rows).masked_fill(~stats.valid, -torch.inf)
        self._scores.append(score)
        top = torch.maximum(self._top, score)
        # -inf - -inf is NaN, as long as no teacher has said anything here.
        base = top.masked_fill(top == -torch.inf, 0.0)
        keep = shares_of(self._top, base, self.weighting.tau)
        share = shares_of(score, base, self.weighting.tau)
        self.norm = self.norm * keep + share
        self._top = top
        return keep, share

    def weights(self) -> Float[Tensor, "n M"]:
        """Weights of all teachers."""
        if isinstance(self.weighting, GivenWeights):
            return self.weighting.weights[self.rows]
        valid = torch.stack([stats.valid for stats in self.stats], -1)
        return weights_from_scores(torch.stack(self._scores, -1), valid, tau=self.weighting.tau)

    def covered(self, weights: Float[Tensor, "n M"]) -> Covered:
        """N, and where it is above 0."""
        if isinstance(self.weighting, GivenWeights):
            return Covered(weights.sum(-1) > 0, torch.ones_like(self.norm))
        where = self.norm > 0
        return Covered(where, self.norm.masked_fill(~where, 1.0))

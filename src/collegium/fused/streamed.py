"""The fused target of one chunk, while teachers are added to it one after another.

A teacher's share is exp(score / tau), relative to the highest score so far: when a higher one comes, what
is mixed already is scaled down. So neither the other teachers' scores nor their logits are needed, and
the target is divided by the sum of shares at the end. A share of 0 leaves it unchanged bit for bit.
"""

from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from collegium.fused.chunked import KdTarget
from collegium.fused.compiled import Kernel, run
from collegium.fused.elementwise import ClosedForm, Space, cap, mix_logs, mix_probs, mix_product, teacher_pass
from collegium.fused.listed import dense_logprobs
from collegium.fused.products import project
from collegium.fused.teacher_stats import checked_stats, listed_stats, require_captured, stats_of_absent
from collegium.losses.divergences import (
    Divergence,
    PositionalDivergence,
    forward_kl,
    generalized_jsd,
    reverse_kl,
    total_variation,
)
from collegium.losses.fusion import geometric_logprobs
from collegium.losses.weighting import Figures, GivenWeights, Scorer, shares_of, weights_from_scores
from collegium.signals.signals import (
    CarriedSignal,
    DenseSignal,
    ProjectedSignal,
    TeacherSignal,
    TopKSignal,
    TransparentHead,
)


MIXERS: dict[Space, Kernel] = {"probs": mix_probs, "logs": mix_logs, "product": mix_product}


def closed_form(divergence: Divergence | PositionalDivergence) -> ClosedForm | None:
    """The divergence as one whose gradient is written out, or None."""
    if divergence is forward_kl:
        return "forward_kl", 0.0
    if divergence is reverse_kl:
        return "reverse_kl", 0.0
    if divergence is total_variation:
        return "total_variation", 0.0
    if isinstance(divergence, partial) and divergence.func is generalized_jsd and not divergence.args:
        beta = float(divergence.keywords["beta"])
        if beta in (0.0, 1.0):
            return closed_form(forward_kl if beta == 0.0 else reverse_kl)
        return ("jsd", beta) if 0.0 < beta < 1.0 else None
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
    hidden, (weight, bias) = signal.hidden[rows], head.cut
    if hidden.dtype != weight.dtype or hidden.device != weight.device:
        return signal.logits(rows)
    shape = (len(hidden), head.vocab_size)
    buffer = buffers.get(weight.dtype)
    if buffer is None or buffer.shape[1] != shape[1] or len(buffer) < shape[0]:
        buffer = buffers[weight.dtype] = hidden.new_empty(shape)
    logits = project(hidden, weight, bias, out=buffer[: shape[0]])
    if head.scale != 1.0 or head.softcap is not None:
        run(cap, (logits,), head.scale, head.softcap)
    return logits


class StreamedTarget:
    """See the module.

    Args:
        buffer: What the target is made in, [n V].
        target: Fusion, divergence and temperature.
        weighting: Weights, or what scores each teacher from its own figures.
        rows: Which positions of the batch.
        labels: Tokens to be predicted, [n 1].

    Attributes:
        form: The divergence, if its gradient is written out.
        space: In what `fused` is kept: probabilities are the cheapest, but vanish where some divergences
            still read their log.
        fused: The target, relative to `norm`.
        norm: Sum of the shares so far.
        stats: Per teacher: entropy, cross-entropy at the target and at the weight temperature, validity.
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
        self.target, self.weighting = target, weighting
        self.rows, self.labels = rows, labels
        self.form = closed_form(target.divergence)
        self.space: Space = "product"
        if target.fusion is not geometric_logprobs:
            self.space = "logs" if self.form is None or self.form[0] == "reverse_kl" else "probs"
        self.fused = buffer.fill_(-torch.inf if self.space == "logs" else 0.0)
        self.norm = buffer.new_zeros(len(buffer))
        self.stats: list[tuple[Tensor, ...]] = []
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
            buffers: Where teachers' logits are made, by type; kept from one chunk to the next.
            absent: Whether it says nothing in any of the rows, so that no logits are made.
        """
        if absent:
            self._skip()
            return
        temperature = self.target.temperature
        if isinstance(signal, TopKSignal):
            require_captured(signal, temperature)
            student = student_logits / temperature - student_log_total.unsqueeze(-1)
            logits = dense_logprobs(signal, self.rows, student)
            temperatures = (1.0, 1.0, 1.0)
        else:
            logits = logits_of(signal, self.rows, buffers)
            own, weight = signal.target_temperature, signal.weight_temperature
            temperatures = (weight, own, own * temperature)
        entropy, log_total, own_log_total, mixed_log_total, mixed_entropy, kl = run(
            teacher_pass,
            (logits, student_logits, student_log_total),
            temperatures,
            temperature,
        )
        if isinstance(signal, TopKSignal):
            *stats, valid = listed_stats(signal, self.rows)
        else:
            at_label = logits.gather(-1, self.labels).squeeze(-1).to(entropy.dtype)
            nll, weight_nll = own_log_total - at_label / own, log_total - at_label / weight
            *stats, valid = checked_stats(signal, self.rows, entropy, nll, weight_nll, logits.shape[-1])
        keep, share = self._share(Figures(stats[0], stats[1], valid))
        run(MIXERS[self.space], (self.fused, logits, mixed_log_total, keep, share), temperatures[2])
        if isinstance(self.weighting, GivenWeights):
            valid = self.weighting.valid[self.rows, len(self.stats)]
        self.stats.append((*stats, valid))
        self.entropies.append(mixed_entropy)
        self.teacher_kls.append(torch.where(valid, kl, 0.0).sum())

    def _skip(self) -> None:
        """Take note that the next teacher is absent: its share is 0 in all rows."""
        *stats, valid = stats_of_absent(self.norm, self.fused.shape[-1])
        self._share(Figures(stats[0], stats[1], valid))
        self.stats.append((*stats, valid))
        self.entropies.append(stats[0])
        self.teacher_kls.append(torch.zeros_like(self.norm[:1]).sum())

    def _share(self, figures: Figures) -> tuple[Tensor, Tensor]:
        """Factors of what is mixed already and of the next teacher."""
        teacher = len(self.stats)
        if isinstance(self.weighting, GivenWeights):
            share = self.weighting.weights[self.rows, teacher].to(figures.entropy.dtype)
            return torch.ones_like(share), share
        score = self.weighting.of(teacher, figures, self.rows).masked_fill(~figures.valid, -torch.inf)
        self._scores.append(score)
        top = torch.maximum(self._top, score)
        base = top.masked_fill(top == -torch.inf, 0.0)
        keep, share = (shares_of(value, base, self.weighting.tau) for value in (self._top, score))
        self.norm, self._top = self.norm * keep + share, top
        return keep, share

    def weights(self) -> Float[Tensor, "n M"]:
        """Weights of all teachers."""
        if isinstance(self.weighting, GivenWeights):
            return self.weighting.weights[self.rows]
        valid = torch.stack([stats[-1] for stats in self.stats], -1)
        return weights_from_scores(torch.stack(self._scores, -1), valid, tau=self.weighting.tau)

    def covered_and_norm(self, weights: Float[Tensor, "n M"]) -> tuple[Bool[Tensor, " n"], Float[Tensor, " n"]]:
        """Where some teacher counts, and what the target is to be divided by, 1 where none does."""
        if isinstance(self.weighting, GivenWeights):
            return weights.sum(-1) > 0, torch.ones_like(self.norm)
        covered = self.norm > 0
        return covered, self.norm.masked_fill(~covered, 1.0)

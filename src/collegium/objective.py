"""The loss of one method: kd_weight * KD + (1 - kd_weight) * CE + feature_weight * sum of w_i * F_i.

Every term is a sum over positions divided once by a global count, so that the loss and its gradient do
not depend on how a step's blocks are cut into micro-batches and ranks. The objective owns what is
trained besides the student (projections of feature terms); they never reach the exported student.
"""

import functools
import operator
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from collegium.contracts import (
    Batch,
    Capability,
    Head,
    InnerLayers,
    InnerStates,
    ItemCounts,
    LossOutput,
    Positions,
    TeacherOutput,
    TeacherStats,
)
from collegium.feature_terms import FeatureTerm
from collegium.functional.chunked import DistillationSums, KdTarget, TeacherWeighting
from collegium.functional.divergences import forward_kl
from collegium.functional.fused import distillation_loss
from collegium.functional.fusion import mixture_logprobs
from collegium.functional.weighting import Weighting
from collegium.metrics import Mean


BUFFER_BYTES = {"cpu": 24 * 2**20, "cuda": 128 * 2**20}
"""Size of one [n V] buffer on each kind of device, from which the chunk size follows.

On a CPU the C library keeps freed buffers below 32 MB; above, every one is mapped and cleared anew,
which cost a third of the time of a measurement. A GPU wants larger products.
"""


class Objective(nn.Module):
    """The weighted terms of one method.

    Args:
        teacher_names: In the order in which teachers' outputs are given.
        kd_weight: Share of the distillation loss; 0 leaves the teachers' distributions unread.
        target: Divergence, fusion and temperature.
        weighting: How much each teacher counts.
        feature_weight: Weight of the feature terms together.
        features: The terms, each with its own weight among them, if feature_weight is above 0.
        label_smoothing: Share of a label's probability that the cross-entropy spreads over the vocabulary.
        max_invalid_fraction: Share of bad positions above which a teacher stops the run.
        chunk_size: Positions whose logits are alive at once; None follows from `BUFFER_BYTES`.
    """

    def __init__(
        self,
        teacher_names: Sequence[str] = (),
        *,
        kd_weight: float = 0.5,
        target: KdTarget | None = None,
        weighting: TeacherWeighting | None = None,
        feature_weight: float = 0.0,
        features: Sequence[FeatureTerm] = (),
        label_smoothing: float = 0.0,
        max_invalid_fraction: float = 0.01,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__()
        if not 0.0 <= kd_weight <= 1.0:
            raise ValueError(f"kd_weight is {kd_weight}; it must lie in [0, 1]")
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"label_smoothing is {label_smoothing}; it must lie in [0, 1)")
        if (feature_weight > 0) != (len(features) > 0):
            raise ValueError("feature_weight above 0 and feature terms go together")
        self.teacher_names = tuple(teacher_names)
        self.kd_weight = kd_weight
        self.target = target or KdTarget(forward_kl, mixture_logprobs)
        self.weighting = weighting or Weighting()
        self.feature_weight = feature_weight
        self.features = nn.ModuleList(features)
        self.label_smoothing = label_smoothing
        self.max_invalid_fraction = max_invalid_fraction
        self.chunk_size = chunk_size

    @property
    def need(self) -> frozenset[Capability]:
        """What teachers must provide; empty if they are not asked at all."""
        need = set()
        if self.kd_weight > 0:
            linear = self.target.divergence is forward_kl and self.target.fusion is mixture_logprobs
            need = {Capability.SAMPLES if linear else Capability.TOP_K}
        return frozenset(need).union(*(term.need for term in self.feature_terms))

    @property
    def feature_terms(self) -> Sequence[FeatureTerm]:
        """The terms on inner states."""
        return cast(Sequence[FeatureTerm], self.features)

    @property
    def student_layers(self) -> InnerLayers:
        """Layers of the student that the feature terms read."""
        return functools.reduce(operator.or_, (term.student_layers for term in self.feature_terms), InnerLayers())

    @property
    def teacher_layers(self) -> list[InnerLayers]:
        """Layers of each teacher that the feature terms read; an empty list without such terms."""
        by_term = [term.teacher_layers for term in self.feature_terms]
        return [functools.reduce(operator.or_, layers) for layers in zip(*by_term, strict=True)]

    def forward(
        self,
        student_hidden: Tensor,
        student_head: Head,
        student_states: InnerStates | None,
        batch: Batch,
        positions: Positions,
        outputs: Sequence[TeacherOutput],
        counts: ItemCounts,
        vocab_size: int,
    ) -> LossOutput:
        """Loss of one micro-batch.

        Args:
            student_hidden: Last hidden states at the predicted positions, [N D].
            student_head: Projects them to logits over `vocab_size` tokens.
            student_states: Inner states that feature terms read, if there are any.
            batch: The tokens.
            positions: Its predicted positions.
            outputs: One per teacher; none if `need` is empty.
            counts: Global counts of the optimizer step.
            vocab_size: Student's vocabulary.
        """
        signals = [output.signal for output in outputs] if self.kd_weight > 0 else []
        chunk_size = self.chunk_size or default_chunk_size(vocab_size, student_hidden.device)
        sums = distillation_loss(
            student_hidden,
            student_head,
            positions,
            signals,
            self.weighting,
            target=self.target,
            kd_weight=self.kd_weight,
            label_smoothing=self.label_smoothing,
            chunk_size=chunk_size,
        )
        loss = sums.loss / counts.predicted.clamp_min(1)
        metrics = self._metrics(sums, sums.stats, sums.weights)
        if self.feature_terms:
            assert student_states is not None, "feature terms read them"
            feature, by_term = self._features(student_states, batch, outputs)
            loss = loss + self.feature_weight * feature / counts.attended.clamp_min(1)
            metrics |= by_term
        return LossOutput(loss, metrics)

    def _features(
        self, student_states: InnerStates, batch: Batch, outputs: Sequence[TeacherOutput]
    ) -> tuple[Tensor, dict[str, Mean]]:
        """Weighted sum of the feature terms over text positions, and each by itself."""
        states = [output.features for output in outputs if output.features is not None]
        sums = [term(student_states, states, batch) for term in self.feature_terms]
        weights = [term.weight for term in self.feature_terms]
        total = torch.stack([weight * value for weight, value in zip(weights, sums, strict=True)]).sum()
        count = batch.attention_mask.sum()
        metrics = {f"feature/{i}": Mean(value.detach(), count) for i, value in enumerate(sums)}
        return total, {"feature_loss": Mean(total.detach(), count), **metrics}

    def _metrics(self, sums: DistillationSums, stats: TeacherStats, weights: Tensor) -> dict[str, Mean]:
        num_positions = torch.tensor(len(weights), device=weights.device)
        metrics = {"cross_entropy": Mean(sums.cross_entropy.detach(), num_positions)}
        if weights.shape[1] == 0:
            return metrics
        effective = (-torch.special.xlogy(weights, weights).sum(-1)).exp()  # [N]
        covered = weights.sum(-1) > 0
        metrics |= {
            "kd_loss": Mean(sums.kd.detach(), sums.covered),
            "kd_coverage": Mean(sums.covered, num_positions),
            "target_entropy": Mean(sums.target_entropy, sums.covered),
            "conflict": Mean(sums.conflict, sums.covered),
            "effective_teachers": Mean((effective * covered).sum(), sums.covered),
        }
        for m, name in enumerate(self.teacher_names):
            metrics |= self._teacher_metrics(name, stats, weights[:, m], m, sums.teacher_kl[m])
        return metrics

    @staticmethod
    def _teacher_metrics(
        name: str, stats: TeacherStats, weights: Tensor, m: int, teacher_kl: Tensor
    ) -> dict[str, Mean]:
        valid = stats.valid[:, m]
        num_valid, num_positions = valid.sum(), torch.tensor(len(valid), device=valid.device)
        return {
            f"teacher/{name}/weight": Mean(weights.sum(), num_positions),
            f"teacher/{name}/entropy": Mean((stats.entropy[:, m] * valid).sum(), num_valid),
            f"teacher/{name}/cross_entropy": Mean((stats.cross_entropy[:, m] * valid).sum(), num_valid),
            f"teacher/{name}/kl": Mean(teacher_kl, num_valid),
            f"teacher/{name}/invalid_fraction": Mean(num_positions - num_valid, num_positions),
        }

    def unreliable_teachers(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Teachers that were bad more often than allowed, with the share of bad positions."""
        shares = {name: metrics.get(f"teacher/{name}/invalid_fraction", 0.0) for name in self.teacher_names}
        return {name: share for name, share in shares.items() if share > self.max_invalid_fraction}


MIN_CHUNK_SIZE = 128
"""Below, a product waits for the head's weights: with 64 positions each takes 1.2 times as long."""


def default_chunk_size(vocab_size: int, device: torch.device) -> int:
    """Positions whose float32 logits fill one buffer of `BUFFER_BYTES`; at least `MIN_CHUNK_SIZE`."""
    return max(MIN_CHUNK_SIZE, BUFFER_BYTES.get(device.type, BUFFER_BYTES["cuda"]) // (4 * vocab_size))

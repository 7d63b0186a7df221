"""The loss of one method: kd_weight * KD + (1 - kd_weight) * CE + feature_weight * F.

Every term is a sum over positions divided once by a global count, so that the loss and its gradient do
not depend on how a step's blocks are cut into micro-batches and ranks. A batch may bring weights of its own for
the first two terms, one pair a position (`Batch.weights`). The objective owns what is
trained besides the student (the feature term's projections); they never reach the exported student.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from collegium.contracts import (
    Batch,
    Capability,
    Head,
    ItemCounts,
    LossOutput,
    Positions,
    TeacherOutput,
    TeacherStats,
)
from collegium.functional.chunked import DistillationSums, KdTarget
from collegium.functional.divergences import forward_kl
from collegium.functional.features import LayerMap, layer_pairs, squared_error
from collegium.functional.fused import distillation_loss
from collegium.functional.fusion import mixture_logprobs
from collegium.functional.weighting import Weighting
from collegium.metrics import Mean


BUFFER_BYTES = {"cpu": 24 * 2**20, "cuda": 128 * 2**20}
"""Size of one [n V] buffer on each kind of device, from which the chunk size follows.

On a CPU the C library keeps freed buffers below 32 MB; above, every one is mapped and cleared anew,
which cost a third of the time of a measurement. A GPU wants larger products.
"""


class FeatureTerm(nn.Module):
    """Sum over teachers k of beta_k times the mean over layer pairs of the squared error.

    Args:
        student_size: Student's width and number of layers.
        teacher_sizes: Width and number of layers of each teacher.
        layer_map: `uniform`, `last`, or pairs (student layer, teacher layer).
        importance: beta of each teacher; normalised to sum to 1. Equal if None.
        layer_norm: Normalise both sides first.
        balance: Scale the term to the size of the rest of the loss, by the last step's sizes
            (Minitron, arXiv:2407.14679, takes the ratio in each micro-batch, which would make the loss
            depend on how a step is cut).

    Raises:
        ValueError: the layer map does not fit, or the importances do.
    """

    def __init__(
        self,
        student_size: tuple[int, int],
        teacher_sizes: Sequence[tuple[int, int]],
        *,
        layer_map: LayerMap = "uniform",
        importance: Sequence[float] | None = None,
        layer_norm: bool = True,
        balance: bool = False,
    ) -> None:
        super().__init__()
        betas = [1.0] * len(teacher_sizes) if importance is None else list(importance)
        if len(betas) != len(teacher_sizes) or min(betas) < 0 or sum(betas) <= 0:
            raise ValueError(
                f"importance must be 0 or more for each of {len(teacher_sizes)} teachers, got {betas}"
            )
        self.betas = [beta / sum(betas) for beta in betas]
        self.layer_norm = layer_norm
        self.balance = balance
        width, depth = student_size
        self.pairs = [layer_pairs(layer_map, depth, layers) for _, layers in teacher_sizes]
        self.projections = nn.ModuleList(
            nn.ModuleList(nn.Linear(width, size, bias=False) for _ in pairs)
            for (size, _), pairs in zip(teacher_sizes, self.pairs, strict=True)
        )
        self.register_buffer("scale", torch.ones(()))

    def forward(self, student_states: Sequence[Tensor], outputs: Sequence[TeacherOutput], mask: Tensor) -> Tensor:
        """Sum over text positions, not yet divided by their count."""
        total = student_states[0].new_zeros((), dtype=torch.float32)
        for beta, pairs, projections, output in zip(
            self.betas, self.pairs, self.projections, outputs, strict=True
        ):
            assert output.features is not None, "features were asked for"
            assert isinstance(projections, nn.ModuleList)
            errors = [
                squared_error(
                    projection(student_states[s]),
                    output.features.hidden_states[t],
                    mask,
                    normalize=self.layer_norm,
                )
                for (s, t), projection in zip(pairs, projections, strict=True)
            ]
            total = total + beta * torch.stack(errors).mean()
        assert isinstance(self.scale, Tensor)
        return total * self.scale

    def rebalance(self, feature_loss: float, other_loss: float) -> None:
        """Set the scale from a finished step's losses over all ranks; call between steps."""
        assert isinstance(self.scale, Tensor)
        unscaled = feature_loss / float(self.scale)
        if self.balance and unscaled > 0 and other_loss > 0:
            self.scale.fill_(other_loss / unscaled)


class Objective(nn.Module):
    """The weighted terms of one method.

    Args:
        teacher_names: In the order in which teachers' outputs are given.
        kd_weight: Share of the distillation loss; 0 leaves the teachers' distributions unread.
        target: Divergence, fusion and temperature.
        weighting: How much each teacher counts.
        feature_weight: Weight of the feature term.
        feature: The term, if feature_weight is above 0.
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
        weighting: Weighting | None = None,
        feature_weight: float = 0.0,
        feature: FeatureTerm | None = None,
        label_smoothing: float = 0.0,
        max_invalid_fraction: float = 0.01,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__()
        if not 0.0 <= kd_weight <= 1.0:
            raise ValueError(f"kd_weight is {kd_weight}; it must lie in [0, 1]")
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"label_smoothing is {label_smoothing}; it must lie in [0, 1)")
        if (feature_weight > 0) != (feature is not None):
            raise ValueError("feature_weight above 0 and a feature term go together")
        self.teacher_names = tuple(teacher_names)
        self.kd_weight = kd_weight
        self.target = target or KdTarget(forward_kl, mixture_logprobs)
        self.weighting = weighting or Weighting()
        self.feature_weight = feature_weight
        self.feature = feature
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
        return frozenset(need | ({Capability.HIDDEN_STATES} if self.feature is not None else set()))

    def forward(
        self,
        student_hidden: Tensor,
        student_head: Head,
        student_states: Sequence[Tensor] | None,
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
            student_states: All hidden states, each [B S D], if the feature term is on.
            batch: The tokens.
            positions: Its predicted positions.
            outputs: One per teacher; none if `need` is empty.
            counts: Global counts of the optimizer step.
            vocab_size: Student's vocabulary.
        """
        signals = [output.signal for output in outputs] if self.kd_weight > 0 else []
        chunk_size = self.chunk_size or default_chunk_size(vocab_size, student_hidden.device)
        weights = batch.weights
        sums = distillation_loss(
            student_hidden,
            student_head,
            positions,
            signals,
            self.weighting,
            target=self.target,
            kd_weight=self.kd_weight if weights is None else weights.kd,
            ce_weight=None if weights is None else weights.ce,
            label_smoothing=self.label_smoothing,
            chunk_size=chunk_size,
        )
        loss = sums.loss / counts.predicted.clamp_min(1)
        metrics = self._metrics(sums, sums.stats, sums.weights)
        if self.feature is not None:
            assert student_states is not None, "the feature term reads all hidden states"
            feature = self.feature(student_states, outputs, batch.attention_mask)
            loss = loss + self.feature_weight * feature / counts.attended.clamp_min(1)
            metrics["feature_loss"] = Mean(feature.detach(), batch.attention_mask.sum())
        return LossOutput(loss, metrics)

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

"""Metrics of the distillation loss, as (total, count) pairs that add up over micro-batches and ranks."""

from collections.abc import Sequence

import torch
from torch import Tensor

from collegium.fused.chunked import DistillationSums
from collegium.report import metric_names as names
from collegium.signals.metrics import Mean
from collegium.signals.signals import CarriedSignal, TeacherSignal


def loss_metrics(
    sums: DistillationSums, teacher_names: Sequence[str], signals: Sequence[TeacherSignal]
) -> dict[str, Mean]:
    """Terms of the loss, how far teachers agree, and each teacher's figures under its name."""
    weights = sums.weights
    num_positions = torch.tensor(len(weights), device=weights.device)
    metrics = {names.CROSS_ENTROPY: Mean(sums.cross_entropy.detach(), num_positions)}
    if weights.shape[1] == 0:
        return metrics
    effective = (-torch.special.xlogy(weights, weights).sum(-1)).exp()  # [N]
    covered = weights.sum(-1) > 0
    metrics |= {
        names.KD_LOSS: Mean(sums.kd.detach(), sums.covered),
        names.KD_COVERAGE: Mean(sums.covered, num_positions),
        names.TARGET_ENTROPY: Mean(sums.target_entropy, sums.covered),
        names.CONFLICT: Mean(sums.conflict, sums.covered),
        names.EFFECTIVE_TEACHERS: Mean((effective * covered).sum(), sums.covered),
    }
    for m, name in enumerate(teacher_names):
        metrics |= _of_teacher(name, m, sums, num_positions, signals[m].valid)
        metrics |= _carried(name, signals[m], num_positions)
    return metrics


def _carried(name: str, signal: TeacherSignal, num_positions: Tensor) -> dict[str, Mean]:
    """Shares of positions where a teacher with another tokenizer is exact, and approximate."""
    if not isinstance(signal, CarriedSignal) or signal.exact is None or signal.valid is None:
        return {}
    exact = (signal.exact & signal.valid).sum()
    return {
        names.of_teacher(name, names.EXACT_FRACTION): Mean(exact, num_positions),
        names.of_teacher(name, names.APPROXIMATE_FRACTION): Mean(signal.valid.sum() - exact, num_positions),
    }


def _of_teacher(
    name: str, m: int, sums: DistillationSums, num_positions: Tensor, present: Tensor | None
) -> dict[str, Mean]:
    stats = sums.stats
    valid = stats.valid[:, m]
    num_valid = valid.sum()
    num_present = num_positions if present is None else present.sum()
    figures = {
        names.WEIGHT: Mean(sums.weights[:, m].sum(), num_positions),
        names.ENTROPY: Mean((stats.entropy[:, m] * valid).sum(), num_valid),
        names.CROSS_ENTROPY: Mean((stats.cross_entropy[:, m] * valid).sum(), num_valid),
        names.WEIGHT_CROSS_ENTROPY: Mean((stats.weight_cross_entropy[:, m] * valid).sum(), num_valid),
        names.KL: Mean(sums.teacher_kl[m], num_valid),
        names.INVALID_FRACTION: Mean(num_present - num_valid, num_present),
    }
    return {names.of_teacher(name, metric): mean for metric, mean in figures.items()}

"""Matching of hidden states: squared error, MobileBERT's feature maps, and the map between layers.

Source: arXiv:2507.15198 names the term without a formula; the form is TinyBERT's
(arXiv:1909.10351), with a projection for each teacher and layer pair, since widths differ.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import layer_norm

from collegium.losses.precision import full_precision


LayerMap = Literal["uniform", "last"] | tuple[tuple[int, int], ...]


def squared_error(
    student: Float[Tensor, "B S E"],
    teacher: Float[Tensor, "B S E"],
    mask: Bool[Tensor, "B S"],
    *,
    normalize: bool,
    emphasis: Float[Tensor, "B S"] | None = None,
) -> Float[Tensor, ""]:
    """Sum over text positions of the mean over E of the squared difference, times the emphasis if given.

    Positions where the teacher is not finite are left out. With `normalize` both sides first get
    zero mean and unit variance over E, so that a few huge dimensions do not decide.
    """
    usable, student, teacher = _usable(student, teacher, mask)
    if normalize:
        student = layer_norm(student, student.shape[-1:])
        teacher = layer_norm(teacher, teacher.shape[-1:])
    errors = (student - teacher).square().mean(-1)  # [B S]
    errors = errors if emphasis is None else errors * emphasis
    return torch.where(usable, errors, torch.zeros_like(errors)).sum()


def feature_map_transfer(
    student: Float[Tensor, "B S E"],
    teacher: Float[Tensor, "B S E"],
    mask: Bool[Tensor, "B S"],
    *,
    map_factor: float = 100.0,
    mean_factor: float = 5000.0,
    variance_factor: float = 5.0,
) -> Float[Tensor, ""]:
    """Sum over text positions of MobileBERT's feature map transfer.

    map_factor * mean_d (LN(s) - LN(t))^2 + mean_factor * (mean_d s - mean_d t)^2
    + variance_factor * abs(var_d s - var_d t), LN having no parameters. Factors are those of
    `official/projects/mobilebert/distillation.py` in github.com/tensorflow/models (arXiv:2004.02984). Positions
    where the teacher is not finite are left out.
    """
    usable, student, teacher = _usable(student, teacher, mask)
    shape = student.shape[-1:]
    maps = (layer_norm(student, shape) - layer_norm(teacher, shape)).square().mean(-1)  # [B S]
    means = (student.mean(-1) - teacher.mean(-1)).square()
    variances = (student.var(-1, correction=0) - teacher.var(-1, correction=0)).abs()
    errors = map_factor * maps + mean_factor * means + variance_factor * variances
    return torch.where(usable, errors, torch.zeros_like(errors)).sum()


def _usable(student: Tensor, teacher: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Positions that count, and both sides in float32 at least, the teacher 0 elsewhere."""
    usable = mask & teacher.isfinite().all(-1)  # [B S]
    student = full_precision(student)
    teacher = full_precision(teacher)
    return usable, student, torch.where(usable.unsqueeze(-1), teacher, torch.zeros_like(teacher))


def layer_pairs(layer_map: LayerMap, student_layers: int, teacher_layers: int) -> tuple[tuple[int, int], ...]:
    """Pairs (student layer, teacher layer), 0 being the embedding output.

    `uniform` spreads the student's layers evenly over the teacher's, ends on ends.

    Raises:
        ValueError: a pair names a layer that is not there.
    """
    if layer_map == "last":
        return ((student_layers, teacher_layers),)
    if layer_map == "uniform":
        return tuple((i, round(i * teacher_layers / student_layers)) for i in range(student_layers + 1))
    for student, teacher in layer_map:
        if not (0 <= student <= student_layers and 0 <= teacher <= teacher_layers):
            raise ValueError(
                f"layer_map pairs student layer {student} with teacher layer {teacher}, but the "
                f"student has layers 0 to {student_layers} and the teacher 0 to {teacher_layers}"
            )
    return tuple(layer_map)


def block_pairs(layer_map: LayerMap, student_layers: int, teacher_layers: int) -> tuple[tuple[int, int], ...]:
    """Pairs of layers that have attention: as `layer_pairs`, from layer 1.

    Raises:
        ValueError: a pair names a layer that is not there, or the embedding output.
    """
    pairs = layer_pairs(layer_map, student_layers, teacher_layers)
    if layer_map == "uniform":
        return tuple((student, max(1, teacher)) for student, teacher in pairs if student > 0)
    if embedding := [pair for pair in pairs if 0 in pair]:
        raise ValueError(f"layer_map pairs {embedding[0]}, but layer 0 is the embedding output; layers begin at 1")
    return pairs

"""Temperatures under which a teacher is as certain as it is right.

The mean loss of softmax(beta * z) is convex in beta = 1 / c: its slope is E[E_p z] - E[z_y] and its
curvature E[Var_p z] (temperature scaling, arXiv:1706.04599, section 4.2). All three come from one look at
the logits, so Newton's method needs four to seven looks to reach 1e-6 nats where a golden section over
log c needs some thirty. A look is a product of all hidden states with the head and a softmax; between
looks nothing of [n V] is kept, only sums. Several temperatures (of weight and of target, on different text)
share each product.

At the optimum the slope is 0, and then the mean entropy equals the mean loss: what a teacher's entropy says
of its mistakes is right on average, which is what entropy weights believe.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from collegium.losses.chunks import chunks
from collegium.losses.divergences import LOG_ZERO
from collegium.losses.precision import full_precision
from collegium.signals.signals import CarriedSignal, DenseSignal, ProjectedSignal


MAX_LOG_TEMPERATURE = 1.6
"""Temperatures are sought between exp(-1.6) = 0.20 and exp(1.6) = 4.95."""

TOLERANCE = 1e-6
"""Nats between mean loss and mean entropy at which a temperature counts as fitted."""

MAX_LOOKS = 40
"""Where Newton's method leaves the bracket, that is halved on a log scale; this many would do alone."""


@dataclass(frozen=True)
class CalibrationSums:
    """Sums over positions at one temperature.

    Attributes:
        count: Positions that count.
        nll: Loss of the labels, in nats.
        slope: Derivative of `nll` by beta = 1 / c: sum of E_p z - z_y.
        curvature: Second derivative of `nll` by beta: sum of Var_p z.
    """

    count: float = 0.0
    nll: float = 0.0
    slope: float = 0.0
    curvature: float = 0.0

    def __add__(self, other: "CalibrationSums") -> "CalibrationSums":
        return CalibrationSums(
            self.count + other.count,
            self.nll + other.nll,
            self.slope + other.slope,
            self.curvature + other.curvature,
        )


def calibration_sums(
    signal: ProjectedSignal | DenseSignal | CarriedSignal,
    labels: Int[Tensor, " N"],
    temperatures: Sequence[float],
    *,
    chunk_size: int,
) -> list[CalibrationSums]:
    """Sums of one teacher at several temperatures, from one product with its head.

    The signal's own temperatures are not used. Positions where the teacher is not valid, or its logits hold
    NaN or +Inf, do not count.

    Args:
        signal: Distributions at all positions.
        labels: What is to be predicted there.
        temperatures: c of each.
        chunk_size: Positions whose logits are alive at once. Sums are in float64, so it does not matter.
    """
    betas = [1.0 / temperature for temperature in temperatures]
    totals = torch.zeros((len(betas), 4), dtype=torch.float64, device=labels.device)
    for rows in chunks(len(labels), chunk_size):
        logits = full_precision(signal.logits(rows))  # [n V]
        valid = None if signal.valid is None else signal.valid[rows]
        totals += _chunk_sums(logits, labels[rows], valid, betas)
    return [CalibrationSums(*row) for row in totals.tolist()]


def _chunk_sums(
    logits: Float[Tensor, "n V"], labels: Tensor, valid: Tensor | None, betas: Sequence[float]
) -> Float[Tensor, "K 4"]:
    top = logits.amax(-1, keepdim=True) if len(logits) else logits[:, :1]
    counts = top.squeeze(-1).isfinite()  # NaN and +Inf pass through a maximum
    if valid is not None:
        counts = counts & valid
    centred = (logits - top).clamp_min(LOG_ZERO)  # [n V], at most 0
    centred = centred.masked_fill(~counts.unsqueeze(-1), 0.0)
    at_label = centred.gather(-1, labels[:, None]).squeeze(-1)
    sums = []
    for beta in betas:
        exps = (centred * beta).exp()
        total = exps.sum(-1)
        weighted = exps * centred
        mean = weighted.sum(-1) / total
        square = (weighted * centred).sum(-1) / total
        figures = (
            torch.ones_like(total),
            total.log() - beta * at_label,
            mean - at_label,
            square - mean.square(),
        )
        sums.append(torch.stack([figure.double()[counts].sum() for figure in figures]))
    return torch.stack(sums)


def confidence_gaps(
    confidence: Float[Tensor, " n"], right: Float[Tensor, " n"], num_bins: int
) -> Float[Tensor, "n bins"]:
    """Summands of the expected calibration error by prediction and bin: confidence minus right or wrong.

    Bins are of equal width, each with its upper end (arXiv:1706.04599, equation 3). The error of a corpus is
    sum over bins of |sum over its predictions| / predictions: nothing else has to be kept.

    Args:
        confidence: Probability of the predicted token, in [0, 1].
        right: 1 where it is the label, else 0.
        num_bins: Number of bins.
    """
    return confidence_bins(confidence, confidence - right, num_bins)


def confidence_bins(
    confidence: Float[Tensor, " n"], value: Float[Tensor, " n"], num_bins: int
) -> Float[Tensor, "n bins"]:
    """A value of each prediction in its bin of confidence, 0 in the others."""
    bins = ((confidence * num_bins).ceil().long() - 1).clamp(0, num_bins - 1)
    empty = torch.zeros((len(confidence), num_bins), dtype=confidence.dtype, device=confidence.device)
    return empty.scatter_(-1, bins.unsqueeze(-1), value.unsqueeze(-1))


@dataclass(frozen=True)
class FittedTemperature:
    """A temperature and what it changes.

    Attributes:
        temperature: c: divide logits by it.
        nll: Mean loss in nats at c.
        entropy: Mean entropy in nats at c; equal to `nll` unless c is at a bound.
        raw_nll: Mean loss at temperature 1.
        raw_entropy: Mean entropy at temperature 1.
        positions: On how many tokens.
        at_bound: True if the best c lies beyond the bounds; `temperature` is the nearest one then.
    """

    temperature: float
    nll: float
    entropy: float
    raw_nll: float
    raw_entropy: float
    positions: int
    at_bound: bool = False

    @property
    def gap(self) -> float:
        """Mean loss minus mean entropy after fitting; above 0 is overconfident."""
        return self.nll - self.entropy

    @property
    def raw_gap(self) -> float:
        """The same before."""
        return self.raw_nll - self.raw_entropy


@dataclass
class _Search:
    """Newton's method for the zero of the slope, in a bracket of beta; begins at beta = 1."""

    tolerance: float
    beta: float = 1.0
    low: float = field(default_factory=lambda: math.exp(-MAX_LOG_TEMPERATURE))
    high: float = field(default_factory=lambda: math.exp(MAX_LOG_TEMPERATURE))
    raw: tuple[float, float] | None = None
    looks: int = 0
    found: FittedTemperature | None = None

    def see(self, sums: CalibrationSums) -> None:
        """Take in the sums at `beta`: be done, or choose the next one."""
        if not sums.count:
            raise ValueError("no position to fit a temperature on: the teacher is valid at none of them")
        nll, slope, curvature = (x / sums.count for x in (sums.nll, sums.slope, sums.curvature))
        entropy = nll - self.beta * slope
        self.raw = self.raw or (nll, entropy)
        self.looks += 1
        at_bound = self.beta in _BOUNDS and slope * (self.beta - 1.0) < 0
        if at_bound or abs(self.beta * slope) <= self.tolerance or self.looks == MAX_LOOKS:
            self.found = FittedTemperature(
                1.0 / self.beta, nll, entropy, *self.raw, positions=int(sums.count), at_bound=at_bound
            )
            return
        self.low, self.high = (self.beta, self.high) if slope < 0 else (self.low, self.beta)
        self.beta = self._next(slope, curvature)

    def _next(self, slope: float, curvature: float) -> float:
        step = self.beta - slope / curvature if curvature > 0 else math.copysign(math.inf, -slope)
        bounds = [bound for bound in _BOUNDS if bound in (self.low, self.high)]
        for bound in bounds:  # never looked at: its slope decides whether the optimum is beyond
            if (step <= bound < 1.0) or (step >= bound > 1.0):
                return bound
        return step if self.low < step < self.high else math.sqrt(self.low * self.high)


_BOUNDS = (math.exp(-MAX_LOG_TEMPERATURE), math.exp(MAX_LOG_TEMPERATURE))


def fit_temperatures(
    look: Callable[[Sequence[float], Sequence[int]], Sequence[CalibrationSums]],
    num_temperatures: int,
    *,
    tolerance: float = TOLERANCE,
) -> list[FittedTemperature]:
    """Temperatures that minimise the mean loss, each on its own text, all in the same looks.

    Args:
        look: Given temperatures, and which of the fits each belongs to, the sums over that fit's text.
        num_temperatures: How many are fitted.
        tolerance: Nats between mean loss and mean entropy.

    Raises:
        ValueError: a fit has no positions.
    """
    searches = [_Search(tolerance) for _ in range(num_temperatures)]
    while going := [index for index, search in enumerate(searches) if search.found is None]:
        sums = look([1.0 / searches[index].beta for index in going], going)
        for index, figures in zip(going, sums, strict=True):
            searches[index].see(figures)
    return [search.found for search in searches if search.found is not None]

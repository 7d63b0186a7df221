"""The student's own uncertainty, and what follows from it: which teacher, which positions, how much.

Dynamic KD (arXiv:2109.11295; `models/student.py` of lancopku/DynamicKD), from classification of sentences to the
next token: a position is an instance, V is the number of classes. Nothing here carries a gradient; the paper's
code lets it flow into its weights in two of three modes.

Derivation. With L = log sum exp z of a position's logits and q = softmax(z), three numbers of a row say how sure
the student is, and none needs q as a tensor:

    entropy     H = -sum q log q = -sum exp(z - L) (z - L),      u = H / log V in [0, 1]
    confidence  q at the highest logit = exp(z_1 - L)
    margin      exp(z_1 - L) - exp(z_2 - L), with z_2 the second-highest
    nll         L - z_y

The student's figures must be known before its loss, so its logits are made twice: one product of [N D] with [D
V] more, a fifth of what a step does with one teacher of the student's size.

    time ->                  figures                     the loss (`fused`)
    student's logits [n V]   =|=|=|=|=|  chunks          =|=|=|=|=|  the same chunks again
    figures          [N]     ==================> u, which positions, which teacher ===>
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from collegium.fused.compiled import run
from collegium.fused.elementwise import LogitRows
from collegium.losses.chunks import chunks
from collegium.losses.precision import full_precision
from collegium.signals.signals import Head


Adoption = Literal["hard", "soft", "instance"]
Selection = Literal["entropy", "confidence", "margin", "label"]


@dataclass(frozen=True)
class StudentFigures:
    """The student's own view of each predicted position, at temperature 1.

    Attributes:
        uncertainty: Entropy / log V, in [0, 1].
        confidence: Largest probability.
        margin: Largest less second-largest probability.
        nll: -log probability of the label.
    """

    uncertainty: Float[Tensor, " N"]
    confidence: Float[Tensor, " N"]
    margin: Float[Tensor, " N"]
    nll: Float[Tensor, " N"]


@torch.no_grad()
def student_figures(
    hidden: Float[Tensor, "N D"], head: Head, labels: Int[Tensor, " N"], *, chunk_size: int
) -> StudentFigures:
    """Make the student's logits a chunk at a time and keep four numbers of each row."""
    parts = []
    # As large as the loss's own chunks, and gone before these begin: the peak of memory stays where it was.
    for rows in chunks(len(labels), chunk_size):
        logits = full_precision(head(hidden[rows]))
        entropy, log_total = run(entropy_figures, LogitRows(logits))
        first, second = logits.topk(2, -1).values.unbind(-1)
        confidence = (first - log_total).exp()
        runner_up = (second - log_total).exp()
        nll = log_total - logits.gather(-1, labels[rows, None]).squeeze(-1)
        parts.append((entropy / math.log(logits.shape[-1]), confidence, confidence - runner_up, nll))
    return StudentFigures(*(torch.cat(column) for column in zip(*parts, strict=True)))


def entropy_figures(rows: LogitRows) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Entropy and log-sum-exp; a kernel of `compiled.run`."""
    log_total = rows.logits.logsumexp(-1)
    # No clamp as for teachers: a student's logits are finite, or the run is stopped by its gradient.
    below = rows.logits - log_total.unsqueeze(-1)
    return -(below.exp() * below).sum(-1), log_total


def adoption_weights(uncertainty: Float[Tensor, " N"], adoption: Adoption) -> Float[Tensor, "N 2"]:
    """Weights of a small and of a large teacher, in this order: an uncertain student follows the small one.

    `instance`: (u, 1 - u) at each position. `soft`: the same with the mean u of all positions given. `hard`: the
    more uncertain half of them follows the small teacher alone, the others (one more of an odd number) the large
    one. The last two depend on which positions are given together.
    """
    if adoption == "instance":
        small = uncertainty
    elif adoption == "soft":
        small = uncertainty.mean().expand_as(uncertainty)
    else:
        # By rank and not by a threshold, so that half of them follow each teacher whatever the student's state.
        small = torch.zeros_like(uncertainty)
        small[_first(-uncertainty, len(uncertainty) // 2)] = 1.0
    return torch.stack([small, 1.0 - small], -1)


def selected_positions(figures: StudentFigures, selection: Selection, share: float) -> Bool[Tensor, " N"]:
    """The given share of the positions about which the student is least sure.

    `entropy`, `confidence` and `margin` judge by its distribution alone, `label` by the loss on the text,
    which is the divergence from a one-hot label. Of equal positions the earlier are taken. The number is rounded
    down, to one at least.

    Raises:
        ValueError: the share is outside (0, 1].
    """
    if not 0.0 < share <= 1.0:
        raise ValueError(f"the selected share is {share}; it must lie in (0, 1]")
    order = {
        "entropy": -figures.uncertainty,
        "confidence": figures.confidence,
        "margin": figures.margin,
        "label": -figures.nll,
    }[selection]
    chosen = torch.zeros(len(order), dtype=torch.bool, device=order.device)
    # A product such as 0.29 * 100 lies just below its whole number.
    chosen[_first(order, max(1, int(len(order) * share + 1e-9)))] = True
    return chosen


def _first(order: Tensor, count: int) -> Int[Tensor, " count"]:
    # Stable: what an unstable sort makes of equal figures may differ from one machine to the next.
    return order.argsort(stable=True)[:count]

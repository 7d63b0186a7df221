"""How parameters of divergences follow the course of a run: TAID's blend and DistiLLM-2's skew and weights.

Plain functions of tensors on whatever device the loss is on, so that a step waits for nothing. What has to
be remembered from one step to the next is their argument and result, and belongs in a checkpoint.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class TaidState(NamedTuple):
    """What TAID remembers between steps, 0-dim tensors.

    Attributes:
        t: Share of the teacher in the blend.
        previous: The last step's loss; infinite before the first.
        momentum: Smoothed relative decrease of the loss.
    """

    t: Float[Tensor, ""]
    previous: Float[Tensor, ""]
    momentum: Float[Tensor, ""]

    @staticmethod
    def initial(start: float = 0.4, device: torch.device | None = None) -> "TaidState":
        """Before the first step."""
        return TaidState(*(torch.tensor(value, device=device) for value in (start, torch.inf, 0.0)))


def taid_update(
    state: TaidState,
    loss: Float[Tensor, ""],
    progress: float,
    *,
    start: float = 0.4,
    end: float = 1.0,
    alpha: float = 5e-4,
    beta: float = 0.99,
) -> TaidState:
    """The share t after a step (TAID, arXiv:2501.16937; `src/distil_losses/taid.py`).

    t never falls behind the straight line from start to end, and runs ahead while the loss falls. The first
    step only sets the loss to compare with.

    Args:
        state: Before the step.
        loss: Of the step over all ranks: the mean cross-entropy to the blend, KL plus the blend's entropy.
        progress: Share of the run's steps that is done, in [0, 1].
        start: First t.
        end: Last t.
        alpha: Size of a step ahead.
        beta: Decay of the momentum.
    """
    loss = loss.detach()
    first = state.previous.isinf()
    change = torch.where(first, 0.0, (state.previous - loss) / (state.previous + 1e-15))
    momentum = beta * state.momentum + (1.0 - beta) * change
    ahead = state.t + alpha * momentum.sigmoid() * (1.0 - state.t)
    t = ahead.clamp_min(start + (end - start) * progress).clamp_max(end)
    return TaidState(torch.where(first, state.t, t), loss, torch.where(first, state.momentum, momentum))


def sequence_likelihoods(
    label_logprobs: Float[Tensor, " n"], sequences: Int[Tensor, " n"], num_sequences: int
) -> Float[Tensor, " sequences"]:
    """exp of the mean log-probability of each sequence's labels; 0 of a sequence without any.

    Args:
        label_logprobs: Of the labels, [n].
        sequences: Which sequence a position belongs to, from 0, [n].
        num_sequences: How many there are.
    """
    total, count = label_logprobs.new_zeros(2, num_sequences)
    total = total.index_add(0, sequences, label_logprobs)
    count = count.index_add(0, sequences, torch.ones_like(label_logprobs))
    return torch.where(count > 0, (total / count.clamp_min(1.0)).exp(), 0.0)


def adaptive_skew(
    gaps: Float[Tensor, " sequences"], mean_gap: float | Float[Tensor, ""], base: float = 0.1
) -> Float[Tensor, " sequences"]:
    """clip(1 - (1 - base) mean_gap / gap, 0.01, base): the skew of each sequence in DistiLLM-2.

    arXiv:2503.07067, and `src/distillm_trainer.py`, where it is off by default and where a gap is
    taken of a whole sequence: `sequence_likelihoods` of whose text it is (the teacher's for given text, the
    student's for its own) minus the other's. `mean_gap` is the mean of gaps over the first logged steps, and
    stays. Carries no gradient here, though the paper's code lets it through.

    Args:
        gaps: Of each sequence.
        mean_gap: What a gap is compared with.
        base: The largest skew, and the one of a typical gap, in [0.01, 1).
    """
    ratio = (1.0 - base) * mean_gap / (gaps.detach() + 1e-5)
    return (1.0 - ratio).nan_to_num(base).clamp(0.01, base)


def on_policy_weight(progress: float) -> float:
    """Weight of the student's own text in DistiLLM-2, from 1 to 1.5 in the first half of a run.

    Given text has 2 minus that. `src/distillm_trainer.py`: `gradual_beta`, off by default.
    """
    return 1.0 + 0.5 * min(1.0, 2.0 * progress)

"""Parameters of divergences that change during a run: TAID's blend and DistiLLM-2's weights.

Plain functions of tensors on whatever device the loss is on, so that a step waits for nothing. What has to
be remembered from one step to the next is their argument and result, and belongs in a checkpoint.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class TaidState(NamedTuple):
    """State of TAID between steps, 0-dim tensors.

    Attributes:
        t: Share of the teacher in the blend.
        previous: The last step's loss; infinite before the first.
        momentum: Smoothed relative decrease of the loss.
    """

    t: Float[Tensor, ""]
    previous: Float[Tensor, ""]
    momentum: Float[Tensor, ""]

    @staticmethod
    def initial(start: float = 0.4) -> "TaidState":
        """Before the first step."""
        return TaidState(*(torch.tensor(value) for value in (start, torch.inf, 0.0)))


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
        loss: Loss of the step over all ranks: the mean cross-entropy to the blend, KL plus the blend's entropy.
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


def on_policy_weight(progress: float) -> float:
    """Weight of the student's own text in DistiLLM-2, from 1 to 1.5 in the first half of a run.

    Given text has 2 minus that. `src/distillm_trainer.py`: `gradual_beta`, off by default.
    """
    return 1.0 + 0.5 * min(1.0, 2.0 * progress)

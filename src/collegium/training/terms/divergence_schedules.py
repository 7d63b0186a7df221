"""Divergences that change over a run: their parameter at each step, saved with the weights of the run."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from collegium.losses.divergence_schedules import TaidState, on_policy_weight, taid_update
from collegium.training.module import TrainedModule


class DivergenceSchedule(TrainedModule):
    """Sets the parameter of a `PositionalDivergence` along a run.

    Attributes:
        watches: True if `after_step` must be called with the loss of each step.
    """

    watches = False

    def parameter(self, written: Bool[Tensor, " N"], progress: float) -> Float[Tensor, ""] | Float[Tensor, " N"]:
        """The parameter now.

        Args:
            written: Positions of text that the student wrote itself.
            progress: Share of the training that is done.
        """
        raise NotImplementedError

    def after_step(self, loss: float, progress: float) -> None:
        """Take in a finished step's mean divergence over all ranks."""


class OwnTextSchedule(DivergenceSchedule):
    """Weights of `SkewPair`: 1 everywhere, negative on given text.

    Args:
        gradual: Move weight from given text to the student's own over the first half of the run.
    """

    def __init__(self, *, gradual: bool = False) -> None:
        super().__init__()
        self.gradual = gradual

    def parameter(self, written: Bool[Tensor, " N"], progress: float) -> Float[Tensor, " N"]:
        """beta on the student's own text, beta - 2 on given text."""
        beta = on_policy_weight(progress) if self.gradual else 1.0
        return torch.where(written, beta, beta - 2.0)


class TaidSchedule(DivergenceSchedule):
    """The teacher's share t in TAID's target, and what it depends on (arXiv:2501.16937, algorithm 1).

    Its three numbers are buffers, so that a run that is resumed goes on where it was.

    Args:
        start: First t.
        end: Last t.
        alpha: Size of a step ahead of the straight line between them.
        beta: Decay of the momentum.
    """

    watches = True

    def __init__(self, *, start: float = 0.4, end: float = 1.0, alpha: float = 5e-4, beta: float = 0.99) -> None:
        super().__init__()
        if not 0.0 <= start <= end <= 1.0:
            raise ValueError(f"TAID goes from {start} to {end}; both must lie in [0, 1], in this order")
        self.start = start
        self.end = end
        self.alpha = alpha
        self.beta = beta
        for name, value in TaidState.initial(start)._asdict().items():
            self.register_buffer(name, value)

    def parameter(self, written: Bool[Tensor, " N"], progress: float) -> Float[Tensor, ""]:
        """The share t now."""
        assert isinstance(self.t, Tensor)
        return self.t

    def after_step(self, loss: float, progress: float) -> None:
        """Move t by a finished step's loss.

        Args:
            loss: Mean cross-entropy to the blend over the step.
            progress: Share of the training that is done.
        """
        assert isinstance(self.t, Tensor) and isinstance(self.previous, Tensor)
        assert isinstance(self.momentum, Tensor)
        state = taid_update(
            TaidState(self.t, self.previous, self.momentum),
            self.t.new_tensor(loss),
            progress,
            start=self.start,
            end=self.end,
            alpha=self.alpha,
            beta=self.beta,
        )
        for name, value in state._asdict().items():
            getattr(self, name).copy_(value)

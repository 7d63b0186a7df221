"""Targets that move: how far TAID's blend of student and teacher has come, kept with the weights."""

from torch import Tensor, nn

from collegium.functional.schedules import TaidState, taid_update


class TaidCourse(nn.Module):
    """The teacher's share t in TAID's target, and what it depends on (arXiv:2501.16937, algorithm 1).

    Its three numbers are buffers, so that a run that is resumed goes on where it was.

    Args:
        start: First t.
        end: Last t.
        alpha: Size of a step ahead of the straight line between them.
        beta: Decay of the momentum.
    """

    def __init__(self, *, start: float = 0.4, end: float = 1.0, alpha: float = 5e-4, beta: float = 0.99) -> None:
        super().__init__()
        if not 0.0 <= start <= end <= 1.0:
            raise ValueError(f"TAID goes from {start} to {end}; both must lie in [0, 1], in this order")
        self.start, self.end, self.alpha, self.beta = start, end, alpha, beta
        for name, value in TaidState.initial(start)._asdict().items():
            self.register_buffer(name, value)

    @property
    def value(self) -> Tensor:
        """The share t now, a scalar."""
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

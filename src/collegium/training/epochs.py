"""Passes over the data, in optimizer steps.

Every step takes the same number of samples, so that results do not depend on how a step is cut into micro-batches
and ranks. Where the data does not divide evenly, the last step of an epoch is filled up with the first samples of
the next one, and the epoch ends there. `transformers.Trainer` would make that step a small one. Both agree where
the data divides evenly; else e epochs of n samples take ceil(e n / s) steps of s samples here, and e ceil(n / s)
there.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch.utils.data import Sampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


@dataclass(frozen=True)
class Epochs:
    """The epochs of one training.

    Attributes:
        num_samples: Samples of an epoch.
        samples_per_step: Samples of an optimizer step, over micro-batches and ranks.
        num_steps: Steps of the whole training.
    """

    num_samples: int
    samples_per_step: int
    num_steps: int

    @property
    def _size(self) -> int:
        # Of epochs that are shorter than a step several may end with it: each step is an epoch to the loop then.
        return max(self.num_samples, self.samples_per_step)

    @property
    def steps(self) -> int:
        """Most steps that an epoch has."""
        return -(-self._size // self.samples_per_step)

    @property
    def count(self) -> int:
        """Epochs in all, the last of which may end early."""
        return self.containing(self.num_steps - 1) + 1

    def start(self, epoch: int) -> int:
        """Steps before an epoch, at most those of the whole training."""
        return min(-(-epoch * self._size // self.samples_per_step), self.num_steps)

    def containing(self, step: int) -> int:
        """The epoch that goes on after so many steps."""
        return step * self.samples_per_step // self._size

    def at(self, step: int) -> float:
        """Epochs that are done after so many steps, a whole number where one ends."""
        if self.samples_per_step > self.num_samples:
            return step * self.samples_per_step / self.num_samples
        epoch = self.containing(step)
        first = -(-epoch * self._size // self.samples_per_step)
        length = -(-(epoch + 1) * self._size // self.samples_per_step) - first
        return epoch + (step - first) / length


class EpochOrder(Sampler[int]):
    """The samples of one epoch each time that it is read, beginning with the one that the training is in.

    Args:
        epochs: The epochs.
        order: Makes the samples from one position of the whole order up to another.
        step: Steps that are done when it is first read.
    """

    def __init__(
        self, epochs: Epochs, order: Callable[[int, int], Iterator[int]], step: Callable[[], int]
    ) -> None:
        self._epochs = epochs
        self._order = order
        self._step = step
        self._next: int | None = None

    def __len__(self) -> int:
        return self._epochs.num_steps * self._epochs.samples_per_step

    def __iter__(self) -> Iterator[int]:
        epoch = self._epochs.containing(self._step()) if self._next is None else self._next
        self._next = epoch + 1
        first = self._epochs.start(epoch) * self._epochs.samples_per_step
        return self._order(first, self._epochs.start(epoch + 1) * self._epochs.samples_per_step)


class EpochCount(TrainerCallback):
    """Puts the true epoch into the state, which upstream takes to be equally long."""

    def __init__(self, epochs: Callable[[], Epochs]) -> None:
        self._epochs = epochs

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Correct `state.epoch` before anyone reads it."""
        state.epoch = self._epochs().at(state.global_step)

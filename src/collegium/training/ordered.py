"""A trainer in which the order of blocks is a function of seed, epoch and position, and nothing else.

So a resumed run, with any number of processes, sees what the uninterrupted one would have seen. Upstream draws a
permutation for each epoch from a generator, and skips what was seen.
"""

import math
from collections.abc import Iterator
from typing import Any, cast

from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import TrainingArguments

from collegium.data.blocks import PackedBlocks
from collegium.data.order import StatelessOrder
from collegium.evaluation.domain_mixing import DomainMixing
from collegium.training.checkpointed import CheckpointedTrainer
from collegium.training.epochs import EpochOrder, Epochs
from collegium.training.loader_workers import sheltered


class OrderedTrainer(CheckpointedTrainer):
    """Takes the blocks of each epoch in a stateless order, or domains in proportions that change in training."""

    mixing: DomainMixing | None = None
    _finds_length = False
    """Steps follow from epochs, and again if the batch size is found while training."""

    def settle_length(self) -> None:
        """Put the number of steps into the arguments, where resuming and schedules read it."""
        self._finds_length = self.args.max_steps <= 0 and self.args.auto_find_batch_size
        if self.train_dataset is not None:
            self.args.max_steps = self.epochs.num_steps

    @property
    def epochs(self) -> Epochs:
        """Passes over the training blocks, in steps."""
        num_samples = len(cast(PackedBlocks, self.train_dataset))
        num_steps = self.args.max_steps
        if num_steps <= 0 or self._finds_length:
            num_steps = math.ceil(self.args.num_train_epochs * num_samples / self._samples_per_step)
        return Epochs(num_samples, self._samples_per_step, num_steps)

    @property
    def _samples_per_step(self) -> int:
        processes: int = self.accelerator.num_processes
        # Not the arguments' batch size, which `auto_find_batch_size` leaves as it was.
        return self._train_batch_size * self.args.gradient_accumulation_steps * processes

    def set_initial_training_values(  # type: ignore[override]
        self, args: TrainingArguments, dataloader: DataLoader[Any]
    ) -> tuple[int, ...]:
        """Numbers of epochs, steps and samples; see upstream, and `epochs` for how they differ."""
        epochs = self.epochs
        samples = epochs.num_steps * epochs.samples_per_step
        micro_batches = epochs.steps * args.gradient_accumulation_steps
        sizes = (epochs.num_samples, samples, epochs.samples_per_step)
        return (epochs.count, epochs.steps, *sizes, micro_batches, epochs.num_steps)

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Any,
    ) -> tuple[int, int]:
        """Epochs that are done, and micro-batches of the next one; epochs need not be equally long here."""
        super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        epochs = self.epochs
        done = self.state.global_step
        if done >= epochs.num_steps:
            return num_train_epochs, 0
        epoch = epochs.containing(done)
        return epoch, (done - epochs.start(epoch)) * self.args.gradient_accumulation_steps

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches; workers that read them ahead outlive signals to the process group."""
        return sheltered(super().get_train_dataloader())

    def _get_train_sampler(self, train_dataset: Dataset[Any] | None = None) -> Sampler[int]:
        """An order that is stateless: a function of seed, epoch and position."""
        return EpochOrder(self.epochs, self._samples, lambda: self.state.global_step)

    def _samples(self, start: int, stop: int) -> Iterator[int]:
        """Samples at these positions of the whole order."""
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        if self.mixing is not None:
            size = self._samples_per_step
            return iter(self.mixing.order(samples_per_step=size, seed=seed, total=stop, start=start))
        shuffled = self.args.train_sampling_strategy != "sequential"
        num_samples = self.epochs.num_samples
        return iter(StatelessOrder(num_samples, seed=seed, total=stop, start=start, shuffled=shuffled))

    def stateful(self) -> dict[str, Any]:
        """Also the proportions of domains."""
        return {**super().stateful(), "mixing": self.mixing}

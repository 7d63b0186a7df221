"""Mixing of domains by discrepancy: the text that is set aside for it, and the steps at which it measures."""

import math
from typing import TYPE_CHECKING, Any

from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from collegium.assembly.objective import build_rule
from collegium.base.errors import DataError, RecipeError
from collegium.evaluation.domain_mixing import DomainMixing, set_aside
from collegium.evaluation.language_modeling import HeldOut
from collegium.training.chunk_size import default_chunk_size
from collegium.training.measurement import measure_student
from collegium.training.trainer import DistillationTrainer


if TYPE_CHECKING:
    from collegium.assembly.run import Run


def build_mixing(run: "Run") -> DomainMixing | None:
    """Blocks that are set aside and how domains are mixed by them; None for text as it comes.

    Raises:
        RecipeError: there is no teacher to compare the student with.
        DataError: a domain has too little text.
    """
    recipe = run.recipe
    section = recipe.data.mixing
    if section.kind == "natural":
        return None
    if not run.teachers:
        raise RecipeError("data.mixing: ddk compares the student with teachers: add some, or set it to natural")
    try:
        trained, blocks = set_aside(run.text.train, section.blocks)
    except ValueError as error:
        raise DataError(f"data.mixing: {error}") from error
    held_out = HeldOut(
        blocks,
        run.collator,
        batch_size=recipe.evaluation.batch_size,
        teachers=run.teachers,
        device=run.device,
        chunk_size=default_chunk_size(run.vocab_size, run.device),
    )
    rule = build_rule(recipe)
    return DomainMixing(
        trained, held_out, rule, every=section.every, alpha=section.alpha, max_ratio=section.max_ratio
    )


class Remix(TrainerCallback):
    """Measures the student before each round, at the same steps whether or not the run was interrupted."""

    def __init__(self, trainer: DistillationTrainer, mixing: DomainMixing) -> None:
        self._trainer = trainer
        self._mixing = mixing

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Proportions of the first round."""
        self._remix(args, state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Proportions of the next round, if a loader may soon ask for them."""
        self._remix(args, state)

    def _remix(self, args: TrainingArguments, state: TrainerState) -> None:
        logs = self._mixing.remix(
            state.global_step,
            lambda held_out: measure_student(self._trainer.distillation_model, held_out),
            steps_ahead=steps_ahead(args),
        )
        if logs:
            self._mixing.rounds[:] = broadcast_object_list([self._mixing.rounds])[0]  # alike to the last bit
            self._trainer.log(logs)


def steps_ahead(args: TrainingArguments) -> int:
    """Optimizer steps that a loader may have read before they are done.

    accelerate holds one micro-batch back to know the last one; each worker has two in hand.
    """
    micro_batches = 2 + args.dataloader_num_workers * (args.dataloader_prefetch_factor or 2)
    return math.ceil(micro_batches / args.gradient_accumulation_steps)

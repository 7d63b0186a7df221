"""The student's loop: `transformers.Trainer`, with what it gets wrong for distillation fixed.

Fixed: the divisor is ours and global (one count for all micro-batches and ranks of a step); the order
of blocks is a function of (seed, epoch, position), so that a resumed run sees what an uninterrupted one
would have seen; checkpoints are whole or absent; a gradient that is not finite stops the run before the
update. Trackers, callbacks, PEFT and accelerate come with `Trainer`. The private methods that are replaced for
this are listed in `overrides`, each with its reason.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_utils import EvalPrediction, TrainOutput

from collegium.alignment.tokenizer_match import vocab_size_of
from collegium.base.errors import NumericError, RecipeError, TeacherError
from collegium.base.terminal import say
from collegium.data.blocks import PackedBlocks
from collegium.data.collate import BlockCollator, padding_id
from collegium.evaluation.domain_mixing import DomainMixing
from collegium.evaluation.language_modeling import HeldOut
from collegium.models.pretrained import causal_lm_of
from collegium.report import metric_names as names
from collegium.signals.contracts import Batch, ItemCounts, predicted_positions
from collegium.signals.metrics import MeanAccumulator
from collegium.teachers.collect import Given, as_teachers, limit_inner_states, models_of, named, reading_ahead
from collegium.training.arguments import own_arguments
from collegium.training.checkpoint import TrainingState
from collegium.training.checkpoint_files import read_json
from collegium.training.chunk_size import default_chunk_size
from collegium.training.epochs import EpochCount
from collegium.training.given import (
    given_blocks,
    given_objective,
    given_student,
    given_tokenizer,
    largest_batch,
    packed,
)
from collegium.training.measurement import evaluation_logs, measure_student, predictions
from collegium.training.model import DistillationModel
from collegium.training.objective import Objective
from collegium.training.on_policy import OnPolicy
from collegium.training.ordered import OrderedTrainer
from collegium.training.origin import facts_of
from collegium.training.publication import compared_blocks, publish
from collegium.training.teacher_watch import TeacherWatch
from collegium.training.text_count import NAME, TextCount
from collegium.training.trainable import require_trainable


MEANS = "metrics"
"""Of the document of a checkpoint with sums of metrics since the last log line."""


class DistillationTrainer(OrderedTrainer):
    """Trains a student from any number of teachers.

    Args:
        model: The student, or its hub id or folder.
        teachers: Teachers in a row or by name; models, hub ids and folders become local teachers.
        objective: The loss; by default half fused forward KL, half cross-entropy.
        args: As for `transformers.Trainer`.
        data_collator: By default a `BlockCollator`.
        train_dataset: Packed blocks, or rows with `text` or `input_ids`, which are packed.
        eval_dataset: The same, or a dict of them by domain.
        processing_class: The tokenizer; by default the student's.
        peft_config: Train adapters of this kind instead of the student's weights.
        callbacks: As for `transformers.Trainer`.
        optimizers: As for `transformers.Trainer`.
        compute_metrics: As for `transformers.Trainer`: figures of your own from logits and labels of the held-out
            blocks, domain by domain; all logits of a domain are held at once.
        preprocess_logits_for_metrics: As for `transformers.Trainer`: makes less of a batch's logits before.
        block_size: Tokens of a block, where text is packed here.
        mixing: Sets proportions of domains; by default blocks come as they are. Something must call its `remix`.
        on_policy: Replaces some blocks of each step by what the student writes itself.

    Raises:
        DataError: a model cannot be loaded, or a teacher has another tokenizer.
        TeacherError: a teacher cannot judge new text, and `on_policy` asks it to.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: PreTrainedModel | PeftModel | str,
        teachers: Mapping[str, Given] | Sequence[Given] = (),
        objective: Objective | None = None,
        args: TrainingArguments | None = None,
        *,
        data_collator: BlockCollator | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: PeftConfig | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        compute_metrics: Callable[[EvalPrediction], dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable[[Tensor, Tensor], Tensor] | None = None,
        block_size: int = 1024,
        mixing: DomainMixing | None = None,
        on_policy: OnPolicy | None = None,
    ) -> None:
        args = own_arguments(args)
        tokenizer = given_tokenizer(model, processing_class)
        vocab_size = vocab_size_of(tokenizer)
        blocks = given_blocks(train_dataset, tokenizer, block_size)
        shape = largest_batch(blocks, args)
        student = given_student(model, vocab_size, peft_config, args.device, shape)
        objective = given_objective(objective, teachers)
        given = named(teachers, objective.teacher_names)
        require_trainable(student, models_of(given))
        self.teachers = as_teachers(given, tokenizer, device=args.device, shape=shape)
        objective.teacher_names = tuple(given)
        limit_inner_states(self.teachers, objective.teacher_layers)
        objective.require_teachers(len(self.teachers))
        args.use_cache = causal_lm_of(student).config.use_cache  # upstream writes it into the configuration
        collator = data_collator or BlockCollator(pad_token_id=padding_id(tokenizer))
        super().__init__(
            model=DistillationModel(student, objective, vocab_size=vocab_size),
            args=args,
            data_collator=reading_ahead(collator, self.teachers),
            train_dataset=blocks,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            callbacks=[EpochCount(lambda: self.epochs), *(callbacks or ())],
            optimizers=optimizers,
            compute_metrics=compute_metrics,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )
        self._require_plain_data_parallelism()
        self.objective: Objective = objective
        self.mixing = mixing
        self.on_policy = on_policy
        if on_policy is not None:
            on_policy.check(self.teachers, objective)
        self._block_size = block_size
        self._collator = collator
        self.held_out = self._held_out(eval_dataset)
        self._text = TextCount(collator.domains, args.device)
        self._means = MeanAccumulator()
        self._step_means = MeanAccumulator()
        self.settle_length()

    def _require_plain_data_parallelism(self) -> None:
        """Refuse what a launcher may have set in the environment."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise RecipeError(
                "FSDP and DeepSpeed are not supported by this trainer yet; use DDP (torchrun, accelerate launch). "
                "DistillationModel itself can be sharded with fully_shard"
            )

    @property
    def distillation_model(self) -> DistillationModel:
        """Student and objective, without any wrapper."""
        return cast(DistillationModel, self.accelerator.unwrap_model(self.model))

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: DataLoader[Any], resume_from_checkpoint: str | None
    ) -> tuple[nn.Module, DataLoader[Any]]:
        """Wrap the model; callbacks are handed the student in it."""
        prepared: tuple[nn.Module, DataLoader[Any]] = super()._prepare_for_training(  # type: ignore[no-untyped-call]
            max_steps, train_dataloader, resume_from_checkpoint
        )
        self.callback_handler.model = self.distillation_model.student
        return prepared

    @cached_property
    def _watch(self) -> TeacherWatch:
        return TeacherWatch([teacher.name for teacher in self.teachers], self.distillation_model.vocab_size)

    # One step.

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The micro-batches of a step with the student's own text in them, and their counts."""
        self.objective.set_progress(self.state.global_step / max(1, self.state.max_steps))
        samples, counts = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._text.add(samples)
        if self.on_policy is None or not samples:
            return samples, counts
        with self.accelerator.autocast():
            samples, metrics = self.on_policy.prepare(
                samples,
                self.distillation_model,
                self.teachers,
                step=self.state.global_step,
                add_up=lambda own: self.accelerator.reduce(own, reduction="sum"),
            )
        self._means.add(metrics)
        return samples, self._get_num_items_in_batch(samples, device)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: ItemCounts | None = None,  # type: ignore[override]
    ) -> Any:
        """Ask the teachers, then the wrapped model; its loss is already divided by the global count."""
        batch = Batch.from_inputs(inputs)
        positions = predicted_positions(batch)
        counts = num_items_in_batch or self._get_num_items_in_batch([inputs], self.args.device)
        need = self.objective.need
        outputs = [teacher.score(batch, positions, need=need) for teacher in self.teachers] if need else []
        result = model(batch, positions, outputs, counts)
        self._means.add(result.metrics)
        watched = self.objective.watches
        if watched:
            self._step_means.add({name: mean for name, mean in result.metrics.items() if name in watched})
        loss = result.loss * self.accelerator.num_processes  # DDP and FSDP average over ranks
        return (loss, result) if return_outputs else loss

    def _get_num_items_in_batch(  # type: ignore[override]
        self, batch_samples: list[Any], device: torch.device
    ) -> ItemCounts:
        """Predicted and text positions of a whole optimizer step, over all ranks."""
        batches = [Batch.from_inputs(inputs) for inputs in batch_samples]
        predicted = sum(len(predicted_positions(batch)) for batch in batches)
        attended = sum(int(batch.attention_mask.sum()) for batch in batches)
        counts = self.accelerator.reduce(torch.tensor([predicted, attended], device=device), reduction="sum")
        return ItemCounts(*counts.unbind())

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The last call before the update: stop here if the gradient is not finite."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[no-untyped-call]
        if self.accelerator.scaler is None and norm is not None and not math.isfinite(float(norm)):
            raise NumericError(
                f"step {self.state.global_step + 1}: the gradient is not finite ({float(norm)}); the student "
                "was not changed; lower training.learning_rate or raise warmup_steps, and start again"
            )
        if self.objective.watches:
            self.objective.after_step(self._step_means.pop())
        return norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the objective's metrics to a training log line; stop on a teacher that is bad too often."""
        if names.LOSS in logs:
            means = self._means.pop()
            read = self._text.logged()
            logs |= means | read
            self._require_reliable_teachers(means)
            for warning in self._watch.add(means, read):
                say(f"warning: {warning}")
        elif names.TRAIN_RUNTIME in logs:  # the line at the end
            logs |= self._text.logged(by_domain=True)
        super().log(logs, start_time)

    def _require_reliable_teachers(self, means: Mapping[str, float]) -> None:
        for name, share in self.objective.unreliable_teachers(means).items():
            raise TeacherError(
                f"teacher {name!r}: logits hold NaN or Inf at {share:.1%} of positions, "
                f"objective.max_invalid_fraction allows {self.objective.max_invalid_fraction:.1%}; "
                "load it in float32, or leave it out"
            )

    # Measurement.

    def _held_out(self, datasets: Any) -> HeldOut | None:
        if datasets is None or isinstance(datasets, HeldOut):
            return datasets
        by_domain = datasets if isinstance(datasets, Mapping) else {"text": datasets}
        return HeldOut(
            {name: self._blocks(rows, "eval_dataset") for name, rows in by_domain.items()},
            self._collator,
            batch_size=self.args.per_device_eval_batch_size,
            teachers=self.teachers,
            device=self.args.device,
            chunk_size=default_chunk_size(self.distillation_model.vocab_size, self.args.device),
        )

    def _blocks(self, dataset: Any, name: str) -> PackedBlocks:
        tokenizer = cast(PreTrainedTokenizerBase, self.processing_class)
        return packed(dataset, tokenizer, self._block_size, name=name)

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """NLL, KL and agreement of the student per domain, and their mean over domains; then your own metrics."""
        held_out = self.held_out if eval_dataset is None else self._held_out(eval_dataset)
        if held_out is None:
            raise ValueError("there is nothing to evaluate on: give eval_dataset")
        logs = evaluation_logs(measure_student(self.distillation_model, held_out), metric_key_prefix)
        if self.compute_metrics is not None:
            logs |= self._own_metrics(held_out, ignore_keys, metric_key_prefix)
        self.log(logs)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, logs)
        return logs

    def _own_metrics(self, held_out: HeldOut, ignore_keys: list[str] | None, prefix: str) -> dict[str, float]:
        """Figures of `compute_metrics`, by domain where there are several."""
        logs: dict[str, float] = {}
        for name, domain in held_out.domains.items():
            own = prefix if len(held_out.domains) == 1 else f"{prefix}_{name}"
            loader = self.get_eval_dataloader(cast(Dataset[Any], domain.rows))
            output = self.evaluation_loop(loader, "Evaluation", ignore_keys=ignore_keys, metric_key_prefix=own)
            logs |= {key: value for key, value in (output.metrics or {}).items() if key != f"{own}_loss"}
        return logs

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader[Any]:
        """Batches of rows that `predict` is given, packed into blocks."""
        return super().get_test_dataloader(self._blocks(test_dataset, "test_dataset"))

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Loss, logits and labels of a batch, for `predict` and `compute_metrics`."""
        batch = Batch.from_inputs(self._prepare_inputs(inputs))
        return predictions(self.distillation_model, batch, loss_only=prediction_loss_only)

    # The whole training.

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train; `resume_from_checkpoint=True` goes on from the newest whole checkpoint, if there is one."""
        output = super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        self._require_reliable_teachers(self._means.pop())  # of the steps after the last log line
        return output

    def facts(self) -> dict[str, Any]:
        """Student, tokenizer, teachers, text, and the settings of what makes the loss of them."""
        text = cast(PackedBlocks | None, self.train_dataset)
        return facts_of(
            self.distillation_model.student,
            cast(PreTrainedTokenizerBase, self.processing_class),
            self.teachers,
            None if text is None else text.digest,
            {
                "objective": self.objective,
                "batches": self._collator,
                "on_policy": self.on_policy,
                "mixing": self._mixing_settings(),
            },
        )

    def _mixing_settings(self) -> dict[str, Any] | None:
        """With what decides how far loaders are ahead, and so how early the next proportions are measured."""
        if self.mixing is None:
            return None
        ahead = ("gradient_accumulation_steps", "dataloader_num_workers", "dataloader_prefetch_factor")
        return {**self.mixing.settings, **{name: getattr(self.args, name) for name in ahead}}

    def training_state(self) -> TrainingState:
        """Also the count of the text, and metrics that are yet to be logged."""
        state = super().training_state()
        own = {NAME: self._text.document(), MEANS: self._means.document()}
        return dataclasses.replace(state, documents={**state.documents, **own})

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self._text.load(Path(checkpoint))
            if (Path(checkpoint) / f"{MEANS}.json").exists():  # those of earlier versions have none
                self._means.load(read_json(Path(checkpoint), MEANS), self.args.device)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Write the student as a plain Hugging Face folder that was read back; see `publish`."""
        folder = Path(output_dir or cast(str, self.args.output_dir))
        tokenizer = cast(PreTrainedTokenizerBase, self.processing_class)
        blocks = compared_blocks(self.held_out, cast(PackedBlocks | None, self.train_dataset), self._collator)
        publish(self.distillation_model.student, tokenizer, folder, blocks=blocks)

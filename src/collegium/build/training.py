"""Measurement and the training loop."""

from collections.abc import Sequence
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback, TrainingArguments

from collegium.build.ingredients import Ingredients
from collegium.build.objective import build_objective
from collegium.contracts import Teacher
from collegium.evaluation.language_modeling import HeldOut
from collegium.objective import default_chunk_size
from collegium.pretrained import resolve_dtype
from collegium.recipe import Recipe
from collegium.trainer import DistillationTrainer


def build_held_out(
    recipe: Recipe, ingredients: Ingredients, teachers: Sequence[Teacher], *, device: torch.device
) -> HeldOut:
    """Held-out text, with the teachers' view of it."""
    return HeldOut(
        ingredients.text.held_out,
        ingredients.collator,
        batch_size=recipe.evaluation.batch_size,
        max_blocks=recipe.evaluation.max_blocks,
        teachers=teachers,
        device=device,
        chunk_size=default_chunk_size(ingredients.vocab_size),
    )


def build_training_arguments(recipe: Recipe, run_dir: Path) -> TrainingArguments:
    """Arguments of `transformers.Trainer`."""
    training = recipe.training
    dtype = resolve_dtype(training.precision)
    return TrainingArguments(
        output_dir=str(run_dir / "checkpoints"),
        max_steps=training.max_steps or -1,
        num_train_epochs=training.num_epochs or 1,
        per_device_train_batch_size=training.batch_size,
        per_device_eval_batch_size=recipe.evaluation.batch_size,
        gradient_accumulation_steps=training.gradient_accumulation,
        learning_rate=training.learning_rate,
        lr_scheduler_type=training.lr_scheduler,
        warmup_steps=training.warmup_steps,
        weight_decay=training.weight_decay,
        adam_beta2=training.adam_beta2,
        max_grad_norm=training.max_grad_norm,
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        save_strategy="steps",
        save_steps=training.save_every or 10**9,
        save_total_limit=training.keep_checkpoints,
        eval_strategy="steps" if training.evaluate_every else "no",
        eval_steps=training.evaluate_every,
        logging_steps=training.log_every,
        logging_first_step=True,
        dataloader_num_workers=training.num_workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to=list(training.report_to),
        seed=recipe.seed,
        data_seed=recipe.seed,
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    )


def build_trainer(
    recipe: Recipe,
    ingredients: Ingredients,
    student: PreTrainedModel | PeftModel,
    teachers: Sequence[Teacher],
    *,
    run_dir: Path,
    held_out: HeldOut | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> DistillationTrainer:
    """The loop over prepared text."""
    torch.manual_seed(recipe.seed)  # projections are drawn here
    trainer = DistillationTrainer(
        student,
        teachers=teachers,
        objective=build_objective(recipe, student, teachers),
        args=build_training_arguments(recipe, run_dir),
        data_collator=ingredients.collator,
        train_dataset=ingredients.text.train,
        eval_dataset=held_out,
        processing_class=ingredients.tokenizer,
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)  # it prints every log line as a dict
    if recipe.training.gradient_checkpointing:
        trainer.distillation_model.gradient_checkpointing_enable()
    return trainer

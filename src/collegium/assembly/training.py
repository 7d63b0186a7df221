"""Measurement and the training loop."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainingArguments,
)
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)

from collegium.assembly.ingredients import Ingredients, adds_bos
from collegium.assembly.mixing import Remix, build_mixing
from collegium.assembly.objective import build_objective
from collegium.base.errors import RecipeError
from collegium.data.collate import padding_id
from collegium.evaluation.language_modeling import HeldOut
from collegium.models.pretrained import resolve_dtype
from collegium.recipe.recipe import Recipe
from collegium.signals.contracts import Teacher
from collegium.training.objective import default_chunk_size
from collegium.training.on_policy import OnPolicy, PolicyGradient
from collegium.training.rollout import Sampling
from collegium.training.trainer import DistillationTrainer


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
        chunk_size=default_chunk_size(ingredients.vocab_size, device),
    )


def describe_held_out(recipe: Recipe, ingredients: Ingredients) -> dict[str, Any]:
    """How held-out text is read, without which a perplexity says nothing."""
    add_bos, add_eos = recipe.data.add_bos, recipe.data.add_eos
    begins = adds_bos(ingredients.tokenizer) if add_bos == "auto" else add_bos
    return {
        "context_length": recipe.data.block_size,
        "stride": recipe.data.block_size,  # blocks do not overlap
        "bos": "begins each document" if begins else "none",
        "eos": "ends each document" if add_eos else "none",
        "documents": "kept apart; one that does not fit goes on in the next block without its context",
        "not_predicted": "the first token of a document, and of its part in each further block",
    }


def build_training_arguments(recipe: Recipe, run_dir: Path) -> TrainingArguments:
    """Arguments of `transformers.Trainer`.

    Raises:
        RecipeError: the recipe asks for what this machine does not have.
    """
    training = recipe.training
    dtype = resolve_dtype(training.precision)
    if dtype == torch.float16 and not torch.cuda.is_available():
        raise RecipeError("training.precision: float16 needs a CUDA device; use bfloat16, float32 or auto here")
    _check_trackers(training.report_to)
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
        save_steps=training.save_every,
        save_total_limit=training.keep_checkpoints,
        eval_strategy="steps" if training.evaluate_every else "no",
        eval_steps=training.evaluate_every,
        logging_steps=training.log_every,
        logging_first_step=True,
        dataloader_num_workers=_num_workers(recipe),
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to=list(training.report_to),
        seed=recipe.seed,
        data_seed=recipe.seed,
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    )


def _num_workers(recipe: Recipe) -> int:
    """Reading a block of a cache takes a millisecond, which a step on a CPU does not notice."""
    if recipe.training.num_workers is not None:
        return recipe.training.num_workers
    reads = any(section.kind == "cached" or section.cached for section in recipe.teachers)
    return 2 if reads and torch.cuda.is_available() else 0


def _check_trackers(names: Sequence[str]) -> None:
    known, installed = sorted(INTEGRATION_TO_CALLBACK), get_available_reporting_integrations()
    for name in names:
        if name not in known:
            raise RecipeError(f"training.report_to: {name!r} is no tracker; known are {', '.join(known)}")
        if name not in installed:
            raise RecipeError(f"training.report_to: {name!r} is not installed here; install it, or leave it out")


def build_on_policy(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> OnPolicy | None:
    """Rollouts, if the recipe has some."""
    section = recipe.on_policy
    if section is None:
        return None
    eos: Any = tokenizer.eos_token_id if section.stop_at_eos else None
    sampling = Sampling(
        fraction=section.fraction,
        prompt_length=section.prompt_length,
        max_new_tokens=section.max_new_tokens,
        temperature=section.temperature,
        top_p=section.top_p,
        teacher_share=section.teacher_share,
        stop_token_id=eos,
        pad_token_id=padding_id(tokenizer),
        seed=recipe.seed,
    )
    if section.loss == "divergence":
        return OnPolicy(sampling)
    policy = PolicyGradient(
        judge=section.judge,
        gamma=section.gamma,
        reward_scale=section.reward_scale,
        reward_clip=section.reward_clip,
        ratio_clip=section.ratio_clip,
        single_step_weight=section.single_step_weight,
    )
    return OnPolicy(sampling, policy)


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
    args = build_training_arguments(recipe, run_dir)
    mixing = build_mixing(recipe, ingredients, teachers, device=args.device)
    trainer = DistillationTrainer(
        student,
        teachers=teachers,
        objective=build_objective(recipe, student, teachers, ingredients.tokenizer),
        args=args,
        data_collator=ingredients.collator_for(learn_prompts=recipe.training.learn_prompts),
        train_dataset=ingredients.text.train,
        eval_dataset=held_out,
        processing_class=ingredients.tokenizer,
        callbacks=list(callbacks),
        mixing=mixing,
        on_policy=build_on_policy(recipe, ingredients.tokenizer),
    )
    if mixing is not None:
        trainer.add_callback(Remix(trainer, mixing))
    trainer.remove_callback(PrinterCallback)  # it prints every log line as a dict
    if recipe.training.gradient_checkpointing:
        trainer.distillation_model.activation_checkpointing_enable()
    return trainer

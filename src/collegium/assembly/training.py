"""Held-out text, the trainer, and the arguments that it takes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerCallback, TrainingArguments
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)

from collegium.assembly.mixing import Remix, build_mixing
from collegium.assembly.objective import build_objective
from collegium.assembly.tokenizers import begins_with_bos
from collegium.assembly.trackers import keep_trackers_in
from collegium.base.errors import RecipeError
from collegium.base.progress import Phase
from collegium.data.collate import padding_id
from collegium.evaluation.language_modeling import HeldOut
from collegium.models.pretrained import resolve_dtype
from collegium.recipe.recipe import Recipe
from collegium.report.evaluation import HeldOutText
from collegium.training.chunk_size import default_chunk_size
from collegium.training.on_policy import OnPolicy, PolicyGradient
from collegium.training.rollout import Sampling
from collegium.training.trainer import DistillationTrainer


if TYPE_CHECKING:
    from collegium.assembly.run import Run


def build_held_out(run: "Run") -> HeldOut:
    """Held-out text, with the teachers' view of it."""
    section = run.recipe.evaluation
    return HeldOut(
        run.text.held_out,
        run.collator,
        batch_size=section.batch_size,
        max_blocks=section.max_blocks,
        teachers=run.teachers,
        device=run.device,
        chunk_size=default_chunk_size(run.vocab_size, run.device),
    )


def describe_held_out(run: "Run", predicted_tokens: int) -> HeldOutText:
    """Say how held-out text is read, without which a perplexity says nothing."""
    data = run.recipe.data
    return HeldOutText(
        context_length=data.block_size,
        stride=data.block_size,  # blocks do not overlap
        bos="begins each document" if begins_with_bos(data.add_bos, run.tokenizer) else "none",
        eos="ends each document" if data.add_eos else "none",
        documents="kept apart; one that does not fit goes on in the next block without its context",
        not_predicted="the first token of a document, and of its part in each further block",
        predicted_tokens=predicted_tokens,
    )


def build_training_arguments(run: "Run") -> TrainingArguments:
    """Arguments of `transformers.Trainer`.

    Raises:
        RecipeError: the run has no folder, or the recipe asks for what this machine does not have.
    """
    recipe = run.recipe
    training = recipe.training
    if run.folder is None:
        raise RecipeError(f"a run is trained in a folder, and this one has none: give folder={recipe.run_dir}")
    dtype = resolve_dtype(training.precision)
    if dtype == torch.float16 and not torch.cuda.is_available():
        raise RecipeError("training.precision: float16 needs a CUDA device; use bfloat16, float32 or auto here")
    _check_trackers(training.report_to)
    arguments = TrainingArguments(
        output_dir=str(run.folder / "checkpoints"),
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
        use_cpu=run.device.type == "cpu",
    )
    if arguments.device.type != run.device.type or run.device.index not in (None, arguments.device.index):
        raise RecipeError(f"training runs on {arguments.device} in this process, and the run is on {run.device}")
    return arguments


def _num_workers(recipe: Recipe) -> int:
    """Reading a block of a cache takes a millisecond, which a step on a CPU does not notice."""
    if recipe.training.num_workers is not None:
        return recipe.training.num_workers
    reads = any(section.is_cached for section in recipe.teachers)
    return 2 if reads and torch.cuda.is_available() else 0


def _check_trackers(names: Sequence[str]) -> None:
    known = sorted(INTEGRATION_TO_CALLBACK)
    installed = get_available_reporting_integrations()
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


def build_trainer(run: "Run", callbacks: Sequence[TrainerCallback] = ()) -> DistillationTrainer:
    """Build the loop over prepared text."""
    run.make("teachers", "held_out", "student")  # before the seed, since any of them may draw numbers
    with Phase("preparing the training"):
        return _built(run, callbacks)


def _built(run: "Run", callbacks: Sequence[TrainerCallback]) -> DistillationTrainer:
    recipe = run.recipe
    torch.manual_seed(recipe.seed)  # projections are drawn here
    args = build_training_arguments(run)
    mixing = build_mixing(run)
    trainer = DistillationTrainer(
        run.student,
        teachers=run.teachers,
        objective=build_objective(run),
        args=args,
        data_collator=run.corpus.collator_for(learn_prompts=recipe.training.learn_prompts),
        train_dataset=run.text.train,
        eval_dataset=run.held_out,
        processing_class=run.tokenizer,
        callbacks=list(callbacks),
        mixing=mixing,
        on_policy=build_on_policy(recipe, run.tokenizer),
    )
    if mixing is not None:
        trainer.add_callback(Remix(trainer, mixing))
    assert run.folder is not None, "the arguments need one"
    keep_trackers_in(trainer, run.folder)
    trainer.remove_callback(PrinterCallback)  # it prints every log line as a dict
    if recipe.training.gradient_checkpointing:
        trainer.distillation_model.activation_checkpointing_enable()
    return trainer

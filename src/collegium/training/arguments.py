"""Arguments of `transformers.TrainingArguments`: those that work as in `transformers.Trainer`, and those refused.

A field that would be read by nobody, or do something else here, is refused by its name when the trainer is made,
with what to do instead. `tests/training/test_arguments.py` holds both tables to the fields of the release that is
installed, so that a new field must be put into one of them; docs/arguments.md shows them.
"""

import copy
import dataclasses
from collections.abc import Iterator, Mapping

from transformers import TrainingArguments
from transformers.trainer_pt_utils import AcceleratorConfig

from collegium.base.errors import RecipeError


WORKS: Mapping[str, str] = {
    "output_dir": "folder of the checkpoints",
    "per_device_train_batch_size": "blocks of a micro-batch",
    "num_train_epochs": "a step that an epoch does not fill takes its last blocks from the next one",
    "max_steps": "",
    "learning_rate": "",
    "lr_scheduler_type": "",
    "lr_scheduler_kwargs": "",
    "warmup_steps": "",
    "optim": "but for optimizers that update in backward (`lomo`, `adalomo`, `*_layerwise`) and `schedule_free_*`",
    "optim_args": "",
    "optim_target_modules": "",
    "weight_decay": "",
    "adam_beta1": "",
    "adam_beta2": "",
    "adam_epsilon": "",
    "gradient_accumulation_steps": "",
    "max_grad_norm": "",
    "bf16": "",
    "fp16": "",
    "tf32": "",
    "activation_checkpointing": "of the student",
    "activation_checkpointing_kwargs": "",
    "gradient_checkpointing": "of the student",
    "gradient_checkpointing_kwargs": "",
    "neftune_noise_alpha": "noise on the student's embeddings; teachers read the text as it is",
    "torch_empty_cache_steps": "",
    "auto_find_batch_size": "",
    "logging_strategy": "",
    "logging_steps": "",
    "logging_first_step": "",
    "log_on_each_node": "",
    "logging_nan_inf_filter": "a loss that is not finite stops the run, so there is nothing to filter",
    "include_num_input_tokens_seen": "",
    "log_level": "",
    "log_level_replica": "",
    "disable_tqdm": "",
    "report_to": "",
    "run_name": "",
    "project": "",
    "trackio_space_id": "",
    "trackio_bucket_id": "",
    "trackio_static_space_id": "",
    "eval_strategy": "",
    "eval_steps": "",
    "eval_delay": "",
    "per_device_eval_batch_size": "",
    "prediction_loss_only": "in `predict` and `compute_metrics`",
    "eval_on_start": "",
    "eval_do_concat_batches": "in `predict` and `compute_metrics`",
    "eval_use_gather_object": "in `predict` and `compute_metrics`",
    "eval_accumulation_steps": "in `predict` and `compute_metrics`",
    "include_for_metrics": "in `predict` and `compute_metrics`",
    "batch_eval_metrics": "in `predict` and `compute_metrics`",
    "save_strategy": "",
    "save_steps": "",
    "save_total_limit": "",
    "load_best_model_at_end": "",
    "metric_for_best_model": "",
    "greater_is_better": "",
    "restore_callback_states_from_checkpoint": "",
    "full_determinism": "",
    "seed": "",
    "data_seed": "",
    "use_cpu": "",
    "accelerator_config": "its `non_blocking`, `use_configured_state` and `gradient_accumulation_kwargs`",
    "dataloader_num_workers": "",
    "dataloader_pin_memory": "",
    "dataloader_persistent_workers": "",
    "dataloader_prefetch_factor": "",
    "dataloader_multiprocessing_context": "",
    "remove_unused_columns": "columns that nothing reads are left out in any case",
    "train_sampling_strategy": "`random` and `sequential`",
    "ddp_find_unused_parameters": "false if not given, as each trained parameter is used in each step",
    "ddp_bucket_cap_mb": "",
    "ddp_broadcast_buffers": "",
    "ddp_static_graph": "",
    "ddp_backend": "",
    "ddp_timeout": "",
    "debug": "`underflow_overflow`",
    "skip_memory_metrics": "",
    "hub_token": "of the method `push_to_hub`",
    "hub_private_repo": "of the method `push_to_hub`",
    "hub_model_id": "of the method `push_to_hub`",
    "hub_revision": "of the method `push_to_hub`",
    "do_train": "read by scripts alone",
    "do_eval": "read by scripts alone",
    "do_predict": "read by scripts alone",
    "resume_from_checkpoint": "read by scripts alone; `train(resume_from_checkpoint=True)` resumes",
    "local_rank": "set by launchers",
}
"""Fields that work as in `transformers.Trainer`, with what is to be said of them."""

REFUSED: Mapping[str, str] = {
    "average_tokens_across_devices": "the loss is always divided by the count over all devices; leave it on",
    "label_smoothing_factor": "give Objective(label_smoothing=...), which smooths the cross-entropy to the text",
    "bf16_full_eval": "the student is measured in the type it is trained in; leave it off",
    "fp16_full_eval": "the student is measured in the type it is trained in; leave it off",
    "torch_compile": "the loss is compiled already where there is a compiler; leave it off",
    "torch_compile_backend": "the loss is compiled already where there is a compiler; leave it out",
    "torch_compile_mode": "the loss is compiled already where there is a compiler; leave it out",
    "use_liger_kernel": "its kernels would replace a loss that is not used here; leave it off",
    "liger_kernel_config": "liger's kernels are not used here; leave it out",
    "use_cache": "no cache of keys and values is made in training; leave it off",
    "save_only_model": "checkpoints are for resuming; save_model(folder) writes the student alone",
    "save_on_each_node": "only the first process holds what a checkpoint is made of; use a shared folder",
    "enable_jit_checkpoint": "add collegium.training.callbacks.StopOnSignal, which ends with a checkpoint",
    "push_to_hub": "checkpoints are no model folders; call push_to_hub() after the training, or `collegium push`",
    "hub_strategy": "checkpoints are no model folders; call push_to_hub() after the training, or `collegium push`",
    "hub_always_push": "checkpoints are no model folders; call push_to_hub() after the training",
    "ignore_data_skip": "a resumed run sees what an uninterrupted one would have seen; leave it off",
    "parallelism_config": "only data parallelism (torchrun, accelerate launch) is supported; leave it out",
    "dataloader_drop_last": "no batch is short: the last of an epoch is filled up from the next; leave it off",
    "dataloader_in_order": "the order of blocks is fixed, so that a run can be repeated and resumed; leave it on",
    "label_names": "labels are made from the packed blocks; leave it out",
    "length_column_name": "blocks are packed to one length and not grouped by it; leave it out",
    "fsdp": "FSDP is not supported by this trainer yet; use DDP (torchrun, accelerate launch)",
    "fsdp_config": "FSDP is not supported by this trainer yet; use DDP (torchrun, accelerate launch)",
    "deepspeed": "DeepSpeed is not supported by this trainer yet; use DDP (torchrun, accelerate launch)",
}
"""Fields that must be left at their defaults, with what to do instead."""

_ACCELERATOR = ("non_blocking", "use_configured_state", "gradient_accumulation_kwargs")


def own_arguments(args: TrainingArguments | None) -> TrainingArguments:
    """A copy with what the loss needs; the caller's stays as it is.

    Raises:
        RecipeError: fields are set that do not work here.
    """
    args = copy.copy(args) if args is not None else TrainingArguments(output_dir="collegium-run")
    if lines := [*_refused_fields(args), *_refused_values(args)]:
        raise RecipeError("\n".join(f"TrainingArguments.{line}" for line in lines))
    args.remove_unused_columns = False  # by the collator
    args.logging_nan_inf_filter = False  # which would wait for the device at each step
    if args.ddp_find_unused_parameters is None:
        args.ddp_find_unused_parameters = False  # every trained parameter is used in every step
    args._n_gpu = min(args.n_gpu, 1)  # several devices: one process each, by torchrun or accelerate launch
    return args


def _refused_fields(args: TrainingArguments) -> Iterator[str]:
    for field in dataclasses.fields(TrainingArguments):
        value = getattr(args, field.name)
        if field.name in REFUSED and value != field.default and value is not None:
            yield f"{field.name} is {value!r}, which does not work here: {REFUSED[field.name]}"


def _refused_values(args: TrainingArguments) -> Iterator[str]:
    """Values that do not work of fields that do."""
    if args.train_sampling_strategy not in ("random", "sequential"):
        yield (
            f"train_sampling_strategy is {args.train_sampling_strategy!r}: blocks are packed to one length, so "
            "there is nothing to group; give random or sequential"
        )
    name = str(getattr(args.optim, "value", args.optim))
    if "lomo" in name or "layerwise" in name:
        yield f"optim is {name!r}: it updates in backward, where no bad gradient can be stopped; give another"
    if name.startswith("schedule_free"):
        yield f"optim is {name!r}: the weights it trains are not those to measure and to save; give another"
    if "tpu_metrics_debug" in [str(getattr(option, "value", option)) for option in args.debug]:
        yield "debug is tpu_metrics_debug: there is no training on TPUs here; leave it out"
    given = args.accelerator_config
    for field in dataclasses.fields(AcceleratorConfig):
        value = getattr(given, field.name, field.default)
        if field.name not in _ACCELERATOR and value != field.default:
            yield (
                f"accelerator_config.{field.name} is {value!r}, which does not work here: batches are whole and "
                f"their order is fixed; leave it at {field.default!r}"
            )

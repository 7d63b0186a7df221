"""Names of settings in other programs, and what a recipe calls them.

From transformers' and TRL's arguments, axolotl, LLaMA-Factory and DistillKit. They are looked up when a key is not
known; a name that is near a key of ours in letters, such as `lr` is to nothing, need not be one in meaning.
"""

from collections.abc import Mapping, Sequence


FOREIGN: Mapping[str, str] = {
    "model": "student.model",
    "model_name": "student.model",
    "model_name_or_path": "student.model",
    "pretrained_model_name_or_path": "student.model",
    "base_model": "student.model",
    "student_model": "student.model",
    "student_name_or_path": "student.model",
    "model_revision": "student.revision",
    "tokenizer_name_or_path": "student.tokenizer",
    "tokenizer_name": "student.tokenizer",
    "tokenizer": "student.tokenizer",
    "trust_remote_code": "student.trust_remote_code",
    "torch_dtype": "student.dtype",
    "teacher": "teachers",
    "teacher_model": "teachers.model",
    "teacher_model_name_or_path": "teachers.model",
    "teacher_name_or_path": "teachers.model",
    "adapter": "student.lora",
    "peft": "student.lora",
    "peft_config": "student.lora",
    "use_peft": "student.lora",
    "lora": "student.lora",
    "r": "student.lora.rank",
    "lora_r": "student.lora.rank",
    "lora_rank": "student.lora.rank",
    "lora_alpha": "student.lora.alpha",
    "lora_dropout": "student.lora.dropout",
    "lora_target_modules": "student.lora.target_modules",
    "lora_target": "student.lora.target_modules",
    "target_modules": "student.lora.target_modules",
    "dataset": "data.sources",
    "datasets": "data.sources",
    "train_dataset": "data.sources",
    "train_file": "data.sources.path",
    "data_files": "data.sources.path",
    "data_path": "data.sources.path",
    "dataset_name": "data.sources.dataset",
    "dataset_path": "data.sources.dataset",
    "dataset_config": "data.sources.config",
    "dataset_config_name": "data.sources.config",
    "dataset_split": "data.sources.split",
    "dataset_train_split": "data.sources.split",
    "dataset_text_field": "data.sources.text_column",
    "text_field": "data.sources.text_column",
    "field": "data.sources.text_column",
    "max_samples": "data.sources.max_documents",
    "max_train_samples": "data.sources.max_documents",
    "val_set_size": "data.held_out_documents",
    "test_size": "data.held_out_documents",
    "sequence_len": "data.block_size",
    "sequence_length": "data.block_size",
    "seq_len": "data.block_size",
    "seq_length": "data.block_size",
    "max_seq_length": "data.block_size",
    "max_seq_len": "data.block_size",
    "max_length": "data.block_size",
    "cutoff_len": "data.block_size",
    "context_length": "data.block_size",
    "block_size": "data.block_size",
    "sample_packing": "data.block_size",
    "packing": "data.block_size",
    "dataset_prepared_path": "data.directory",
    "lr": "training.learning_rate",
    "learning_rate": "training.learning_rate",
    "per_device_train_batch_size": "training.batch_size",
    "train_batch_size": "training.batch_size",
    "micro_batch_size": "training.batch_size",
    "batch_size": "training.batch_size",
    "gradient_accumulation_steps": "training.gradient_accumulation",
    "grad_accumulation_steps": "training.gradient_accumulation",
    "num_train_epochs": "training.num_epochs",
    "num_epochs": "training.num_epochs",
    "epochs": "training.num_epochs",
    "max_steps": "training.max_steps",
    "max_train_steps": "training.max_steps",
    "num_train_steps": "training.max_steps",
    "total_steps": "training.max_steps",
    "steps": "training.max_steps",
    "warmup": "training.warmup_steps",
    "warmup_steps": "training.warmup_steps",
    "num_warmup_steps": "training.warmup_steps",
    "warmup_ratio": "training.warmup_steps",
    "lr_scheduler_type": "training.lr_scheduler",
    "lr_scheduler": "training.lr_scheduler",
    "scheduler": "training.lr_scheduler",
    "wd": "training.weight_decay",
    "weight_decay": "training.weight_decay",
    "adam_beta2": "training.adam_beta2",
    "max_grad_norm": "training.max_grad_norm",
    "gradient_clipping": "training.max_grad_norm",
    "grad_clip": "training.max_grad_norm",
    "bf16": "training.precision",
    "fp16": "training.precision",
    "tf32": "training.precision",
    "mixed_precision": "training.precision",
    "dtype": "training.precision",
    "gradient_checkpointing": "training.gradient_checkpointing",
    "activation_checkpointing": "training.gradient_checkpointing",
    "save_steps": "training.save_every",
    "save_strategy": "training.save_every",
    "saves_per_epoch": "training.save_every",
    "save_total_limit": "training.keep_checkpoints",
    "eval_steps": "training.evaluate_every",
    "eval_strategy": "training.evaluate_every",
    "evaluation_strategy": "training.evaluate_every",
    "evals_per_epoch": "training.evaluate_every",
    "logging_steps": "training.log_every",
    "dataloader_num_workers": "training.num_workers",
    "num_workers": "training.num_workers",
    "report_to": "training.report_to",
    "train_on_inputs": "training.learn_prompts",
    "per_device_eval_batch_size": "evaluation.batch_size",
    "eval_batch_size": "evaluation.batch_size",
    "random_seed": "seed",
    "data_seed": "seed",
    "seed": "seed",
    "output_dir": "output_dir",
    "out_dir": "output_dir",
    "output_path": "output_dir",
    "run_name": "name",
    "project_name": "name",
    "loss": "objective.divergence",
    "loss_type": "objective.divergence",
    "loss_functions": "objective.divergence",
    "kl_type": "objective.divergence",
    "alpha": "objective.kd_weight",
    "kd_alpha": "objective.kd_weight",
    "kd_ratio": "objective.kd_weight",
    "kd_ce_alpha": "objective.ce_weight",
    "temperature": "objective.kd_temperature",
    "kd_temperature": "objective.kd_temperature",
    "label_smoothing_factor": "objective.label_smoothing",
    "label_smoothing": "objective.label_smoothing",
    "lmbda": "on_policy.fraction",
    "max_new_tokens": "on_policy.max_new_tokens",
    "max_completion_length": "on_policy.max_new_tokens",
}
"""Our key of a name; that of a list is the key of its items."""

WITHOUT_KEY: Mapping[str, str] = (
    dict.fromkeys(
        ("optim", "optimizer", "optimizer_type", "optimizer_name"),
        "the optimizer is AdamW; `training.learning_rate`, `training.weight_decay` and `training.adam_beta2` set "
        "it",
    )
    | dict.fromkeys(
        ("deepspeed", "fsdp", "fsdp_config", "tensor_parallel_size"),
        "several devices are used by torchrun or accelerate launch, see `collegium train --help`; leave it out",
    )
    | dict.fromkeys(
        ("push_to_hub", "hub_model_id", "hub_strategy", "hub_token"),
        "`collegium push` uploads a finished run; leave it out",
    )
)
"""Names that no key stands for, and what to say of them."""


def known_elsewhere(location: Sequence[object]) -> str | None:
    """The end of the sentence on an unknown key, if other programs have one of this name.

    Args:
        location: Keys and places in lists that lead to it.
    """
    name = str(location[-1]).lower().replace("-", "_")
    if name in WITHOUT_KEY:
        return WITHOUT_KEY[name]
    here = ".".join(str(part) for part in location if not isinstance(part, int))
    key = FOREIGN.get(name)
    return None if key is None or key == here else f"did you mean `{key}`?"

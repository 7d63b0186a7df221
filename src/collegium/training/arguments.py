"""Arguments of `transformers.TrainingArguments`, as distillation takes them."""

import copy

from transformers import TrainingArguments


def own_arguments(args: TrainingArguments | None) -> TrainingArguments:
    """A copy with what the loss needs; the caller's stays as it is."""
    args = copy.copy(args) if args is not None else TrainingArguments(output_dir="collegium-run")
    if args.load_best_model_at_end:
        raise ValueError(
            "load_best_model_at_end is not supported: checkpoints are for resuming; compare evaluations"
        )
    args.remove_unused_columns = False
    args.logging_nan_inf_filter = False
    if args.ddp_find_unused_parameters is None:
        args.ddp_find_unused_parameters = False  # every trained parameter is used in every step
    args._n_gpu = min(args.n_gpu, 1)  # several devices: one process each, by torchrun or accelerate launch
    return args

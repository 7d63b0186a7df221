"""What users of the Python interface give to a trainer: a student and rows, as objects or by name."""

import copy
from typing import Any, cast

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from collegium.base.errors import DataError, RecipeError
from collegium.data.blocks import PackedBlocks, pack_documents
from collegium.data.given_rows import rows_of
from collegium.models.merging import require_mergeable
from collegium.models.pretrained import causal_lm_of, load_model, load_tokenizer, place
from collegium.models.probe import FEW, BlockShape, check_model
from collegium.training.objective import Objective


def given_tokenizer(model: Any, tokenizer: PreTrainedTokenizerBase | None) -> PreTrainedTokenizerBase:
    """The tokenizer, by default that of the student's folder.

    Raises:
        RecipeError: there is no student, or it has no name to find a tokenizer by.
        DataError: its tokenizer cannot be found.
    """
    if not isinstance(model, str | PreTrainedModel | PeftModel):
        raise RecipeError(
            f"model is a {type(model).__name__}: give a causal language model of transformers, a PeftModel over "
            "one, a folder or a hub id"
        )
    if tokenizer is not None:
        return tokenizer
    name = model if isinstance(model, str) else str(cast(Any, model).config.name_or_path)
    if not name:
        raise RecipeError("the student was made in code and names no tokenizer: give processing_class")
    return load_tokenizer(name)


def given_student(
    model: PreTrainedModel | PeftModel | str,
    vocab_size: int,
    peft_config: PeftConfig | None,
    device: torch.device,
    shape: BlockShape,
) -> PreTrainedModel | PeftModel:
    """The student, loaded in float32 if it is a name, with adapters if they are asked for.

    Args:
        model: The student, or its folder or hub id.
        vocab_size: Tokens of its tokenizer.
        peft_config: Of the adapters.
        device: Where it is trained.
        shape: The largest batch that it will read.

    Raises:
        RecipeError: it has adapters already, and is to get others.
        DataError: it cannot be loaded, or its logits cannot be made.
    """
    student = place(load_model(model, dtype=torch.float32) if isinstance(model, str) else model, device)
    if isinstance(student, PeftModel):
        require_mergeable(student)
    check_model(causal_lm_of(student), vocab_size, name="student", shape=shape)
    if peft_config is None:
        return student
    if isinstance(student, PeftModel):
        raise RecipeError("the student has adapters already: give a model without them, or leave out peft_config")
    return cast(PeftModel, get_peft_model(student, peft_config))


def given_blocks(dataset: Any, tokenizer: PreTrainedTokenizerBase, block_size: int) -> PackedBlocks | None:
    """Blocks to train on; None if there are none."""
    return None if dataset is None else packed(dataset, tokenizer, block_size, name="train_dataset")


def largest_batch(blocks: PackedBlocks | None, args: TrainingArguments) -> BlockShape:
    """The shape of batches, by some of the blocks, of which only the last is shorter than others."""
    rows = max(args.per_device_train_batch_size, args.per_device_eval_batch_size)
    some = () if blocks is None else blocks.take(8)
    lengths = [len(some[i]["input_ids"]) for i in range(len(some))]
    return BlockShape(rows, max(lengths, default=FEW.length))


def given_objective(objective: Objective | None, teachers: Any) -> Objective:
    """A copy, which one trainer trains alone: the one that is given can be given again, with other teachers."""
    return copy.deepcopy(objective) if objective is not None else Objective(kd_weight=0.5 if teachers else 0.0)


def packed(dataset: Any, tokenizer: PreTrainedTokenizerBase, block_size: int, *, name: str) -> PackedBlocks:
    """Blocks of the rows of a data set; packed ones are taken as they are.

    Args:
        dataset: Blocks, or rows with text or tokens.
        tokenizer: The student's.
        block_size: Tokens of a block.
        name: How messages call it.

    Raises:
        DataError: it is no data set of rows, or a row cannot be used.
    """
    if isinstance(dataset, PackedBlocks):
        return dataset
    try:
        rows = rows_of(dataset)
        is_completed = len(rows) and {"prompt", "completion"} <= rows[0].keys() and "text" not in rows[0]
        columns = ("completion", "prompt") if is_completed else ("text", None)
        return pack_documents(
            rows, tokenizer, block_size=block_size, text_column=columns[0], prompt_column=columns[1]
        )
    except DataError as error:
        raise DataError(f"{name}: {error}") from error

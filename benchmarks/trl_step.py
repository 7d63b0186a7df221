"""One step of TRL's real GKDTrainer: `training_step` (loss and backward), then the optimizer."""

import os
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import torch
from datasets import Dataset
from transformers import PreTrainedModel

from benchmarks.models import build_tokenizer
from collegium.signals.contracts import IGNORE_INDEX, Batch


def trl_gkd_step(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    *,
    beta: float,
) -> Callable[[], object] | None:
    """The step, or None with a line that says why TRL cannot be used.

    Args:
        student: The model that is trained.
        teacher: Frozen.
        optimizer: Of the student; shared with the other steps.
        batch: Tokens.
        beta: 0 for the forward KL; TRL's default is 0.5, a Jensen-Shannon divergence.
    """
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    try:
        gkd = import_module("trl.experimental.gkd")
    except Exception as error:  # a broken import may raise anything
        print(f"skipped trl_gkd: {type(error).__name__}: {error}".splitlines()[0], flush=True)
        return None
    config = gkd.GKDConfig(
        output_dir=str(Path(tempfile.gettempdir()) / "collegium-benchmark"),  # nothing is saved
        lmbda=0.0,
        beta=beta,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,  # nobody else recomputes either
        report_to="none",
        max_steps=1,
    )
    trainer = gkd.GKDTrainer(
        model=student,
        teacher_model=teacher,
        args=config,
        train_dataset=Dataset.from_dict({"input_ids": batch.input_ids.tolist()}),
        processing_class=build_tokenizer(student.config.vocab_size),
        data_collator=lambda rows: rows,
        optimizers=(optimizer, None),
    )
    num_items = (batch.labels[:, 1:] != IGNORE_INDEX).sum()

    def step() -> None:
        inputs = {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask.long(),
            "labels": batch.labels,
        }
        trainer.training_step(student, inputs, num_items)
        optimizer.step()

    return step

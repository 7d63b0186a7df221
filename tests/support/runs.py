"""Small runs over pico models: a recipe file, and trainers made in code."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainingArguments

from collegium.data.blocks import PackedBlocks, pack_documents
from collegium.training.objective import Objective
from collegium.training.trainer import DistillationTrainer
from tests.support.pico import TEXTS, byte_tokenizer, pico_llama


def packed(block_size: int = 32, texts: Sequence[str] = TEXTS) -> PackedBlocks:
    """Packed blocks of the pico text."""
    return pack_documents([{"text": text} for text in texts], byte_tokenizer(), block_size=block_size)


def arguments(output_dir: Path, **changes: Any) -> TrainingArguments:
    """Training arguments for a few steps on a CPU."""
    defaults: dict[str, Any] = {
        "output_dir": str(output_dir),
        "max_steps": 3,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return TrainingArguments(**{**defaults, **changes})


def trainer_of(
    output_dir: Path,
    *,
    objective: Objective | None = None,
    num_teachers: int = 2,
    student: Any = None,
    dataset: Any = None,
    **changes: Any,
) -> DistillationTrainer:
    """A trainer over pico models; the same seeds every time."""
    teachers = [pico_llama(seed) for seed in range(1, num_teachers + 1)]
    return DistillationTrainer(
        student if student is not None else pico_llama(0),
        teachers=teachers,
        objective=objective,
        args=arguments(output_dir, **changes),
        train_dataset=packed() if dataset is None else dataset,
        processing_class=byte_tokenizer(),
    )


def weights_of(trainer: DistillationTrainer) -> dict[str, torch.Tensor]:
    """A copy of everything that is trained."""
    return {name: value.detach().clone() for name, value in trainer.distillation_model.named_parameters()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """Whether both have the same weights, bit for bit."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def stop_after(trainer: DistillationTrainer, step: int) -> None:
    """End training after a step, as a signal would."""

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            control.should_training_stop = state.global_step >= step
            return control

    trainer.add_callback(Stop())


RECIPE = """
name: pico
student: {{kind: pretrained, model: {student}}}
teachers:
  - {{name: one, model: {one}}}
  - {{name: two, model: {two}}}
data:
  directory: {data}
  block_size: 32
  held_out_documents: 4
  sources:
    - {{kind: files, name: cats, path: {cats}}}
    - {{kind: files, name: dogs, path: {dogs}}}
objective: {{kd_weight: 0.5}}
training: {{max_steps: 4, batch_size: 2, learning_rate: 1e-2, save_every: 2}}
evaluation: {{bootstrap_samples: 100}}
"""


def write_recipe(folder: Path, save_model: Any, **changes: str) -> Path:
    """A recipe over pico models and two small text files; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("cats", "dogs"):
        lines = [f"{name} say {text}, number {i}" for i, text in enumerate(TEXTS)]
        (folder / f"{name}.txt").write_text("\n".join(lines), encoding="utf-8")
    content = {
        "student": save_model("student", 0),
        "one": save_model("one", 1),
        "two": save_model("two", 2),
        "data": folder / "prepared",
        "cats": folder / "cats.txt",
        "dogs": folder / "dogs.txt",
        **changes,
    }
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(**content), encoding="utf-8")
    return path

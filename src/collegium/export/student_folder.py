"""The student that is exported: read once, from the folder that a finished run leaves."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from collegium.base.digests import verify_student
from collegium.base.errors import DataError
from collegium.models.pretrained import load_model, load_tokenizer


@dataclass(frozen=True)
class Student:
    """A trained student.

    Attributes:
        name: What it is called in files that have a name inside.
        folder: A Hugging Face folder.
        model: In float32, on the CPU.
        tokenizer: Its own.
    """

    name: str
    folder: Path
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def load_student(folder: Path, name: str) -> Student:
    """Read the student of a run.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    if not folder.is_dir():
        raise DataError(
            f"{folder.parent}: holds no `student` folder; give the folder of a finished run (`collegium train` "
            "finishes one that was stopped)"
        )
    verify_student(folder)
    model = load_model(str(folder), dtype=torch.float32)
    return Student(name, folder, model.requires_grad_(False), load_tokenizer(str(folder)))

"""The module that is wrapped for training: the student, and the objective that is trained beside it.

The whole loss is computed inside `forward`, through the DDP or FSDP wrapper: called behind it, on
`.module`, gradients would not be reduced. Teachers are no part of it; their outputs are arguments.
"""

import copy
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from collegium.models.head import ProjectionHead
from collegium.models.inner_states import recording
from collegium.models.pretrained import causal_lm_of, trunk_of
from collegium.signals.contracts import Batch, ItemCounts, LossOutput, Positions, TeacherOutput
from collegium.training.objective import Objective


class DistillationModel(nn.Module):
    """A student with its objective.

    Args:
        student: The causal language model that is trained, or a PEFT model over it.
        objective: The loss, with projections that are trained along.
        vocab_size: Size of the vocabulary common to student and teachers.
    """

    def __init__(self, student: PreTrainedModel | PeftModel, objective: Objective, *, vocab_size: int) -> None:
        super().__init__()
        self.student = student
        self.objective = objective
        self.vocab_size = vocab_size

    def forward(
        self,
        batch: Batch,
        positions: Positions,
        outputs: Sequence[TeacherOutput],
        counts: ItemCounts,
    ) -> LossOutput:
        """Loss of one micro-batch, divided by the global counts."""
        layers = self.objective.student_layers
        with recording(self.student, layers) if layers else nullcontext() as read:
            states = trunk_of(self.student)(
                input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False
            )
        head = ProjectionHead.from_model(self.causal_lm, self.vocab_size)
        loss: LossOutput = self.objective(
            positions.select(states.last_hidden_state),
            head,
            batch,
            positions,
            outputs,
            counts=counts,
            vocab_size=self.vocab_size,
            student_states=None if read is None else read.states(),
            student_embed=self.causal_lm.get_input_embeddings(),
        )
        return loss

    @property
    def causal_lm(self) -> PreTrainedModel:
        """The student below any adapter."""
        return causal_lm_of(self.student)

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: dict[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Recompute the student's activations in backward; called by `transformers.Trainer` too."""
        options = {"use_reentrant": False, **(activation_checkpointing_kwargs or {})}
        self.causal_lm.activation_checkpointing_enable(options, every_n_layers, offload)
        if isinstance(self.student, PeftModel):
            self.student.enable_input_require_grads()

    def save_student(self, folder: Path, state_dict: Mapping[str, Tensor] | None = None) -> None:
        """Write the student as a plain Hugging Face folder; adapters are merged in, projections left out.

        Args:
            folder: Where to.
            state_dict: This module's weights, gathered, where they are sharded over ranks.
        """
        if isinstance(self.student, PeftModel):
            # Merged in a copy: merging and unmerging in place leaves rounding errors in the base.
            merged = copy.deepcopy(self.student).merge_and_unload()
            merged.save_pretrained(folder)
            return
        own = None
        if state_dict is not None:
            prefix = "student."
            own = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
        self.student.save_pretrained(folder, state_dict=own)

    def save_adapter(self, folder: Path) -> bool:
        """Write the trained adapter alone, in PEFT's format; False if the student has none."""
        if not isinstance(self.student, PeftModel):
            return False
        self.student.save_pretrained(str(folder))
        (folder / "README.md").unlink(missing_ok=True)  # a blank form that names a path of this machine
        return True

"""The module that is wrapped for training: the student, and the objective that is trained beside it.

The whole loss is computed inside `forward`, through the DDP or FSDP wrapper: called behind it, on
`.module`, gradients would not be reduced. Teachers are no part of it; their outputs are arguments.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, cast

from peft import PeftModel
from torch import nn
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel

from collegium.models.head import ProjectionHead
from collegium.models.inner_states import recording
from collegium.models.merging import require_mergeable
from collegium.models.pretrained import causal_lm_of, last_hidden_states
from collegium.signals.contracts import Batch, ItemCounts, LossOutput, Positions, TeacherOutput
from collegium.training.module import TrainedModule
from collegium.training.objective import Objective


class DistillationModel(TrainedModule):
    """A student with its objective.

    Args:
        student: The causal language model that is trained, or a PEFT model over it.
        objective: The loss, with projections that are trained along.
        vocab_size: Size of the vocabulary common to student and teachers.

    Raises:
        RecipeError: the student's adapters could not be merged into plain weights.
    """

    def __init__(self, student: PreTrainedModel | PeftModel, objective: Objective, *, vocab_size: int) -> None:
        super().__init__()
        if isinstance(student, PeftModel):
            require_mergeable(student)
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
            hidden = last_hidden_states(self.student, batch.input_ids, batch.position_ids)
        head = ProjectionHead.from_model(self.causal_lm, self.vocab_size)
        loss: LossOutput = self.objective(
            positions.select(hidden),
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

    # What `transformers.Trainer`, and others that are handed its model, ask of a model is the student's.

    @property
    def config(self) -> PretrainedConfig:
        """The student's configuration."""
        return self.causal_lm.config

    @property
    def generation_config(self) -> GenerationConfig | None:
        """How the student generates."""
        return self.causal_lm.generation_config

    @property
    def generate(self) -> Callable[..., Any]:
        """The student's method of this name."""
        return cast(Callable[..., Any], self.student.generate)

    @property
    def save_pretrained(self) -> Callable[..., None]:
        """The student's method of this name; only the adapters of one that has some."""
        return self.student.save_pretrained

    def get_input_embeddings(self) -> nn.Module:
        """The student's embeddings of tokens."""
        return self.causal_lm.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        """The student's head."""
        return cast(nn.Module, self.causal_lm.get_output_embeddings())

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

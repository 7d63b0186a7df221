"""Held-out text read by any causal language model of the student's vocabulary, adapters on it or not."""

from peft import PeftModel
from transformers import PreTrainedModel

from collegium.evaluation.language_modeling import DocumentSums, HeldOut, Rule, Trunk
from collegium.models.head import ProjectionHead
from collegium.models.pretrained import causal_lm_of, last_hidden_states


def trunk_and_head(model: PreTrainedModel | PeftModel, vocab_size: int) -> tuple[Trunk, ProjectionHead]:
    """A model as measurements read it: below its head, and its head."""
    head = ProjectionHead.from_model(causal_lm_of(model), vocab_size)
    return lambda batch: last_hidden_states(model, batch.input_ids, batch.position_ids), head


def measure_model(
    model: PreTrainedModel | PeftModel, held_out: HeldOut, vocab_size: int, *, own: Rule | None = None
) -> dict[str, DocumentSums]:
    """Figures of a model by domain; see `HeldOut.measure_student`."""
    return held_out.measure_student(*trunk_and_head(model, vocab_size), own=own)

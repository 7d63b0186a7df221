"""Held-out text read by any causal language model of the student's vocabulary."""

from transformers import PreTrainedModel

from collegium.evaluation.language_modeling import DocumentSums, HeldOut, Rule
from collegium.head import ProjectionHead
from collegium.pretrained import last_hidden_states


def measure_model(
    model: PreTrainedModel, held_out: HeldOut, vocab_size: int, *, own: Rule | None = None
) -> dict[str, DocumentSums]:
    """Figures of a model by domain; see `HeldOut.measure_student`."""
    return held_out.measure_student(
        lambda batch: last_hidden_states(model, batch.input_ids, batch.position_ids),
        ProjectionHead.from_model(model, vocab_size),
        own=own,
    )

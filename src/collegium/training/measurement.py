"""Figures of the student on held-out text, while it is trained and after."""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from collegium.base.progress import Phase
from collegium.evaluation.language_modeling import DocumentSums, HeldOut, Rule
from collegium.evaluation.model_figures import measure_model
from collegium.models.head import ProjectionHead
from collegium.models.pretrained import evaluating, last_hidden_states
from collegium.report import metric_names as names
from collegium.report.perplexity import perplexity_of
from collegium.signals.contracts import Batch, predicted_positions
from collegium.training.model import DistillationModel


def measure_student(
    model: DistillationModel, held_out: HeldOut, *, own: Rule | None = None
) -> dict[str, DocumentSums]:
    """Figures of the student on held-out text; see `HeldOut.measure_student`."""
    with evaluating(model), Phase("measuring the student"):
        return measure_model(model.student, held_out, model.vocab_size, own=own)


def evaluation_logs(sums: Mapping[str, DocumentSums], prefix: str) -> dict[str, float]:
    """A log line of an evaluation: each metric by domain, its mean over domains, and loss and perplexity.

    Args:
        sums: Figures by domain.
        prefix: Beginning of every key.
    """
    logs: dict[str, float] = {}
    key = partial(names.evaluated, prefix)
    for metric in dict.fromkeys(metric for table in sums.values() for metric in table.sums):
        by_domain = {domain: table.mean(metric) for domain, table in sums.items() if metric in table.sums}
        logs |= {key(metric, domain): value for domain, value in by_domain.items()}
        logs[key(metric)] = sum(by_domain.values()) / len(by_domain)
    logs[key(names.LOSS)] = logs[key(names.NLL)]
    logs[key(names.PERPLEXITY)] = perplexity_of(logs[key(names.NLL)])
    return logs


@torch.no_grad()
def predictions(
    model: DistillationModel, batch: Batch, *, loss_only: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Loss, logits [B S V] and labels [B S] of the student, as `transformers.Trainer.prediction_step` gives them.

    The logits at a position are for the next token; labels are the tokens themselves, and -100 where nothing is
    predicted. All logits of a batch are alive at once, which `HeldOut` avoids.
    """
    model.eval()
    hidden = last_hidden_states(model.student, batch.input_ids, batch.position_ids)  # as in training
    head = ProjectionHead.from_model(model.causal_lm, model.vocab_size)
    positions = predicted_positions(batch)
    loss = cross_entropy(head(positions.select(hidden)).float(), positions.labels)
    if loss_only:
        return loss, None, None
    return loss, head(hidden.flatten(0, 1)).unflatten(0, hidden.shape[:2]), batch.labels

"""One micro-batch through an objective over pico models in float64: loss and gradients, to be compared."""

import torch

from collegium.data.collate import BlockCollator
from collegium.signals.contracts import Batch, ItemCounts, predicted_positions
from collegium.teachers.local import LocalTeacher
from collegium.training.model import DistillationModel
from collegium.training.objective import Objective
from tests.support.pico import pico_llama
from tests.support.runs import packed


V = 260


def batch_of(indices: range = range(4), *, side: str = "right", pad_to: int | None = None) -> Batch:
    blocks = packed()
    collator = BlockCollator(pad_token_id=258, padding_side=side, pad_to=pad_to)
    return Batch.from_inputs(collator([blocks[i] for i in indices]))


def counts_of(*batches: Batch) -> ItemCounts:
    return ItemCounts(
        torch.tensor(sum(len(predicted_positions(b)) for b in batches)),
        torch.tensor(sum(int(b.attention_mask.sum()) for b in batches)),
    )


def teachers_of(*seeds: int, width: int = 32) -> list[LocalTeacher]:
    return [
        LocalTeacher(
            f"t{seed}", pico_llama(seed, width=width, dtype=torch.float64), vocab_size=V, fingerprint=str(seed)
        )
        for seed in seeds
    ]


def run(
    model: DistillationModel, batch: Batch, teachers: list[LocalTeacher], counts: ItemCounts | None = None
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and gradients of one micro-batch."""
    positions = predicted_positions(batch)
    outputs = [t.score(batch, positions, need=model.objective.need) for t in teachers]
    result = model(batch, positions, outputs, counts or counts_of(batch))
    model.zero_grad()
    result.loss.backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return result.loss.detach(), grads


def student_with(objective: Objective, seed: int = 0) -> DistillationModel:
    return DistillationModel(pico_llama(seed, dtype=torch.float64), objective.double(), vocab_size=V)


def assert_same(left: tuple, right: tuple, *, tolerance: float = 1e-12) -> None:
    assert torch.allclose(left[0], right[0], rtol=tolerance, atol=tolerance)
    assert left[1].keys() == right[1].keys()
    for name, grad in left[1].items():
        assert torch.allclose(grad, right[1][name], rtol=1e-9, atol=tolerance), name

"""The text that a training reads is counted as it is delivered: whatever the cut of a step, and after a resume."""

import pytest
import torch

from collegium.data.collate import BlockCollator
from collegium.data.order import StatelessOrder
from collegium.signals.contracts import Batch, predicted_positions
from collegium.training.text_count import NAME, TextCount
from tests.support.runs import packed, stop_after, trainer_of


STEPS = 5
SAMPLES = 4


def delivered(num_steps: int = STEPS) -> dict[str, int]:
    """What the blocks of the order hold, one by one."""
    blocks = packed()
    order = StatelessOrder(len(blocks), seed=42, total=num_steps * SAMPLES)
    batches = [Batch.from_inputs(BlockCollator(pad_token_id=0)([blocks[i]])) for i in order]
    return {
        "read/blocks": len(batches),
        "read/tokens": sum(batch.input_ids.numel() for batch in batches),
        "read/predicted": sum(len(predicted_positions(batch)) for batch in batches),
    }


def counted(trainer) -> dict[str, int]:
    line = trainer.state.log_history[-1]
    assert "train_runtime" in line
    return {key: value for key, value in line.items() if key.startswith("read/")}


@pytest.mark.parametrize(("batch_size", "accumulation"), [(4, 1), (1, 4), (2, 2)])
def test_the_count_is_that_of_the_blocks(tmp_path, batch_size, accumulation):
    trainer = trainer_of(
        tmp_path,
        num_teachers=0,
        max_steps=STEPS,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
    )
    trainer.train()
    assert counted(trainer) == delivered()
    assert counted(trainer)["read/tokens"] < STEPS * SAMPLES * 32, "the last block of the text is short"
    steps = [line["read/tokens"] for line in trainer.state.log_history if "loss" in line]
    assert steps == [delivered(step)["read/tokens"] for step in range(1, STEPS + 1)]


def test_the_count_goes_on_after_a_resume(tmp_path):
    options = {"num_teachers": 0, "max_steps": STEPS, "save_strategy": "steps", "save_steps": 2}
    options |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    first = trainer_of(tmp_path, **options)
    stop_after(first, 3)
    first.train()
    second = trainer_of(tmp_path, **options)
    second.train(resume_from_checkpoint=True)
    assert counted(second) == delivered()


def batch_of_domains() -> dict[str, torch.Tensor]:
    rows = [{**packed()[i], "domain": "b" if i else "a"} for i in range(3)]
    return BlockCollator(pad_token_id=0, domains=["a", "b"])(rows)


def test_domains_are_counted_apart():
    count = TextCount(("a", "b"), torch.device("cpu"))
    count.add([batch_of_domains(), batch_of_domains()])
    found = count.logged(by_domain=True)
    assert (found["read/a/blocks"], found["read/b/blocks"], found["read/blocks"]) == (2, 4, 6)
    assert found["read/a/tokens"] + found["read/b/tokens"] == found["read/tokens"] == 2 * 3 * 32


def test_a_checkpoint_without_a_count_makes_the_whole_unknown(tmp_path):
    count = TextCount(("a", "b"), torch.device("cpu"))
    count.load(tmp_path)
    count.add([batch_of_domains()])
    assert count.logged() == {}
    (tmp_path / f"{NAME}.json").write_text('{"domains": ["a", "b"], "counts": [[1, 2, 3], [4, 5, 6]]}')
    count.load(tmp_path)
    assert count.logged() == {"read/blocks": 5, "read/tokens": 7, "read/predicted": 9}

"""A run that goes on logs what one that nobody stopped would: each line, and the mean loss at the end."""

import json

import pytest
from transformers import TrainerCallback

from tests.support.runs import stop_after, trainer_of


TIMES = ("train_runtime", "train_samples_per_second", "train_steps_per_second")


class Lines(TrainerCallback):
    """Every log line, without what depends on the clock."""

    def __init__(self) -> None:
        self.lines: list[dict[str, float]] = []

    def on_log(self, args, state, control, logs=None, **_):
        kept = {name: value for name, value in logs.items() if name not in TIMES}
        self.lines.append({"step": state.global_step, **kept})


def trained(folder, stop: int | None = None):
    trainer = trainer_of(folder, max_steps=8, save_strategy="steps", save_steps=1, logging_steps=3)
    lines = Lines()
    trainer.add_callback(lines)
    if stop is not None:
        stop_after(trainer, stop)
    output = trainer.train(resume_from_checkpoint=True)
    return output, lines.lines


@pytest.mark.parametrize("stop", [2, 8])
def test_lines_and_mean_loss_of_a_resumed_run(tmp_path, stop):
    whole, expected = trained(tmp_path / "whole")
    trained(tmp_path / "resumed", stop)
    resumed, found = trained(tmp_path / "resumed")
    assert found == [line for line in expected if line["step"] > stop or "train_loss" in line]
    assert resumed.training_loss == whole.training_loss == resumed.metrics["train_loss"]


def test_a_checkpoint_of_an_earlier_version_is_resumed(tmp_path, monkeypatch):
    """It has no sums, so the figures are of the part that is known, as before."""
    trained(tmp_path, 4)
    (folder,) = tmp_path.glob("checkpoint-4")
    monkeypatch.setattr("collegium.training.checkpointed.verify", lambda path: None)
    monkeypatch.setattr("collegium.training.checkpoint.verify", lambda path: None)
    for name in ("logged_loss.json", "metrics.json"):
        assert json.loads((folder / name).read_text())
        (folder / name).unlink()
    output, found = trained(tmp_path)
    assert output.training_loss > 0 and found[-1]["step"] == 8

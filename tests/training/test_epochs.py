"""Epochs in steps: where they end, what acts at their ends, and that a resumed run knows where it is."""

import pytest
from transformers import EarlyStoppingCallback, TrainerCallback

from collegium.training.epochs import Epochs
from collegium.training.trainer import DistillationTrainer
from tests.support.pico import TEXTS, byte_tokenizer, pico_llama
from tests.support.runs import arguments, packed, same, stop_after, trainer_of, weights_of


ROWS = [{"text": text} for text in TEXTS]


@pytest.mark.parametrize(
    ("samples", "per_step", "steps", "ends"),
    [
        (34, 2, 51, [17, 34, 51]),
        (34, 4, 26, [9, 17, 26]),  # the last step of the first epoch takes two blocks of the second
        (7, 3, 5, [3, 5]),
        (3, 8, 2, [1, 2]),  # an epoch that is shorter than a step
        (5, 1, 3, [3]),  # the training ends before the epoch
    ],
)
def test_epochs_end_with_the_step_that_completes_them(samples, per_step, steps, ends):
    epochs = Epochs(samples, per_step, steps)
    assert epochs.count == len(ends)
    assert [epochs.start(i + 1) for i in range(epochs.count)] == ends
    assert [epochs.containing(end) for end in ends[:-1]] == list(range(1, len(ends)))
    if samples >= per_step and steps * per_step >= samples:
        assert [epochs.at(end) for end in ends] == [float(i + 1) for i in range(len(ends))]


class Count(TrainerCallback):
    def __init__(self):
        self.ends = []

    def on_epoch_end(self, args, state, control, **_):
        self.ends.append((state.global_step, state.epoch))


def run(folder, *, callbacks=(), batch_size=2, epochs=3, **changes):
    trainer = DistillationTrainer(
        pico_llama(0),
        args=arguments(
            folder, max_steps=-1, num_train_epochs=epochs, per_device_train_batch_size=batch_size, **changes
        ),
        train_dataset=packed(),
        eval_dataset=ROWS[:2],
        processing_class=byte_tokenizer(),
        callbacks=list(callbacks),
        block_size=32,
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize(("batch_size", "ends"), [(17, [2, 4, 6]), (8, [5, 9, 13])])
def test_strategies_act_at_the_ends_of_epochs(tmp_path, batch_size, ends):
    count = Count()
    by_epoch = dict.fromkeys(("save_strategy", "eval_strategy", "logging_strategy"), "epoch")
    trainer = run(tmp_path, callbacks=[count], batch_size=batch_size, **by_epoch)
    log = trainer.state.log_history
    assert count.ends == [(step, float(i + 1)) for i, step in enumerate(ends)]
    assert [line["step"] for line in log if "eval_loss" in line] == ends
    assert [(line["step"], line["epoch"]) for line in log if "loss" in line] == count.ends
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == sorted(f"checkpoint-{s}" for s in ends)
    assert trainer.state.num_train_epochs == 3


def test_early_stopping_counts_epochs(tmp_path):
    stop = EarlyStoppingCallback(early_stopping_patience=1, early_stopping_threshold=100.0)
    trainer = run(
        tmp_path, callbacks=[stop], batch_size=17, epochs=6, eval_strategy="epoch", metric_for_best_model="loss"
    )
    assert trainer.state.global_step == 4


@pytest.mark.parametrize("stop", [2, 3, 4])  # in the first epoch, at its end, in the second
def test_a_run_resumed_in_any_epoch_is_the_uninterrupted_one(tmp_path, stop):
    options = {"max_steps": 6, "per_device_train_batch_size": 4, "save_strategy": "steps", "save_steps": 20}

    def trainer(folder):
        return trainer_of(
            tmp_path / folder,
            student=pico_llama(0, dropout=0.3),
            num_teachers=1,
            dataset=packed(texts=TEXTS[:7]),  # ten blocks
            **options,
        )

    whole = trainer("whole")
    whole.train()
    first = trainer("stopped")
    stop_after(first, stop)
    first.add_callback(SaveAt(stop))
    first.train()
    second = trainer("stopped")
    second.train(resume_from_checkpoint=True)
    assert second.state.epoch == whole.state.epoch
    assert same(weights_of(whole), weights_of(second))


class SaveAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        control.should_save = state.global_step == self.step
        return control

"""What callbacks remember outlasts an interruption; what they are set to is as it is given."""

import json

import pytest
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback
from transformers.trainer_callback import ExportableState

from collegium.training.callback_states import callback_states, restore_callbacks
from collegium.training.trainer import DistillationTrainer
from tests.support.pico import TEXTS, byte_tokenizer, pico_llama
from tests.support.runs import arguments, packed, same, stop_after, weights_of


class Counter(TrainerCallback, ExportableState):
    """Counts steps, up to a limit that nobody reads."""

    def __init__(self, limit: int = 5) -> None:
        self.limit = limit
        self.seen = 0

    def on_step_end(self, args, state, control, **_):
        self.seen += 1

    def state(self):
        return {"args": {"limit": self.limit}, "attributes": {"seen": self.seen}}


class Unusual(Counter):
    """Makes itself again in its own way."""

    def state(self):
        return {"total": self.seen}

    @classmethod
    def from_state(cls, state):
        made = cls()
        made.seen = state["total"]
        return made


def trainer(folder, *callbacks, steps=6, **changes) -> DistillationTrainer:
    options = {
        "max_steps": steps,
        "save_strategy": "steps",
        "save_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "metric_for_best_model": "loss",
        "greater_is_better": True,  # a loss that falls is taken for one that gets worse
    }
    made = DistillationTrainer(
        pico_llama(0, layers=1),
        args=arguments(folder, **{**options, **changes}),
        train_dataset=packed(),
        eval_dataset=packed(texts=TEXTS[:2]),
        processing_class=byte_tokenizer(),
        callbacks=list(callbacks),
    )
    made.remove_callback(PrinterCallback)
    return made


def test_patience_that_is_used_up_does_not_come_back(tmp_path):
    whole = trainer(tmp_path / "whole", EarlyStoppingCallback(2))
    whole.train()
    end = whole.state.global_step
    assert 2 < end < 6, "it stops early"
    first = trainer(tmp_path / "stopped", EarlyStoppingCallback(2))
    stop_after(first, end - 1)
    first.train()
    patience = EarlyStoppingCallback(2)
    second = trainer(tmp_path / "stopped", patience)
    second.train(resume_from_checkpoint=True)
    assert second.state.global_step == end
    assert patience.early_stopping_patience_counter == 2
    assert second.state.best_metric == whole.state.best_metric
    assert second.state.best_global_step == whole.state.best_global_step
    assert second.state.best_model_checkpoint == str(tmp_path / "stopped" / f"checkpoint-{end - 2}")
    assert same(weights_of(whole), weights_of(second))


def test_a_run_that_stopped_early_has_nothing_to_go_on_with(tmp_path, capsys):
    whole = trainer(tmp_path, EarlyStoppingCallback(1))
    whole.train()
    end = whole.state.global_step
    assert end < 6
    again = trainer(tmp_path, EarlyStoppingCallback(1))
    again.train(resume_from_checkpoint=True)
    assert "training had stopped early here, and so has nothing to go on with" in capsys.readouterr().err
    assert again.state.global_step == end
    assert same(weights_of(whole), weights_of(again))
    more = trainer(tmp_path, EarlyStoppingCallback(50))
    more.train(resume_from_checkpoint=True)
    assert more.state.global_step == 6, "more patience goes on"


def test_any_callback_with_a_state_goes_on_counting(tmp_path, capsys):
    first = trainer(tmp_path, Counter(), Unusual(), eval_strategy="no")
    stop_after(first, 3)
    first.train()
    document = json.loads((tmp_path / "checkpoint-3" / "trainer_state.json").read_text())
    assert document["stateful_callbacks"]["Counter"] == [{"args": {"limit": 5}, "attributes": {"seen": 3}}]
    counter, unusual, new = Counter(limit=9), Unusual(), EarlyStoppingCallback(50)
    second = trainer(tmp_path, counter, unusual, new)
    second.train(resume_from_checkpoint=True)
    assert (counter.seen, unusual.seen) == (6, 6)
    assert counter.limit == 9
    assert counter in second.callback_handler.callbacks, "it is the very object that was given"
    assert (
        "callback Counter: goes on with {'limit': 9}; the checkpoint has {'limit': 5}" in capsys.readouterr().err
    )


def test_several_of_one_kind_are_told_apart_by_their_order():
    counters = [Counter(), Counter()]
    counters[1].seen = 7
    stored = callback_states(counters)
    fresh = [Counter(), Counter()]
    restore_callbacks(fresh, stored)
    assert [counter.seen for counter in fresh] == [0, 7]


def test_a_callback_that_is_gone_or_new_is_named(capsys):
    stored = {"TrainerControl": {"args": {"should_training_stop": True}}, "Counter": {"attributes": {"seen": 3}}}
    restore_callbacks([], stored)
    assert (
        capsys.readouterr().err == "callback Counter: 1 in the checkpoint, 0 now; what is too many is left out\n"
    )


def test_a_state_that_json_cannot_hold_is_refused_by_name():
    counter = Counter()
    counter.seen = object()
    with pytest.raises(ValueError, match="the state of callback Counter cannot be written as JSON"):
        callback_states([counter])

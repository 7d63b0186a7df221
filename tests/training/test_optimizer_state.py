"""Every optimizer that can be chosen is resumed bit for bit, or refused by name before the first step."""

import pytest
import torch
from transformers import PrinterCallback
from transformers.training_args import OptimizerNames

from collegium.base.errors import DataError
from collegium.training.optimizer_state import RESUMABLE, load_optimizer_state, optimizer_state
from collegium.training.trainer import DistillationTrainer
from tests.support.pico import byte_tokenizer, pico_llama
from tests.support.runs import arguments, packed, same, weights_of


SAVING = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}


def trainer(folder, *, make=None, student=None, **changes) -> DistillationTrainer:
    """Cross-entropy alone, by an optimizer of the arguments or by one that `make` makes."""
    student = student or pico_llama(0, layers=1)
    made = DistillationTrainer(
        student,
        args=arguments(folder, **{**SAVING, **changes}),
        train_dataset=packed(),
        processing_class=byte_tokenizer(),
        optimizers=(make(student) if make else None, None),
    )
    made.remove_callback(PrinterCallback)
    return made


def resumed_is_whole(folder, **options) -> bool:
    whole = trainer(folder, **options)
    whole.train()
    again = trainer(folder, **options)
    again.train(resume_from_checkpoint=str(folder / "checkpoint-1"))
    return same(weights_of(whole), weights_of(again))


@pytest.mark.parametrize("optim", RESUMABLE)
def test_each_that_is_named_goes_on_bit_for_bit(tmp_path, optim):
    assert resumed_is_whole(tmp_path, optim=optim)


@pytest.mark.parametrize("optim", ["adafactor", "adamw_torch"])
def test_states_of_half_precision_weights_are_not_rounded(tmp_path, optim):
    student = [pico_llama(0, layers=1, dtype=torch.bfloat16) for _ in range(2)]
    whole = trainer(tmp_path, student=student[0], optim=optim)
    whole.train()
    again = trainer(tmp_path, student=student[1], optim=optim)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert same(weights_of(whole), weights_of(again))


def sgd(student, **options):
    return torch.optim.SGD(student.parameters(), lr=1e-2, **options)


def grouped(student, names):
    inside = [p for n, p in student.named_parameters() if any(name in n for name in names)]
    outside = [p for n, p in student.named_parameters() if not any(name in n for name in names)]
    return torch.optim.AdamW([{"params": inside, "weight_decay": 0.1}, {"params": outside}], lr=1e-2)


OWN = {
    "momentum": lambda student: sgd(student, momentum=0.9),
    "nadam": lambda student: torch.optim.NAdam(student.parameters(), lr=1e-3),
    "amsgrad": lambda student: torch.optim.AdamW(student.parameters(), lr=1e-3, amsgrad=True),
    "groups": lambda student: grouped(student, ["mlp"]),
}


@pytest.mark.parametrize("name", OWN)
def test_an_optimizer_of_the_callers_own_goes_on_bit_for_bit(tmp_path, name):
    assert resumed_is_whole(tmp_path, make=OWN[name])


REFUSED = [name.value for name in OptimizerNames if name.value not in RESUMABLE]


@pytest.mark.parametrize("optim", REFUSED)
def test_all_others_are_refused_by_name_before_the_first_step(tmp_path_factory, shared, optim):
    shared.args.optim = OptimizerNames(optim)
    shared.optimizer = None
    with pytest.raises(
        ValueError, match=rf"optim='{optim}' is not .* take one of adamw_torch, .* save_strategy='no'"
    ):
        shared.create_optimizer()


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> DistillationTrainer:
    return trainer(tmp_path_factory.mktemp("shared"))


@pytest.mark.parametrize(
    ("before", "now", "message"),
    [
        (sgd, OWN["momentum"], "optimizer group 0.momentum was 0 and is 0.9 now"),
        (OWN["nadam"], OWN["amsgrad"], r"optim was \S+NAdam and is \S+AdamW now"),
        (OWN["groups"], OWN["amsgrad"], r"number of parameter groups was 2 and is 1 now"),
        (
            OWN["groups"],
            lambda student: grouped(student, ["self_attn"]),
            r"2 parameter groups of \[3, 8\] parameters then, 2 of \[4, 7\] now, and \S+ for example is in",
        ),
    ],
    ids=["settings", "kind", "number of groups", "groups"],
)
def test_another_optimizer_is_refused_by_what_differs(tmp_path, before, now, message):
    trainer(tmp_path, make=before).train()
    with pytest.raises(DataError, match=message):
        trainer(tmp_path, make=now).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


class Quantised(torch.Tensor):
    """A tensor that safetensors would not read back as what it was."""


class WithHistory(torch.optim.SGD):
    """Keeps what JSON cannot hold."""

    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["history"] = self.kept()

    def kept(self):
        return {"a": object()}


class WithQuantised(WithHistory):
    def kept(self):
        return torch.zeros(2).as_subclass(Quantised)


class WithOwnState(torch.optim.SGD):
    def state_dict(self):
        return super().state_dict()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            WithHistory,
            r"WithHistory keeps 'history' as dict, which a checkpoint cannot hold: take another optimizer",
        ),
        (WithQuantised, r"WithQuantised keeps 'history' as Quantised, which safetensors cannot hold"),
        (WithOwnState, r"WithOwnState has a state_dict of its own"),
    ],
)
def test_a_state_that_no_file_can_hold_is_refused_at_the_first_checkpoint(tmp_path, kind, message):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, make=lambda student: kind(student.parameters(), lr=1e-3)).train()
    assert not list(tmp_path.glob("checkpoint-*"))


def test_parameters_that_no_gradient_has_reached_have_no_state_and_need_none():
    """As those of a term that begins later, or of an expert that no token has gone to."""
    model = torch.nn.ModuleDict({"used": torch.nn.Linear(2, 2), "unused": torch.nn.Linear(2, 2)})
    optimizer = torch.optim.AdamW(model.parameters())
    model["used"](torch.ones(1, 2)).sum().backward()
    optimizer.step()
    tensors, document = optimizer_state(model, optimizer)
    assert not any(name.startswith("unused") for name in tensors)
    fresh = torch.optim.AdamW(model.parameters())
    load_optimizer_state(model, fresh, tensors, document, where="here")
    assert model["unused"].weight not in fresh.state
    for key, value in optimizer.state[model["used"].weight].items():
        assert torch.equal(fresh.state[model["used"].weight][key], value)


def test_numbers_keep_their_type_and_their_last_bit():
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters())
    optimizer.state[model.weight] = {"step": 3, "mu": 0.1 + 0.2, "seen": None, "on": True}
    tensors, document = optimizer_state(model, optimizer)
    fresh = torch.optim.SGD(model.parameters())
    load_optimizer_state(model, fresh, tensors, document, where="here")
    assert fresh.state[model.weight] == {"step": 3, "mu": 0.1 + 0.2, "seen": None, "on": True}
    assert isinstance(fresh.state[model.weight]["step"], int)

"""A run goes on only with what it was begun with; what may change instead is the table of docs/resuming.md."""

import json
import re
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from torch.utils.data import BatchSampler
from transformers import PrinterCallback

from collegium.base.errors import DataError
from collegium.data.order import DomainOrder, StatelessOrder
from collegium.fused.chunked import KdTarget
from collegium.losses.divergences import generalized_jsd, reverse_kl
from collegium.losses.fusion import mixture_logprobs
from collegium.losses.weighting import Weighting
from collegium.teachers.local import LocalTeacher
from collegium.training.objective import Objective
from collegium.training.on_policy import OnPolicy
from collegium.training.rollout import Sampling
from collegium.training.trainer import DistillationTrainer
from tests.support.checkpoints import as_format_1, change
from tests.support.pico import TEXTS, byte_tokenizer, pico_llama
from tests.support.runs import arguments, packed, same, stop_after, weights_of


SAVING = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}


def objective(**options) -> Objective:
    return Objective(["llama-1", "llama-2"], **options)


def named(*names: str) -> Objective:
    return Objective(names or ["llama-1", "llama-2"])


def trainer(folder: Path, *, teachers=None, dataset=None, objective=None, parts=None, **changes):
    made = DistillationTrainer(
        pico_llama(0) if parts is None else parts.pop("student", pico_llama(0)),
        teachers=[pico_llama(1), pico_llama(2)] if teachers is None else teachers,
        objective=objective or named(),
        args=arguments(folder, **{**SAVING, **changes}),
        train_dataset=packed() if dataset is None else dataset,
        processing_class=byte_tokenizer(),
        **(parts or {}),
    )
    made.remove_callback(PrinterCallback)
    return made


def stopped(folder: Path, **options) -> None:
    """A run that ends at its second step of four."""
    first = trainer(folder, **options)
    stop_after(first, 2)
    first.train()
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-2"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("plain") / "run"
    stopped(folder)
    return folder


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> dict[str, torch.Tensor]:
    whole = trainer(tmp_path_factory.mktemp("whole"))
    whole.train()
    return weights_of(whole)


def copied(folder: Path, to: Path) -> Path:
    return shutil.copytree(folder, to / "run")


def local(seed: int, **options) -> LocalTeacher:
    return LocalTeacher("llama-1", pico_llama(seed), vocab_size=260, fingerprint="one", **options)


def other_config():
    model = pico_llama(2)
    model.config.rms_norm_eps = 1e-4
    return model


OTHERS = {
    "text": ({"dataset": packed(texts=[*TEXTS[1:], "another text"])}, "text was"),
    "order of the text": ({"dataset": packed(texts=TEXTS[::-1])}, "text was"),
    "blocks of another size": ({"dataset": packed(block_size=16)}, "text was"),
    "teacher": (
        {"teachers": [pico_llama(1), pico_llama(3)]},
        r"teacher 'llama-2' was object:\w+ and is object:",
    ),
    "teachers in another order": ({"teachers": [pico_llama(2), pico_llama(1)]}, "teacher 'llama-1' was"),
    "configuration of a teacher": ({"teachers": [pico_llama(1), other_config()]}, "teacher 'llama-2' was"),
    "one teacher less": (
        {"teachers": [pico_llama(1)], "objective": named("llama-1")},
        r"objective.teacher_names was .*teacher 'llama-2' was \S+ and is absent now",
    ),
    "student": ({"parts": {"student": pico_llama(5)}}, "student before training was"),
    "learning rate": (
        {"learning_rate": 2e-2},
        r"learning_rate was 0.01 and is 0.02 now: put it back, or start again",
    ),
    "schedule": ({"lr_scheduler_type": "cosine"}, "lr_scheduler_type was linear and is cosine"),
    "warm-up": ({"warmup_steps": 2}, "warmup_steps was 0 and is 2"),
    "optimizer": ({"optim": "adafactor"}, "optim was adamw_torch_fused and is adafactor"),
    "weight decay": ({"weight_decay": 0.1}, "weight_decay was 0.0 and is 0.1"),
    "seed": ({"seed": 7}, "seed of the order was 42 and is 7"),
    "kd_weight": ({"objective": objective(kd_weight=0.9)}, "objective.kd_weight was 0.5 and is 0.9"),
    "divergence": (
        {"objective": objective(target=KdTarget(reverse_kl, mixture_logprobs))},
        r"objective.target.divergence was \S+forward_kl and is \S+reverse_kl",
    ),
    "weighting": (
        {"objective": objective(weighting=Weighting("uniform"))},
        "objective.weighting.kind was entropy and is uniform",
    ),
    "samples a step": (
        {"per_device_train_batch_size": 4},
        "samples a step was 2 and is 4 .* choose them so that their product is 2",
    ),
    "adapters": ({"parts": {"peft_config": LoraConfig(r=4, target_modules=["q_proj"])}}, "adapter 'default'"),
    "on-policy": (
        {"parts": {"on_policy": OnPolicy(Sampling(prompt_length=4, max_new_tokens=4))}},
        r"on_policy was none and is \S+OnPolicy now",
    ),
    "fewer steps than are done": ({"max_steps": 1}, "has done 2 steps, but this run ends after 1"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_run_does_not_go_on_with_something_else(plain, name):
    options, message = OTHERS[name]
    again = trainer(plain, **options)
    before = weights_of(again)
    with pytest.raises(DataError, match=message):
        again.train(resume_from_checkpoint=True)
    assert same(before, weights_of(again)), "something was loaded all the same"


def test_another_tokenizer_is_refused(plain):
    again = trainer(plain)
    again.processing_class = byte_tokenizer(extra=("<y>",))
    with pytest.raises(DataError, match=r"tokenizer was \w+ and is \w+ now"):
        again.train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("before", "now", "message"),
    [
        ({}, {"target_temperature": 2.0}, "teacher 'llama-1'.target_temperature was 1.0 and is 2.0"),
        ({"weight_temperature": 3.0}, {}, "teacher 'llama-1'.weight_temperature was 3.0 and is 1.0"),
    ],
)
def test_other_temperatures_of_a_teacher_are_refused(tmp_path, before, now, message):
    stopped(tmp_path, teachers=[local(1, **before)], objective=named("llama-1"))
    with pytest.raises(DataError, match=message):
        trainer(tmp_path, teachers=[local(1, **now)], objective=named("llama-1")).train(
            resume_from_checkpoint=True
        )


def test_many_differences_are_one_sentence(plain):
    options = {
        "learning_rate": 1.0,
        "weight_decay": 0.5,
        "max_grad_norm": 2.0,
        "adam_beta1": 0.5,
        "adam_beta2": 0.5,
    }
    with pytest.raises(DataError) as error:
        trainer(plain, **options, warmup_steps=1).train(resume_from_checkpoint=True)
    assert str(error.value).endswith(", and 1 more: put them back, or start again in another output_dir")
    assert "\n" not in str(error.value)


ADAPTER = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"r": 8}, "adapter 'default'.r was 4 and is 8"),
        ({"lora_alpha": 16}, "adapter 'default'.lora_alpha was 8 and is 16"),
        ({"target_modules": ["q_proj"]}, r"adapter 'default'.target_modules was \['q_proj', 'v_proj'\] and is"),
    ],
)
def test_other_adapters_are_refused(tmp_path, change, message):
    stopped(tmp_path, parts={"peft_config": LoraConfig(**ADAPTER)})
    with pytest.raises(DataError, match=message):
        trainer(tmp_path, parts={"peft_config": LoraConfig(**{**ADAPTER, **change})}).train(
            resume_from_checkpoint=True
        )


def test_adapters_drawn_with_other_random_numbers_go_on_with_those_of_the_checkpoint(tmp_path):
    def tuned(seed: int, folder: str):
        torch.manual_seed(seed)
        return trainer(tmp_path / folder, parts={"peft_config": LoraConfig(**ADAPTER)})

    whole = tuned(1, "whole")
    whole.train()
    first = tuned(1, "stopped")
    stop_after(first, 2)
    first.train()
    second = tuned(99, "stopped")
    second.train(resume_from_checkpoint=True)
    assert same(weights_of(whole), weights_of(second))


@pytest.mark.parametrize("frozen_first", [True, False])
def test_layers_that_are_frozen_or_no_longer_are_named(tmp_path, frozen_first):
    def student(frozen: bool):
        model = pico_llama(0)
        model.model.layers[0].requires_grad_(not frozen)
        return {"student": model}

    stopped(tmp_path, parts=student(frozen_first))
    again = trainer(tmp_path, parts=student(not frozen_first))
    word = "is trained now, and was frozen" if frozen_first else "was trained when .* is frozen now"
    with pytest.raises(DataError, match=rf"student.model.layers.0.\S+ {word}.* for 8 more"):
        again.train(resume_from_checkpoint=True)


# What may change: each row of the table in docs/resuming.md.

ALLOWED = {
    "max_steps, num_train_epochs": {"max_steps": 5},
    "processes, batch size, accumulation": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2},
    "logging": {"logging_steps": 3, "logging_first_step": True},
    "saving": {"save_steps": 1, "save_total_limit": 1},
    "loader": {"dataloader_num_workers": 1},
    "evaluation": {"per_device_eval_batch_size": 1},
    "recomputing": {"gradient_checkpointing": True},
}


@pytest.mark.parametrize("name", ALLOWED)
def test_a_run_goes_on_with_what_does_not_decide_its_steps(plain, uninterrupted, tmp_path, name):
    folder = copied(plain, tmp_path)
    again = trainer(folder, **ALLOWED[name])
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == ALLOWED[name].get("max_steps", 4)
    if name != "max_steps, num_train_epochs":
        for key, weight in weights_of(again).items():
            torch.testing.assert_close(weight, uninterrupted[key], rtol=1e-4, atol=1e-5)
    if name == "saving":
        assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-4"]
        assert again.state.save_steps == 1


def test_the_table_of_the_docs_has_the_rows_that_are_tested():
    page = (Path(__file__).parents[2] / "docs" / "resuming.md").read_text(encoding="utf-8")
    section = page.partition("## What may change")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([^|]+?) \|", section, re.MULTILINE)[1:]
    tested = {*ALLOWED, "device", "releases of collegium, torch, transformers", "callbacks"}
    assert set(rows) == tested


def test_more_steps_are_the_longer_run_where_no_schedule_follows_them(plain, tmp_path, capsys):
    options = {"lr_scheduler_type": "constant"}
    stopped(tmp_path / "run", **options)
    longer = trainer(tmp_path / "run", **options, max_steps=6)
    longer.train(resume_from_checkpoint=True)
    assert "of a run of 4 steps, which ends after 6 now" in capsys.readouterr().err
    whole = trainer(tmp_path / "whole", **options, max_steps=6)
    whole.train()
    assert same(weights_of(whole), weights_of(longer))


def test_the_same_trainer_goes_on_too(tmp_path, uninterrupted):
    one = trainer(tmp_path)
    one.train(resume_from_checkpoint=True)
    one.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert same(weights_of(one), uninterrupted)


def test_a_reused_objective_is_the_same_one(plain, tmp_path, uninterrupted):
    folder = copied(plain, tmp_path)
    again = trainer(folder)
    again.objective.set_progress(1.0)
    again.train(resume_from_checkpoint=True)
    assert same(weights_of(again), uninterrupted)


def test_a_checkpoint_of_an_earlier_version_goes_on_with_a_sentence(plain, tmp_path, capsys, uninterrupted):
    folder = copied(plain, tmp_path)
    as_format_1(folder / "checkpoint-2")
    again = trainer(folder)
    again.train(resume_from_checkpoint=True)
    said = capsys.readouterr().err
    assert "is of an earlier version, which did not note what it was made from: that text, tokenizer," in said
    assert same(weights_of(again), uninterrupted)


def test_a_checkpoint_of_an_earlier_version_knows_its_optimizer(plain, tmp_path):
    folder = copied(plain, tmp_path)
    as_format_1(folder / "checkpoint-2")
    with pytest.raises(DataError, match=r"the optimizer was an optimizer with .*betas.*, it is \S*Adafactor now"):
        trainer(folder, optim="adafactor").train(resume_from_checkpoint=True)


def test_settings_that_only_another_version_knows_are_not_compared(plain, tmp_path):
    folder = copied(plain, tmp_path)
    path = folder / "checkpoint-2"
    origin = json.loads((path / "origin.json").read_text())
    change(path, "origin", facts={**origin["facts"], "objective.of_old": 1})
    with pytest.raises(DataError, match=r"objective.of_old was 1 and is absent now"):
        trainer(folder).train(resume_from_checkpoint=True)
    change(path, "origin", versions={**origin["versions"], "collegium": "0.0.1"})
    trainer(folder).train(resume_from_checkpoint=True)


# Samples: the same sequence, however a step is cut.


def consumed(
    order, batch_size: int, accumulation: int, processes: int, first_step: int, steps: int
) -> list[list[int]]:
    """Samples of each step as accelerate hands them out: process r takes batches r, r + processes, and so on."""
    batches = list(BatchSampler(order, batch_size, drop_last=False))
    per_step = accumulation * processes
    return [
        sorted(sample for batch in batches[step * per_step : (step + 1) * per_step] for sample in batch)
        for step in range(first_step, first_step + steps)
    ]


splits = st.sampled_from([(12, 1, 1), (6, 2, 1), (4, 1, 3), (2, 3, 2), (1, 12, 1), (3, 2, 2)])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 80), splits, splits, st.integers(0, 10), st.integers(0, 3))
def test_stopped_anywhere_and_cut_otherwise_reads_the_same(num_samples, one, other, stop, seed):
    total = 10 * 12
    read = consumed(StatelessOrder(num_samples, seed=seed, total=total), *one, 0, stop)
    read += consumed(StatelessOrder(num_samples, seed=seed, total=total), *other, stop, 10 - stop)
    order = list(StatelessOrder(num_samples, seed=seed, total=total))
    assert read == [sorted(order[step * 12 : step * 12 + 12]) for step in range(10)]
    for epoch in range(total // num_samples):
        assert sorted(order[epoch * num_samples : (epoch + 1) * num_samples]) == list(range(num_samples))


@settings(max_examples=30, deadline=None)
@given(splits, splits, st.integers(0, 10), st.integers(0, 3))
def test_mixed_domains_cut_otherwise_read_the_same(one, other, stop, seed):
    def order():
        rounds = [[0.5, 0.5], [0.9, 0.1], [0.25, 0.75], [0.3, 0.7]]
        return DomainOrder([range(7), range(7, 40)], rounds, round_size=36, seed=seed, total=120)

    read = consumed(order(), *one, 0, stop) + consumed(order(), *other, stop, 10 - stop)
    whole = list(order())
    assert read == [sorted(whole[step * 12 : step * 12 + 12]) for step in range(10)]


def test_a_trainer_that_resumes_with_another_cut_reads_the_same_blocks(tmp_path):
    def train(folder, batch_size, accumulation, stop=None):
        seen = []
        made = trainer(
            folder, max_steps=10, per_device_train_batch_size=batch_size, gradient_accumulation_steps=accumulation
        )
        score = made.get_batch_samples

        def noted(*args):
            samples, counts = score(*args)
            seen.append(sorted(i for batch in samples for i in batch["sample_ids"].tolist()))
            return samples, counts

        made.get_batch_samples = noted
        if stop:
            stop_after(made, stop)
        made.train(resume_from_checkpoint=True)
        return seen

    whole = train(tmp_path / "whole", 4, 1)
    cut = (
        train(tmp_path / "cut", 4, 1, stop=4)
        + train(tmp_path / "cut", 1, 4, stop=6)
        + train(tmp_path / "cut", 2, 2)
    )
    assert cut == whole
    blocks = len(packed())
    order = list(StatelessOrder(blocks, seed=42, total=40))
    assert whole == [sorted(order[step * 4 : step * 4 + 4]) for step in range(10)]
    assert json.loads((tmp_path / "cut" / "checkpoint-6" / "origin.json").read_text())["samples"] == 24


def test_kinds_of_functions_are_told_apart(plain, tmp_path):
    one, other = (
        objective(target=KdTarget(partial(generalized_jsd, beta=beta), mixture_logprobs)) for beta in (0.5, 0.9)
    )
    stopped(tmp_path, objective=one)
    with pytest.raises(DataError, match=r"objective.target.divergence.keywords.beta was 0.5 and is 0.9 now"):
        trainer(tmp_path, objective=other).train(resume_from_checkpoint=True)

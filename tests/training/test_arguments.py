"""Every field of the installed `TrainingArguments` works as in `transformers.Trainer`, or is refused by its "
"name."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers.trainer
from transformers import (
    EarlyStoppingCallback,
    MambaConfig,
    MambaForCausalLM,
    ProgressCallback,
    TrainerCallback,
    TrainingArguments,
)

from collegium.base.errors import RecipeError
from collegium.training.arguments import REFUSED, WORKS, own_arguments
from collegium.training.trainer import DistillationTrainer
from tests.support.pico import TEXTS, byte_tokenizer, pico_llama
from tests.support.runs import arguments, packed, same, trainer_of, weights_of


ROWS = [{"text": text} for text in TEXTS]
FIELDS = {field.name: field for field in dataclasses.fields(TrainingArguments)}


def test_every_field_of_the_installed_version_is_in_one_table():
    assert set(FIELDS) == set(WORKS) | set(REFUSED), "put new fields into src/collegium/training/arguments.py"
    assert not set(WORKS) & set(REFUSED)


def test_the_page_has_both_tables():
    page = Path("docs/arguments.md").read_text(encoding="utf-8")
    for name, note in WORKS.items():
        assert f"| `{name}` | works | {note} |" in page
    for name, note in REFUSED.items():
        assert f"| `{name}` | refused | {note} |" in page


OTHER_VALUES = {
    "torch_compile_backend": "eager",
    "torch_compile_mode": "default",
    "liger_kernel_config": {"rope": True},
    "hub_strategy": "end",
    "parallelism_config": object(),
    "label_names": ["labels"],
    "length_column_name": "size",
    "label_smoothing_factor": 0.1,
    "fsdp": "full_shard",
    "fsdp_config": {"min_num_params": 1},
    "deepspeed": {"zero_optimization": {"stage": 1}},
}
"""Of refused fields that are not true or false."""


@pytest.mark.parametrize("name", REFUSED)
def test_refused_fields_are_named_when_the_trainer_is_made(tmp_path, name):
    args = arguments(tmp_path)
    default = FIELDS[name].default
    setattr(args, name, OTHER_VALUES.get(name, not default))  # past what upstream itself refuses on this machine
    with pytest.raises(RecipeError, match=rf"TrainingArguments\.{name} is .*{re.escape(REFUSED[name])}"):
        own_arguments(args)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train_sampling_strategy": "group_by_length"}, "train_sampling_strategy is 'group_by_length'"),
        ({"optim": "lomo"}, "optim is 'lomo'"),
        ({"optim": "galore_adamw_layerwise"}, "optim is 'galore_adamw_layerwise'"),
        ({"optim": "schedule_free_adamw"}, "optim is 'schedule_free_adamw'"),
        ({"debug": "tpu_metrics_debug"}, "debug is tpu_metrics_debug"),
        ({"accelerator_config": {"split_batches": True}}, "accelerator_config.split_batches is True"),
    ],
)
def test_values_that_do_not_work_are_named(tmp_path, changes, words):
    with pytest.raises(RecipeError, match=words):
        trainer_of(tmp_path, **changes)


def group(trainer, key):
    return trainer.create_optimizer().param_groups[0][key]


def rates(trainer, steps=8):
    trainer.create_optimizer_and_scheduler(steps)
    found = []
    for _ in range(steps):
        found.append(round(trainer.lr_scheduler.get_last_lr()[0], 6))
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    return found


def loader(trainer, name):
    return getattr(trainer.get_train_dataloader().base_dataloader, name)


def ddp(trainer, name):
    return getattr(trainer.accelerator.ddp_handler, name)


@pytest.mark.parametrize(
    ("changes", "see", "expected"),
    [
        ({"per_device_train_batch_size": 3}, lambda t: t.epochs.samples_per_step, 3),
        ({"gradient_accumulation_steps": 4}, lambda t: t.epochs.samples_per_step, 8),
        ({"max_steps": 5}, lambda t: t.epochs.num_steps, 5),
        ({"max_steps": -1, "num_train_epochs": 2.5}, lambda t: t.epochs.num_steps, 43),
        ({"learning_rate": 0.5}, lambda t: group(t, "lr"), 0.5),
        ({"weight_decay": 0.3}, lambda t: group(t, "weight_decay"), 0.3),
        ({"adam_beta1": 0.7}, lambda t: group(t, "betas")[0], 0.7),
        ({"adam_beta2": 0.7}, lambda t: group(t, "betas")[1], 0.7),
        ({"adam_epsilon": 0.1}, lambda t: group(t, "eps"), 0.1),
        ({"optim": "sgd"}, lambda t: type(t.create_optimizer()), torch.optim.SGD),
        ({"lr_scheduler_type": "constant"}, lambda t: rates(t)[-1], 0.01),
        ({"warmup_steps": 4}, lambda t: rates(t)[:5], [0, 0.0025, 0.005, 0.0075, 0.01]),
        ({"warmup_steps": 0.5}, lambda t: rates(t)[:5], [0, 0.0025, 0.005, 0.0075, 0.01]),
        (
            {"lr_scheduler_type": "cosine_with_restarts", "lr_scheduler_kwargs": {"num_cycles": 2}},
            lambda t: rates(t)[4],
            0.01,
        ),
        ({"bf16": True}, lambda t: t.accelerator.mixed_precision, "bf16"),
        ({"disable_tqdm": False}, lambda t: t.pop_callback(ProgressCallback) is not None, True),
        ({"dataloader_num_workers": 2}, lambda t: loader(t, "num_workers"), 2),
        (
            {"dataloader_num_workers": 1, "dataloader_persistent_workers": True},
            lambda t: loader(t, "persistent_workers"),
            True,
        ),
        (
            {"dataloader_num_workers": 1, "dataloader_prefetch_factor": 5},
            lambda t: loader(t, "prefetch_factor"),
            5,
        ),
        (
            {"dataloader_num_workers": 1, "dataloader_multiprocessing_context": "spawn"},
            lambda t: loader(t, "multiprocessing_context").get_start_method(),
            "spawn",
        ),
        ({"accelerator_config": {"non_blocking": True}}, lambda t: t.accelerator.non_blocking, True),
        ({"ddp_find_unused_parameters": True}, lambda t: ddp(t, "find_unused_parameters"), True),
        ({"ddp_bucket_cap_mb": 7}, lambda t: ddp(t, "bucket_cap_mb"), 7),
        ({"ddp_broadcast_buffers": False}, lambda t: ddp(t, "broadcast_buffers"), False),
        ({"ddp_static_graph": True}, lambda t: ddp(t, "static_graph"), True),
        ({"save_total_limit": 3}, lambda t: t.checkpoints.keep, 3),
        ({"save_total_limit": -1}, lambda t: t.checkpoints.keep, 1_000_000),
        (
            {"train_sampling_strategy": "sequential", "max_steps": -1, "num_train_epochs": 2},
            lambda t: list(t._get_train_sampler()),
            list(range(34)),
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_fields_that_show_in_what_is_made(tmp_path, changes, see, expected):
    assert see(trainer_of(tmp_path, **changes)) == expected


@pytest.mark.parametrize("name", ["seed", "data_seed"])
def test_seeds_set_the_order(tmp_path, name):
    one, other = (list(trainer_of(tmp_path, **{name: seed})._get_train_sampler()) for seed in (1, 2))
    assert one != other


def history(tmp_path, *, callbacks=(), metrics=None, rows=ROWS[:3], **changes):
    trainer = DistillationTrainer(
        pico_llama(0),
        teachers=[pico_llama(1)],
        args=arguments(tmp_path, **changes),
        train_dataset=packed(),
        eval_dataset=rows,
        processing_class=byte_tokenizer(),
        callbacks=list(callbacks),
        compute_metrics=metrics,
        block_size=32,
    )
    trainer.train()
    return trainer


def steps_with(trainer, key):
    return [line["step"] for line in trainer.state.log_history if key in line]


def checkpoints(folder):
    return sorted(int(path.name.removeprefix("checkpoint-")) for path in folder.glob("checkpoint-*"))


@pytest.mark.parametrize(
    ("changes", "key", "expected"),
    [
        ({"logging_steps": 2}, "loss", [2]),
        ({"logging_steps": 2, "logging_first_step": True}, "loss", [1, 2]),
        ({"logging_strategy": "no"}, "loss", []),
        ({"eval_strategy": "steps", "eval_steps": 2}, "eval_loss", [2, 3]),
        ({"eval_strategy": "steps", "eval_steps": 1, "eval_delay": 2}, "eval_loss", [2, 3]),
        ({"eval_on_start": True}, "eval_loss", [0]),
        ({"skip_memory_metrics": False}, "train_mem_cpu_alloc_delta", [3]),
        ({"include_num_input_tokens_seen": True}, "num_input_tokens_seen", [1, 2, 3, 3]),
        ({"debug": "underflow_overflow"}, "loss", [1, 2, 3]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_fields_that_show_in_the_log(tmp_path, changes, key, expected):
    assert steps_with(history(tmp_path, **changes), key) == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"save_strategy": "steps", "save_steps": 2}, [2, 3]),
        ({"save_strategy": "steps", "save_steps": 1, "save_total_limit": 2}, [2, 3]),
        ({"save_strategy": "no"}, []),
    ],
)
def test_fields_that_show_in_checkpoints(tmp_path, changes, expected):
    history(tmp_path, **changes)
    assert checkpoints(tmp_path) == expected


@pytest.mark.parametrize(
    "changes",
    [{"neftune_noise_alpha": 5.0}, {"max_grad_norm": 1e-9, "optim": "sgd"}, {"optim": "adafactor"}],
    ids=lambda value: "-".join(value),
)
def test_fields_that_show_in_the_weights(tmp_path, changes):
    plain = {name: value for name, value in changes.items() if name == "optim" and len(changes) > 1}
    trainers = [trainer_of(tmp_path, **found) for found in (plain, changes)]
    for trainer in trainers:
        trainer.train()
    assert not same(*map(weights_of, trainers))


def test_the_cache_of_the_device_is_emptied(tmp_path, monkeypatch):
    emptied = []
    monkeypatch.setattr(transformers.trainer, "clear_device_cache", lambda: emptied.append(1))
    trainer_of(tmp_path, torch_empty_cache_steps=2).train()
    assert len(emptied) == 2  # in steps 0 and 2


class OutOfMemory(DistillationTrainer):
    """A trainer on a device with room for one block."""

    seen: list[int]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if len(inputs["input_ids"]) > 1:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        self.seen += inputs["sample_ids"].tolist()
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


def test_a_smaller_batch_is_found_and_all_blocks_are_read(tmp_path):
    trainer = OutOfMemory(
        pico_llama(0),
        teachers=[pico_llama(1)],
        args=arguments(tmp_path, max_steps=-1, num_train_epochs=1, auto_find_batch_size=True),
        train_dataset=packed(texts=TEXTS[:4]),
        processing_class=byte_tokenizer(),
    )
    trainer.seen = []
    trainer.train()
    assert sorted(trainer.seen) == list(range(len(packed(texts=TEXTS[:4]))))
    assert trainer.state.global_step == len(trainer.seen)


class Spoil(TrainerCallback):
    """Makes the student useless after a step."""

    def on_step_end(self, args, state, control, model, **_):
        if state.global_step == 2:
            with torch.no_grad():
                model.model.norm.weight.mul_(50)


def test_the_best_model_is_kept_and_loaded(tmp_path):
    options = {"save_strategy": "steps", "eval_strategy": "steps", "save_steps": 1, "eval_steps": 1}
    trainer = history(tmp_path, callbacks=[Spoil()], load_best_model_at_end=True, save_total_limit=1, **options)
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-1")
    best = min(line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(best, rel=1e-6)
    assert checkpoints(tmp_path) == [1]  # as upstream leaves it with a limit of one


@pytest.mark.parametrize(("greater", "expected"), [(True, 1), (False, 3)])
def test_the_best_is_by_the_metric_that_is_named(tmp_path, greater, expected):
    values = iter([3.0, 2.0, 1.0])
    trainer = history(
        tmp_path,
        metrics=lambda _: {"own": next(values)},
        save_strategy="best",
        eval_strategy="steps",
        eval_steps=1,
        metric_for_best_model="own",
        greater_is_better=greater,
    )
    assert trainer.state.best_global_step == expected
    assert expected in checkpoints(tmp_path)


def test_states_of_callbacks_are_restored(tmp_path):
    def run(steps, resume=None):
        stop = EarlyStoppingCallback(early_stopping_patience=3, early_stopping_threshold=100.0)
        trainer = DistillationTrainer(
            pico_llama(0),
            args=arguments(
                tmp_path,
                max_steps=steps,
                save_strategy="steps",
                save_steps=2,
                eval_strategy="steps",
                eval_steps=1,
                metric_for_best_model="loss",
                restore_callback_states_from_checkpoint=True,
            ),
            train_dataset=packed(),
            eval_dataset=ROWS[:2],
            processing_class=byte_tokenizer(),
            callbacks=[stop],
            block_size=32,
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    run(2)
    assert run(9, resume=True).state.global_step == 4  # the first is the best, and three more are no better


def trained(tmp_path, **changes):
    return history(tmp_path, max_steps=1, per_device_eval_batch_size=2, **changes)


def test_predict_gives_logits_and_labels_of_packed_rows(tmp_path):
    output = trained(tmp_path).predict(ROWS[:3])
    assert output.predictions.shape == (*output.label_ids.shape, 260)
    kept = output.label_ids[:, 1:] != -100
    logits = torch.from_numpy(output.predictions[:, :-1])[torch.from_numpy(kept)]
    labels = torch.from_numpy(output.label_ids[:, 1:])[torch.from_numpy(kept)]
    nll = torch.nn.functional.cross_entropy(logits, labels)
    assert float(nll) == pytest.approx(output.metrics["test_loss"], rel=0.1)  # a mean over batches, as upstream's


def test_predictions_are_of_documents_apart(tmp_path):
    config = MambaConfig(vocab_size=260, hidden_size=16, num_hidden_layers=1, state_size=4, initializer_range=0.5)
    trainer = DistillationTrainer(
        MambaForCausalLM(config),
        args=arguments(tmp_path),
        eval_dataset=ROWS,
        processing_class=byte_tokenizer(),
        block_size=64,
    )
    output = trainer.predict(ROWS)
    kept = torch.from_numpy(output.label_ids[:, 1:] != -100)
    logits = torch.from_numpy(output.predictions[:, :-1])[kept]
    nll = torch.nn.functional.cross_entropy(logits, torch.from_numpy(output.label_ids[:, 1:])[kept])
    assert float(nll) == pytest.approx(trainer.evaluate()["eval_nll"], rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "see"),
    [
        ({"prediction_loss_only": True}, lambda output: output.predictions is None),
        ({"eval_do_concat_batches": False}, lambda output: isinstance(output.predictions, list)),
        ({"eval_accumulation_steps": 1}, lambda output: isinstance(output.predictions, np.ndarray)),
        ({"eval_use_gather_object": True}, lambda output: len(output.predictions) > 0),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_fields_of_predictions(tmp_path, changes, see):
    assert see(trained(tmp_path, **changes).predict(ROWS[:6]))


def test_own_metrics_see_what_they_ask_for(tmp_path):
    seen = []

    def metrics(found):
        seen.append((found.inputs is not None, found.losses is not None))
        return {"accuracy_of_mine": float((found.predictions.argmax(-1) == 3).mean())}

    trainer = trained(tmp_path, metrics=metrics, include_for_metrics=["inputs", "loss"])
    assert "eval_accuracy_of_mine" in trainer.evaluate()
    assert seen == [(True, True)]
    by_domain = trainer.evaluate({"cats": ROWS[:2], "dogs": ROWS[2:4]})
    assert {"eval_cats_accuracy_of_mine", "eval_dogs_accuracy_of_mine"} <= by_domain.keys()


def test_own_metrics_batch_by_batch(tmp_path):
    calls = []

    def metrics(found, compute_result):
        calls.append(compute_result)
        return {"batches": len(calls)}

    trainer = trained(tmp_path, metrics=metrics, batch_eval_metrics=True)
    logs = trainer.evaluate(ROWS[:6])
    assert logs["eval_batches"] == len(calls) > 1
    assert calls[-1]


def test_logits_can_be_made_less_before_they_are_kept(tmp_path):
    trainer = trained(tmp_path, metrics=lambda found: {"width": found.predictions.ndim})
    trainer.preprocess_logits_for_metrics = lambda logits, labels: logits.argmax(-1)
    assert trainer.evaluate()["eval_width"] == 2


class Talk(TrainerCallback):
    """Uses the model as callbacks of others do."""

    def __init__(self):
        self.heard = {}

    def on_step_end(self, args, state, control, model, **_):
        self.heard["config"] = model.config.to_dict()["model_type"]
        self.heard["generated"] = model.generate(torch.arange(4)[None], max_new_tokens=2).shape
        self.heard["logits"] = model(input_ids=torch.arange(4)[None]).logits.shape
        self.heard["rows"] = len(model.get_input_embeddings().weight)
        model.save_pretrained(f"{args.output_dir}/own")


def test_callbacks_find_a_model_of_transformers(tmp_path):
    talk = Talk()
    trainer = history(tmp_path, callbacks=[talk], max_steps=1)
    assert talk.heard == {"config": "llama", "generated": (1, 6), "logits": (1, 4, 260), "rows": 260}
    assert (tmp_path / "own" / "model.safetensors").is_file()
    assert trainer.model.config.model_type == "llama"
    assert trainer.model.get_output_embeddings().weight.shape == (260, 32)
    assert trainer.model.generate(torch.arange(4)[None], max_new_tokens=1).shape == (1, 5)
    trainer.create_model_card(model_name="x")
    assert (tmp_path / "README.md").is_file()


def test_the_students_own_setting_of_its_cache_stays(tmp_path):
    student = pico_llama(0)
    trainer_of(tmp_path, student=student)
    assert student.config.use_cache is True


def test_an_infinite_perplexity_ends_no_run(tmp_path):
    trainer = trained(tmp_path)
    with torch.no_grad():
        trainer.distillation_model.causal_lm.model.norm.weight.mul_(2000)
    assert trainer.evaluate()["eval_perplexity"] == float("inf")

"""The training loop: equivalent cuts of a step, resuming, saving, and what it refuses."""

import json
import math

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer

from collegium.base.errors import DataError, NumericError, TeacherError
from collegium.fused.chunked import KdTarget
from collegium.losses.divergences import forward_kl
from collegium.losses.fusion import mixture_logprobs
from collegium.losses.weighting import Weighting
from collegium.signals.metrics import read_jsonl
from collegium.teachers.aligned import AlignedTeacher
from collegium.training.callbacks import MetricsFile
from collegium.training.objective import Objective, term_names
from collegium.training.terms.balancing import GradientFree
from collegium.training.terms.features import HiddenStatesTerm
from collegium.training.trainer import DistillationTrainer
from tests.support.metrics_table import is_in_the_table
from tests.support.pico import TEXTS, byte_tokenizer, pico_llama
from tests.support.runs import arguments, packed, same, stop_after, trainer_of, weights_of
from tests.support.small_tokenizers import sentencepiece_bpe


def objective_with_features(*, balance: bool = False) -> Objective:
    torch.manual_seed(7)
    feature = HiddenStatesTerm((32, 2), [(32, 2)] * 2)
    return Objective(
        ["llama-1", "llama-2"],
        weighting=Weighting("entropy", "sequence", 0.5),
        feature_weight=0.1,
        features=[feature],
        balancer=GradientFree(term_names(1)) if balance else None,
        chunk_size=13,
    )


@pytest.mark.parametrize("balance", [False, True])
def test_accumulation_is_one_batch(tmp_path, balance):
    """8 x 1 = 1 x 8, over three steps, with blocks of unequal lengths."""
    results = []
    for batch_size, accumulation in ((8, 1), (1, 8), (2, 4)):
        trainer = trainer_of(
            tmp_path,
            objective=objective_with_features(balance=balance),
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            learning_rate=1e-3,
        )
        trainer.train()
        results.append(
            (weights_of(trainer), [line["loss"] for line in trainer.state.log_history if "loss" in line])
        )
    for weights, losses in results[1:]:
        assert losses == pytest.approx(results[0][1], rel=1e-5)
        for name, weight in weights.items():
            assert torch.allclose(weight, results[0][0][name], atol=2e-5), name


def test_first_logged_loss_is_the_global_mean(tmp_path):
    trainer = trainer_of(tmp_path, num_teachers=0, max_steps=1, gradient_accumulation_steps=4)
    trainer.train()
    line = trainer.state.log_history[0]
    assert line["loss"] == pytest.approx(line["cross_entropy"], rel=1e-6)


UPSTREAM = {"learning_rate", "grad_norm", "train_loss", "total_flos"}
"""What `transformers.Trainer` logs besides, with rates of samples and steps."""


def test_the_logged_terms_times_their_weights_are_the_loss(tmp_path):
    """The convention of docs/metrics.md, where there are two feature terms of different weights."""
    torch.manual_seed(7)
    features = [HiddenStatesTerm((32, 2), [(32, 2)] * 2, weight=weight) for weight in (0.5, 2.0)]
    objective = Objective(
        ["llama-1", "llama-2"], kd_weight=0.7, ce_weight=0.6, feature_weight=0.1, features=features, chunk_size=13
    )
    trainer = trainer_of(tmp_path, objective=objective, gradient_accumulation_steps=2)
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    for line in lines:
        terms = 0.7 * line["kd_loss"] * line["kd_coverage"] + 0.6 * line["cross_entropy"]
        assert line["loss"] == pytest.approx(terms + 0.1 * line["feature_loss"], rel=1e-5)
        assert line["feature_loss"] == pytest.approx(0.5 * line["feature/0"] + 2.0 * line["feature/1"], rel=1e-6)
    logged = {key for line in trainer.state.log_history for key in line} - UPSTREAM
    assert not {key for key in logged if not is_in_the_table(key) and not key.endswith("per_second")}


def test_two_runs_are_bit_identical(tmp_path):
    runs = []
    for _ in range(2):
        trainer = trainer_of(tmp_path, objective=objective_with_features())
        trainer.train()
        runs.append(weights_of(trainer))
    assert same(*runs)


def test_resumed_is_uninterrupted_bit_for_bit(tmp_path):
    """With dropout in the student, so that random states count."""
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "gradient_accumulation_steps": 2}

    def trainer(folder, steps=6):
        return trainer_of(
            folder,
            objective=objective_with_features(balance=True),
            student=pico_llama(0, dropout=0.3),
            **{**options, "max_steps": steps},
        )

    whole = trainer(tmp_path / "whole")
    whole.train()
    first = trainer(tmp_path / "stopped")
    stop_after(first, 3)
    first.train()
    assert first.state.global_step == 3
    second = trainer(tmp_path / "stopped")
    second.train(resume_from_checkpoint=True)
    assert same(weights_of(whole), weights_of(second))


def test_resume_with_nothing_to_resume_starts(tmp_path):
    trainer = trainer_of(tmp_path)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 3


def test_resume_falls_back_from_a_damaged_checkpoint(tmp_path, caplog):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = trainer_of(tmp_path, **options)
    whole.train()
    weights = tmp_path / "checkpoint-4" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    again = trainer_of(tmp_path, **options)
    again.train(resume_from_checkpoint=True)
    assert "model.safetensors is not as it was written" in caplog.text
    assert same(weights_of(whole), weights_of(again))


def test_metrics_file_has_each_step_once_after_resuming(tmp_path):
    path = tmp_path / "metrics.jsonl"
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    first = trainer_of(tmp_path, **options)
    first.add_callback(MetricsFile(path))
    stop_after(first, 3)
    first.train()
    second = trainer_of(tmp_path, **options)
    second.add_callback(MetricsFile(path))
    second.train(resume_from_checkpoint=True)
    steps = [line["step"] for line in read_jsonl(path) if "train/loss" in line]
    assert steps == [1, 2, 3, 4]
    names = set(read_jsonl(path)[0])
    assert {"train/kd_loss", "train/cross_entropy", "train/conflict", "train/effective_teachers"} <= names
    for figure in ("weight", "entropy", "cross_entropy", "kl", "invalid_fraction"):
        assert any(name.startswith("train/teacher/") and name.endswith(f"/{figure}") for name in names)


def test_nothing_in_a_checkpoint_is_a_pickle(tmp_path):
    trainer = trainer_of(tmp_path, save_strategy="steps", save_steps=3)
    trainer.train()
    trainer.save_model(str(tmp_path / "student"))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".jinja"}


def test_saved_student_is_plain_and_has_no_projections(tmp_path):
    trainer = trainer_of(tmp_path, objective=objective_with_features())
    trainer.train()
    trainer.save_model(str(tmp_path / "student"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    ids = torch.arange(12)[None]
    assert torch.equal(loaded(ids).logits, trainer.distillation_model.student.eval()(ids).logits)
    assert not any("projection" in name for name in loaded.state_dict())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "student")
    assert tokenizer.get_vocab() == byte_tokenizer().get_vocab()


def test_lora_student_trains_only_adapters_and_saves_merged(tmp_path):
    base = pico_llama(0)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    trainer = DistillationTrainer(
        base,
        teachers=[pico_llama(1)],
        args=arguments(tmp_path, save_strategy="steps", save_steps=3),
        train_dataset=packed(),
        processing_class=byte_tokenizer(),
        peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.train()
    trained = [name for name, p in trainer.model.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    trainer.save_model(str(tmp_path / "student"))
    after = trainer.distillation_model.causal_lm.state_dict()
    for name, value in before.items():
        layer = name.replace(".weight", ".base_layer.weight")
        assert torch.equal(after.get(name, after.get(layer)), value), "the base is left as it was"
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    ids = torch.arange(12)[None]
    ours = trainer.distillation_model.student.eval()(ids).logits
    assert torch.allclose(loaded(ids).logits, ours, atol=1e-5)
    assert (loaded(ids).logits - base_logits(before, ids)).abs().max() > 1e-4
    size = (tmp_path / "checkpoint-3" / "model.safetensors").stat().st_size
    assert size < 4 * sum(v.numel() for v in before.values()), "a checkpoint holds the adapters, not the base"


def base_logits(state: dict[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
    model = pico_llama(0)
    model.load_state_dict(state)
    return model(ids).logits


def test_python_api_packs_text_and_takes_names(tmp_path, model_folder):
    """What users of TRL write: names, rows of text, and nothing else."""
    trainer = DistillationTrainer(
        str(model_folder("student", 0)),
        teachers=[str(model_folder("one", 1)), pico_llama(2)],
        args=arguments(tmp_path),
        train_dataset=[{"text": text} for text in TEXTS],
        eval_dataset={"cats": [{"text": text} for text in TEXTS[:6]], "dogs": [{"text": TEXTS[1]}]},
        block_size=32,
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_nll"] < before["eval_nll"]
    assert after["eval_loss"] == after["eval_nll"]
    assert after["eval_perplexity"] == pytest.approx(math.exp(after["eval_nll"]))
    assert {"eval_cats/nll", "eval_dogs/kl/common", "eval_teacher/one/kl", "eval_agreement"} <= set(after)
    assert trainer.teachers[0].name == "one"


def test_teacher_with_another_tokenizer_is_aligned(tmp_path):
    tokenizer = sentencepiece_bpe()
    pico_llama(1, vocab_size=len(tokenizer)).save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    trainer = DistillationTrainer(
        pico_llama(0),
        teachers=[str(tmp_path / "other")],
        args=arguments(tmp_path / "run"),
        train_dataset=packed(),
        processing_class=byte_tokenizer(),
    )
    assert isinstance(trainer.teachers[0], AlignedTeacher)
    trainer.train()
    assert trainer.state.global_step == 3


def test_unreliable_teacher_stops_the_run(tmp_path):
    trainer = trainer_of(tmp_path)
    bad = trainer.teachers[1]
    with torch.no_grad():
        bad._base.model.model.norm.weight.fill_(math.nan)
    with pytest.raises(
        TeacherError, match=rf"teacher '{bad.name}': logits hold NaN or Inf at 100.0% of positions"
    ):
        trainer.train()


def test_student_that_is_not_finite_stops_before_the_update(tmp_path):
    student = pico_llama(0)
    trainer = trainer_of(tmp_path, student=student)
    with torch.no_grad():
        student.model.norm.weight[0] = math.nan
    before = weights_of(trainer)
    with pytest.raises(NumericError, match="step 1: the gradient is not finite"):
        trainer.train()
    for name, value in weights_of(trainer).items():
        assert torch.equal(value, before[name]) or bool(value.isnan().any())


def test_teachers_stay_as_they_are_and_out_of_the_student(tmp_path):
    trainer = trainer_of(tmp_path)
    teacher = trainer.teachers[0]._base.model
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    trainer.train()
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())
    theirs = {id(p) for p in teacher.parameters()}
    assert not theirs & {id(p) for p in trainer.model.parameters()}


def test_epochs_become_steps(tmp_path):
    blocks = packed()
    trainer = trainer_of(
        tmp_path, max_steps=-1, num_train_epochs=1.5, per_device_train_batch_size=4, dataset=blocks
    )
    trainer.train()
    assert trainer.state.global_step == math.ceil(1.5 * len(blocks) / 4)


def test_parity_with_the_plain_trainer_on_cross_entropy(tmp_path):
    """Without teachers this is ordinary training: same gradient as the model's own loss on unpacked text."""
    row = {"text": TEXTS[1][:30]}
    from collegium.data.blocks import pack_documents

    dataset = pack_documents([row], byte_tokenizer(), block_size=64)
    ours = trainer_of(tmp_path, num_teachers=0, max_steps=1, dataset=dataset, per_device_train_batch_size=1)
    ours.train()
    ids = byte_tokenizer()(row["text"])["input_ids"]
    theirs = Trainer(
        pico_llama(0),
        args=arguments(tmp_path, max_steps=1, per_device_train_batch_size=1),
        train_dataset=[{"input_ids": ids, "labels": ids}],
    )
    theirs.train()
    expected = dict(theirs.model.named_parameters())
    for name, value in ours.distillation_model.student.named_parameters():
        # Adam divides a gradient of 1e-9 by itself, and so enlarges the rounding of other products.
        assert torch.allclose(value, expected[name], atol=1e-5), name


def test_evaluate_without_text_says_what_to_give(tmp_path):
    with pytest.raises(ValueError, match="give eval_dataset"):
        trainer_of(tmp_path).evaluate()


def test_the_callers_arguments_stay_as_they_are(tmp_path):
    args = arguments(tmp_path, max_steps=-1, num_train_epochs=1)
    content = json.dumps(args.to_dict(), default=str)
    DistillationTrainer(pico_llama(0), args=args, train_dataset=packed(), processing_class=byte_tokenizer())
    assert json.dumps(args.to_dict(), default=str) == content


def test_gradient_checkpointing_changes_nothing(tmp_path):
    runs = []
    for enabled in (False, True):
        trainer = trainer_of(tmp_path)
        if enabled:
            trainer.distillation_model.activation_checkpointing_enable()
        trainer.train()
        runs.append(weights_of(trainer))
    for name, value in runs[0].items():
        assert torch.allclose(value, runs[1][name], atol=1e-6), name


def test_temperature_and_targets_reach_the_loss(tmp_path):
    losses = {}
    for temperature in (1.0, 4.0):
        target = KdTarget(forward_kl, mixture_logprobs, temperature=temperature)
        objective = Objective(["a", "b"], kd_weight=1.0, target=target)
        trainer = trainer_of(tmp_path, objective=objective, max_steps=1)
        trainer.train()
        losses[temperature] = trainer.state.log_history[0]["loss"]
    assert losses[1.0] != pytest.approx(losses[4.0], rel=1e-3)


def test_bfloat16_is_near_float32(tmp_path):
    """Matrix products in bfloat16, loss in float32."""
    losses = {}
    for bf16 in (False, True):
        trainer = trainer_of(tmp_path, max_steps=1, bf16=bf16)
        trainer.train()
        losses[bf16] = trainer.state.log_history[0]["loss"]
        assert all(p.dtype == torch.float32 for p in trainer.model.parameters())
    assert losses[True] == pytest.approx(losses[False], rel=1e-2)
    assert losses[True] != losses[False]


def test_gradient_checkpointing_by_the_trainers_own_argument(tmp_path):
    trainer = trainer_of(tmp_path, max_steps=1, gradient_checkpointing=True)
    trainer.train()
    assert trainer.distillation_model.causal_lm.is_gradient_checkpointing


def test_teachers_without_names_are_numbered(tmp_path):
    trainer = trainer_of(tmp_path, max_steps=1)  # both are called "teacher" after no name at all
    assert [teacher.name for teacher in trainer.teachers] == ["teacher-1", "teacher-2"]
    trainer.train()
    line = trainer.state.log_history[0]
    assert line["teacher/teacher-1/weight"] + line["teacher/teacher-2/weight"] == pytest.approx(1.0)


def test_the_objectives_names_are_the_teachers(tmp_path):
    trainer = trainer_of(tmp_path, objective=Objective(["small", "large"]), max_steps=1)
    assert [teacher.name for teacher in trainer.teachers] == ["small", "large"]
    with pytest.raises(ValueError, match=r"the objective names 3 teachers \['a', 'b', 'c'\], but 2 are given"):
        trainer_of(tmp_path, objective=Objective(["a", "b", "c"]))
    with pytest.raises(ValueError, match="the objective asks teachers, but there are none"):
        trainer_of(tmp_path, objective=Objective(kd_weight=0.5), num_teachers=0)
    with pytest.raises(ValueError, match=r"are called \['small', 'small'\]"):
        trainer_of(tmp_path, objective=Objective(["small", "small"]))


def test_unreliable_teacher_is_found_though_nothing_is_logged(tmp_path):
    trainer = trainer_of(tmp_path, logging_steps=100)
    with torch.no_grad():
        trainer.teachers[0]._base.model.model.norm.weight.fill_(math.nan)
    with pytest.raises(TeacherError, match="100.0% of positions"):
        trainer.train()


def test_only_damaged_checkpoints_are_an_error_not_a_new_start(tmp_path):
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    trainer_of(tmp_path, **options).train()
    for path in tmp_path.glob("checkpoint-*/model.safetensors"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="every checkpoint is damaged"):
        trainer_of(tmp_path, **options).train(resume_from_checkpoint=True)


def test_evaluate_on_other_text(tmp_path):
    trainer = trainer_of(tmp_path)
    first, second = ([{"text": text}] for text in TEXTS[:2])
    results = [trainer.evaluate(rows)["eval_nll"] for rows in (first, second, first)]
    assert results[0] == results[2] != results[1]


def test_features_of_a_student_in_half_precision_are_not_lost():
    """A teacher's state of 1e5 is beyond float16, and counts all the same."""
    from collegium.losses.features import squared_error

    student = torch.zeros(1, 1, 4, dtype=torch.float16)
    teacher = torch.full((1, 1, 4), 1e5)
    mask = torch.ones(1, 1, dtype=torch.bool)
    assert float(squared_error(student, teacher, mask, normalize=False)) == pytest.approx(1e10)

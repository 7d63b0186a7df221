"""There is something to train, and training it leaves the teachers as they are; else it is said at once."""

import logging

import pytest
import torch
from peft import LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from torchao.quantization import Int8WeightOnlyConfig, quantize_

from collegium.base.errors import DataError, RecipeError
from collegium.teachers.local import LocalTeacher
from collegium.training.trainer import DistillationTrainer
from tests.support.pico import byte_tokenizer, pico_llama
from tests.support.runs import arguments, packed


def lora():
    return LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")


def make(folder, student, teachers=(), **options):
    return DistillationTrainer(
        student,
        teachers=teachers,
        args=arguments(folder, max_steps=2),
        train_dataset=packed(),
        processing_class=byte_tokenizer(),
        **options,
    )


def the_same():
    model = pico_llama(0)
    return model, [model]


def base_of_adapters():
    model = pico_llama(0)
    return get_peft_model(model, lora()), [model]


def common_embeddings():
    model, teacher = pico_llama(0), pico_llama(1)
    model.set_input_embeddings(teacher.get_input_embeddings())
    model.tie_weights()
    return model, [teacher]


def common_storage():
    model, teacher = pico_llama(0), pico_llama(1)
    model.model.norm.weight = torch.nn.Parameter(teacher.model.norm.weight.detach()[:])
    return model, [teacher]


@pytest.mark.parametrize("parts", [the_same, base_of_adapters, common_embeddings, common_storage])
def test_trained_weights_of_a_teacher_are_refused(tmp_path, parts):
    student, teachers = parts()
    with pytest.raises(RecipeError, match="student and teacher 'teacher' share .* a teacher is frozen: load one"):
        make(tmp_path, student, teachers)
    assert any(weight.requires_grad for weight in student.parameters())  # nothing was frozen on the way


def test_the_base_of_adapters_that_are_put_on_here(tmp_path):
    model = pico_llama(0)
    with pytest.raises(RecipeError, match="student and teacher 'teacher' share"):
        make(tmp_path, model, [model], peft_config=lora())


def test_a_teacher_that_froze_the_student_before(tmp_path):
    model = pico_llama(0)
    teacher = LocalTeacher("one", model, vocab_size=260, fingerprint="x")
    with pytest.raises(
        RecipeError, match="none of its parameters is trained: it shares its weights with teacher 'one'"
    ):
        make(tmp_path, model, [teacher])


def test_frozen_weights_may_be_shared(tmp_path):
    model, teachers = common_embeddings()
    model.get_input_embeddings().requires_grad_(False)
    make(tmp_path, model, teachers).train()


def test_nothing_to_train(tmp_path):
    with pytest.raises(RecipeError, match="all have requires_grad=False; call"):
        make(tmp_path, pico_llama(0).requires_grad_(False))
    get_peft_model(pico_llama(0), lora()).save_pretrained(tmp_path / "adapter")
    with pytest.raises(RecipeError, match="loaded for inference; load them by .*is_trainable=True"):
        make(tmp_path, PeftModel.from_pretrained(pico_llama(0), tmp_path / "adapter"))
    again = PeftModel.from_pretrained(pico_llama(0), tmp_path / "adapter", is_trainable=True)
    make(tmp_path, again).train()


@pytest.mark.parametrize("config", [PromptTuningConfig, PrefixTuningConfig])
def test_prompts_are_no_weights(tmp_path, config):
    prompts = config(task_type="CAUSAL_LM", num_virtual_tokens=4)
    with pytest.raises(RecipeError, match="cannot be merged into the student's weights"):
        make(tmp_path, pico_llama(0), peft_config=prompts)
    with pytest.raises(RecipeError, match="teacher 'teacher': adapters of type .* lie in front of the text"):
        make(tmp_path, pico_llama(0), [get_peft_model(pico_llama(1), prompts)])


def test_adapters_on_adapters_are_refused(tmp_path):
    with pytest.raises(RecipeError, match="has adapters already: .* leave out peft_config"):
        make(tmp_path, get_peft_model(pico_llama(0), lora()), peft_config=lora())


def test_a_teacher_with_adapters_teaches_with_them(tmp_path):
    plain, adapted = pico_llama(1), get_peft_model(pico_llama(1), lora())
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_()
    losses = []
    for teacher in (plain, adapted):
        trainer = make(tmp_path, pico_llama(0), [teacher])
        trainer.train()
        losses.append(trainer.state.log_history[0]["kd_loss"])
    assert losses[0] != losses[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_half_precision_are_warned_of(tmp_path, caplog, dtype):
    with caplog.at_level(logging.WARNING):
        make(tmp_path, pico_llama(0, dtype=dtype))
    [warning] = [line for line in caplog.messages if "trained weights are" in line]
    assert "20 of the student's 20 trained weights are " + str(dtype)[6:] in warning
    caplog.clear()
    make(tmp_path, pico_llama(0, dtype=dtype), peft_config=lora())  # whose adapters are float32
    assert not [line for line in caplog.messages if "trained weights are" in line]


def test_a_quantised_teacher_says_what_its_model_says(tmp_path):
    teacher = pico_llama(1, tied=False)
    quantize_(teacher, Int8WeightOnlyConfig())
    trainer = make(tmp_path, pico_llama(0), [teacher])
    rows = [trainer.train_dataset[0]]
    inputs = trainer.data_collator(rows)
    from collegium.signals.contracts import Batch, Capability, predicted_positions

    batch = Batch.from_inputs(inputs)
    positions = predicted_positions(batch)
    signal = trainer.teachers[0].score(batch, positions, need=frozenset({Capability.SAMPLES})).signal
    hidden = signal.head(signal.hidden)
    logits = teacher(input_ids=batch.input_ids, position_ids=batch.position_ids).logits
    assert torch.allclose(hidden, logits.flatten(0, 1)[positions.index], atol=1e-4)
    trainer.train()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_teacher_with_quantised_activations_is_named(tmp_path):
    teacher = torch.ao.quantization.quantize_dynamic(pico_llama(1, tied=False), {torch.nn.Linear})
    with pytest.raises(DataError, match="teacher: is quantised together with its activations"):
        make(tmp_path, pico_llama(0), [teacher])


def test_a_quantised_student_is_named(tmp_path):
    student = pico_llama(0)
    student.is_quantized = True
    with pytest.raises(RecipeError, match="student: its weights are quantised"):
        make(tmp_path, student)

"""Teachers that spoil a run are named while it trains, once."""

import math
import shlex

import pytest
import torch

from collegium.losses.weighting import Weighting
from collegium.report import metric_names as names
from collegium.training.objective import Objective
from collegium.training.teacher_watch import POSITIONS, TeacherWatch
from collegium.training.trainer import DistillationTrainer
from tests.support.pico import byte_tokenizer, pico_llama
from tests.support.runs import arguments, packed, trainer_of


FINE = {"weight": 0.5, "entropy": 2.0, "weight_cross_entropy": 2.1, "cross_entropy": 2.1, "kl": 0.8}


def line(**changes):
    """A line of the log of teachers `x` and `y`; keys of `changes` are `x_weight` and the like."""
    figures = {"x": {**FINE}, "y": {**FINE, "cross_entropy": 2.3}}
    for key, value in changes.items():
        name, _, metric = key.partition("_")
        figures[name][metric] = value
    flat = {names.of_teacher(n, m): value for n, own in figures.items() for m, value in own.items()}
    return {**flat, names.EFFECTIVE_TEACHERS: 1.5}


def said(*lines, positions=POSITIONS):
    watch = TeacherWatch(["x", "y"], 260)
    read = 0
    found = []
    for logged in lines:
        read += positions
        found += watch.add(logged, {names.read("predicted"): read})
    return found


def test_nothing_is_said_of_teachers_that_are_fine():
    assert said(*[line()] * 5) == []
    assert said(line(y_entropy=1.0, y_weight=0.5)) == [], "no more than its share"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"y_entropy": 0.1, "y_weight": 0.99}, "teacher 'y' is overconfident: an entropy of 0.10 nats"),
        ({"x_entropy": math.log(260) - 0.01}, "teacher 'x' says nothing: its entropy is 5.55 nats"),
        ({"x_kl": 2e-5}, "teacher 'x' is the student"),
        ({"y_cross_entropy": FINE["cross_entropy"]}, "teachers 'x' and 'y' predict the same"),
    ],
)
def test_each_fault_is_said_once_by_name(changes, words):
    [sentence] = said(*[line(**changes)] * 4)
    assert words in sentence


def test_what_to_do_can_be_typed():
    [sentence] = said(line(y_entropy=0.1, y_weight=0.99))
    assert shlex.split(sentence.split("`")[1]) == ["teachers.1.weight_temperature=fit"]


def test_a_few_tokens_are_no_evidence():
    bad = line(y_entropy=0.1, y_weight=0.99)
    assert said(bad, positions=POSITIONS - 1) == []
    assert said(bad, *[line()] * 9, positions=POSITIONS // 10) == [], "of a window, not of one line"
    assert len(said(*[bad] * 10, positions=POSITIONS // 10)) == 1


def test_a_teacher_that_never_spoke_is_not_judged():
    silent = {key: value for key, value in line().items() if not key.startswith("teacher/x")}
    assert said(silent) == []


def sharpened(factor: float):
    model = pico_llama(1)
    with torch.no_grad():
        model.lm_head.weight.mul_(factor)
    return model


def test_a_teacher_with_logits_times_50_is_named_in_a_run(tmp_path, capsys):
    trainer = DistillationTrainer(
        pico_llama(0),
        teachers=[pico_llama(2), sharpened(50.0)],
        objective=Objective(["plain", "sharp"], weighting=Weighting("entropy", "sequence", 0.5)),
        args=arguments(tmp_path, max_steps=12, per_device_train_batch_size=8, logging_steps=3),
        train_dataset=packed(),
        processing_class=byte_tokenizer(),
    )
    trainer.train()
    err = capsys.readouterr().err
    assert err.count("teacher 'sharp' is overconfident") == 1 and "teachers.1.weight_temperature=fit" in err
    assert "teacher 'plain' is overconfident" not in err


def test_equal_teachers_and_a_teacher_that_is_the_student_are_named_in_a_run(tmp_path, capsys):
    trainer = trainer_of(
        tmp_path,
        student=pico_llama(1),
        max_steps=10,
        per_device_train_batch_size=8,
        learning_rate=0.0,
        logging_steps=5,
    )
    trainer.train()
    err = capsys.readouterr().err
    assert err.count("teacher 'teacher-1' is the student") == 1 and "teacher-2' is the student" not in err

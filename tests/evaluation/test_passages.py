"""The token view's figures against plain loops in float64, and its words against the text."""

import math

import pytest
import torch

from collegium.evaluation.language_modeling import Rule
from collegium.evaluation.passages import Reading, read_passages
from collegium.losses.fusion import mixture_logprobs
from collegium.losses.weighting import Weighting
from collegium.models.head import ProjectionHead
from collegium.models.pretrained import last_hidden_states
from tests.support.held_out import held_out_of, teachers
from tests.support.pico import TEXTS, VOCAB_SIZE, byte_tokenizer, pico_llama


STUDENT = pico_llama(0)
TOKENIZER = byte_tokenizer()


def passage_of(asked, rule, num_tokens=12, num_alternatives=3):
    found = read_passages(
        held_out_of(asked),
        lambda batch: last_hidden_states(STUDENT, batch.input_ids, batch.position_ids),
        ProjectionHead.from_model(STUDENT, VOCAB_SIZE),
        Reading(rule, lambda ids: TOKENIZER.decode(list(ids)), num_tokens, num_alternatives),
    )
    return found["text"]


@torch.no_grad()
def test_figures_are_those_of_the_models_by_hand():
    tau = 0.05
    passage = passage_of(teachers(), Rule(Weighting("entropy", "token", tau)))
    text = passage.lead + "".join(passage.text)
    assert text == TEXTS[0][: len(text)] and len(passage.text) == 12
    ids = torch.tensor(TOKENIZER(TEXTS[0])["input_ids"])
    for t in range(12):
        label = int(ids[t + 1])
        q = STUDENT(ids[None, : t + 1]).logits[0, -1].double().softmax(-1)
        logits = [pico_llama(seed)(ids[None, : t + 1]).logits[0, -1].double() for seed in (1, 2)]
        entropies = [-float((p * p.log()).sum()) for p in (x.softmax(-1) for x in logits)]
        weights = torch.tensor([-h / tau for h in entropies]).softmax(-1).tolist()
        said = [(x / 1.5).softmax(-1) for x in logits]  # their target temperature
        own = [-float((p * p.log()).sum()) for p in said]
        mixture = weights[0] * said[0] + weights[1] * said[1]
        conflict = -float((mixture * mixture.log()).sum()) - sum(w * h for w, h in zip(weights, own, strict=True))
        assert passage.student.probability[t] == pytest.approx(float(q[label]), abs=1e-4)
        assert passage.target.probability[t] == pytest.approx(float(mixture[label]), abs=1e-4)
        assert passage.teachers["two"].probability[t] == pytest.approx(float(said[1][label]), abs=1e-4)
        assert [passage.teachers[name].weight[t] for name in ("one", "two")] == pytest.approx(weights, abs=1e-3)
        assert passage.teachers["one"].entropy[t] == pytest.approx(own[0], abs=1e-3)
        assert passage.conflict[t] == pytest.approx(conflict, abs=1e-3)
        best, p = passage.student.alternatives[t][0]
        assert p == pytest.approx(float(q.max()), abs=1e-4)
        if int(q.argmax()) < 128 and chr(int(q.argmax())).isprintable():
            assert best == TOKENIZER.decode([int(q.argmax())])


def test_an_absent_teacher_has_no_weight_and_says_nothing():
    passage = passage_of(teachers(broken=True), None)
    assert set(passage.teachers["two"].weight) == {0.0} and set(passage.teachers["one"].weight) == {1.0}
    assert set(passage.teachers["two"].entropy) == {None}
    assert passage.teachers["two"].alternatives == ((),) * 12
    assert max(passage.conflict) < 1e-3  # one voice does not contradict itself


def test_without_teachers_only_the_student_speaks():
    passage = passage_of([], None)
    assert passage.target is None and passage.teachers == {}


def test_the_longest_document_where_none_is_long_enough():
    longest = passage_of([], None, num_tokens=10_000)
    assert 12 < len(longest.text) < 10_000
    assert all(math.isfinite(p) for p in longest.student.probability)


def test_alternatives_are_sorted_and_as_many_as_asked_for():
    passage = passage_of(teachers(), Rule(Weighting("uniform"), mixture_logprobs), num_alternatives=5)
    for view in (passage.student, passage.target, *passage.teachers.values()):
        for found in view.alternatives:
            values = [p for _, p in found]
            assert len(found) == 5 and values == sorted(values, reverse=True)

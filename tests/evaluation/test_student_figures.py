"""Calibration of a student and its KL to its own target, against loops in float64."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from collegium.evaluation.language_modeling import Rule
from collegium.evaluation.summary import calibration_error, summarize
from collegium.losses.calibration import confidence_gaps
from collegium.losses.fusion import geometric_logprobs
from collegium.losses.weighting import Weighting
from collegium.models.head import ProjectionHead
from collegium.models.pretrained import last_hidden_states
from collegium.signals.contracts import Batch
from tests.support.held_out import held_out_of, teachers
from tests.support.pico import VOCAB_SIZE, pico_llama


OPTIONS = {"confidence": 0.9, "num_samples": 100, "seed": 0}


def ece_loop(confidence, right, bins):
    """Guo et al., equation 3: shares of the bins times |accuracy - confidence|."""
    error = 0.0
    for b in range(bins):
        inside = [i for i, c in enumerate(confidence) if b / bins < c <= (b + 1) / bins or (b == 0 and c == 0)]
        if inside:
            accuracy = sum(right[i] for i in inside) / len(inside)
            mean = sum(confidence[i] for i in inside) / len(inside)
            error += len(inside) / len(confidence) * abs(accuracy - mean)
    return error


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1000), st.booleans()), min_size=1, max_size=40), st.integers(1, 20))
def test_gaps_add_up_to_the_calibration_error(predictions, bins):
    confidence = [(c + 0.5) / 1001 for c, _ in predictions]  # no border of a bin, where rounding decides
    right = [float(r) for _, r in predictions]
    both = torch.tensor([confidence, right], dtype=torch.float64)
    gaps = confidence_gaps(*both, bins)
    error = float(gaps.sum(0).abs().sum()) / len(confidence)
    assert error == pytest.approx(ece_loop(confidence, right, bins), abs=1e-12)


def test_ends_of_bins():
    gaps = confidence_gaps(torch.tensor([0.0, 0.5, 1.0]), torch.tensor([0.0, 0.0, 0.0]), 2)
    assert gaps.tolist() == [[0, 0], [0.5, 0], [0, 1]]
    assert confidence_gaps(torch.zeros(0), torch.zeros(0), 15).shape == (0, 15)


STUDENT = pico_llama(0)


def measured(held_out, own=None):
    return held_out.measure_student(
        lambda batch: last_hidden_states(STUDENT, batch.input_ids, batch.position_ids),
        ProjectionHead.from_model(STUDENT, VOCAB_SIZE),
        own=own,
    )


def texts_of(held_out):
    """Input ids and labels of every segment, each a text of its own."""
    for item in held_out.domains["text"].batches():
        batch: Batch = item.batch
        for ids, mask, places in zip(batch.input_ids, batch.attention_mask, batch.position_ids, strict=True):
            starts = [*(places == 0).nonzero().flatten().tolist(), len(ids)]
            for start, end in pairwise(starts):
                if mask[start] and end - start > 1:
                    yield ids[start:end]


@torch.no_grad()
def test_calibration_error_of_a_student_by_hand():
    held_out, confidence, right = held_out_of([]), [], []
    for ids in texts_of(held_out):
        probs = STUDENT(ids[None]).logits[0].double().softmax(-1)
        for t in range(len(ids) - 1):
            confidence.append(float(probs[t].max()))
            right.append(float(probs[t].argmax() == ids[t + 1]))
    table = measured(held_out)["text"]
    expected = ece_loop(confidence, right, 15)
    assert expected > 0.05  # a random student, sure of nonsense
    assert calibration_error(table).value == pytest.approx(expected, rel=1e-5)
    summary = summarize({"text": table}, **OPTIONS)
    assert summary.domains["text"].figures.ece.value == pytest.approx(expected, rel=1e-5)
    assert summary.mean.ece == pytest.approx(expected, rel=1e-5)
    assert set(table.sums) == {"nll", "accuracy"}  # the bins are no figure of their own


@torch.no_grad()
@pytest.mark.parametrize("fusion", ["mixture", "geometric"])
def test_kl_to_the_students_own_target_by_hand(fusion):
    asked = teachers()
    held_out, tau, count = held_out_of(asked), 0.05, 0
    kl = target_entropy = 0.0
    for ids in texts_of(held_out):
        q = STUDENT(ids[None]).logits[0, :-1].double().log_softmax(-1)
        logits = [pico_llama(seed)(ids[None]).logits[0, :-1].double() for seed in (1, 2)]
        raw = [p.log_softmax(-1) for p in logits]
        entropies = torch.stack([-(p.exp() * p).sum(-1).mean() for p in raw])  # of the whole text
        weights = (-entropies / tau).softmax(-1)
        softened = [(p / 1.5).log_softmax(-1) for p in logits]
        if fusion == "mixture":
            p = sum(w * x.exp() for w, x in zip(weights, softened, strict=True)).log()
        else:
            p = sum(w * x for w, x in zip(weights, softened, strict=True)).log_softmax(-1)
        kl += float((p.exp() * (p - q)).sum())
        target_entropy -= float((p.exp() * p).sum())
        count += len(q)
    weighting = Weighting("entropy", "sequence", tau)
    rule = Rule(weighting, geometric_logprobs) if fusion == "geometric" else Rule(weighting)
    table = measured(held_out, rule)["text"]
    assert table.mean("kl/own") == pytest.approx(kl / count, rel=1e-4)
    assert table.mean("entropy/own") == pytest.approx(target_entropy / count, rel=1e-4)


def test_uniform_rule_has_the_common_target_and_nothing_else_moves():
    held_out = held_out_of(teachers())
    with_own, without = measured(held_out, Rule(Weighting("uniform")))["text"], measured(held_out)["text"]
    assert with_own.mean("kl/own") == pytest.approx(with_own.mean("kl/common"), rel=1e-6)
    assert set(with_own.sums) - set(without.sums) == {"kl/own", "entropy/own"}
    for name, total in without.sums.items():
        assert torch.equal(total, with_own.sums[name]), name


def test_own_target_without_a_teacher_that_speaks_costs_nothing():
    only_broken = [teachers(broken=True)[1]]
    table = measured(held_out_of(only_broken), Rule(Weighting()))["text"]
    assert table.mean("kl/own") == pytest.approx(0, abs=1e-6)
    with_both = measured(held_out_of(teachers(broken=True)), Rule(Weighting()))["text"]
    assert with_both.mean("kl/own") == pytest.approx(with_both.mean("teacher/one/kl"), rel=1e-5)
    assert math.isfinite(with_both.mean("entropy/own"))
    assert "kl/own" not in measured(held_out_of([]), Rule(Weighting()))["text"].sums

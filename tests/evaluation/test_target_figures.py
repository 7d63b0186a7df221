"""Figures of teachers and fused targets, against loops in float64."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from collegium.data.blocks import pack_documents
from collegium.data.collate import BlockCollator
from collegium.evaluation.language_modeling import HeldOut, Rule
from collegium.evaluation.preflight import Resampling, run_preflight, stretches_of
from collegium.evaluation.preflight_verdict import verdict
from collegium.evaluation.summary import covers_all, summarize_teachers
from collegium.evaluation.target_figures import (
    certain_is_right,
    effective_teachers,
    jensen_shannon,
    measure_target_figures,
    oracles,
)
from collegium.losses.joint_weighting import JointWeighting
from collegium.losses.weighting import Weighting
from collegium.signals.contracts import Positions, TeacherStats
from collegium.teachers.local import LocalTeacher
from collegium.teachers.restricted import RestrictedTeacher
from tests.support.pico import TEXTS, byte_tokenizer, pico_llama


def positions_of(segments):
    """Positions of segments of these lengths."""
    numbers = [n for n, length in enumerate(segments) for _ in range(length)]
    offsets = [i for length in segments for i in range(length)]
    count = len(numbers)
    return Positions(
        index=torch.arange(count),
        labels=torch.zeros(count, dtype=torch.int64),
        segments=torch.tensor(numbers),
        offsets=torch.tensor(offsets),
    )


def stats_of(entropies, losses, valid):
    tensors = [torch.tensor(x, dtype=torch.float64) for x in (entropies, losses)]
    return TeacherStats(tensors[0], tensors[1], tensors[1], torch.tensor(valid))


def certain_loop(entropies, losses, valid, groups):
    """Of each position: share of the least uncertain teachers that are best, share of all that are, 1 or 0."""
    rows = []
    for group in groups:
        members = [i for i, other in enumerate(groups) if other == group]
        means = {}
        for m in range(len(entropies[0])):
            own = [i for i in members if valid[i][m]]
            if own:
                means[m] = [sum(x[i][m] for i in own) / len(own) for x in (entropies, losses)]
        if len(means) < 2:
            rows.append((0.0, 0.0, 0.0))
            continue
        certain = {m for m in means if means[m][0] == min(v[0] for v in means.values())}
        best = {m for m in means if means[m][1] == min(v[1] for v in means.values())}
        rows.append((len(certain & best) / len(certain), len(best) / len(means), 1.0))
    return rows


small = st.integers(0, 8).map(lambda x: x / 4)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_certain_is_right_as_counted(data):
    segments = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    count, teachers = sum(segments), data.draw(st.integers(1, 4))
    table = lambda cell: data.draw(  # noqa: E731
        st.lists(st.lists(cell, min_size=teachers, max_size=teachers), min_size=count, max_size=count)
    )
    entropies, losses, valid = table(small), table(small), table(st.booleans())
    positions = positions_of(segments)
    numbers, offsets = positions.segments.tolist(), positions.offsets.tolist()
    for stretch, groups in {
        "token": list(range(count)),
        "sequence": numbers,
        "window:2": [(n, o // 2) for n, o in zip(numbers, offsets, strict=True)],
    }.items():
        found = certain_is_right(stats_of(entropies, losses, valid), positions, stretch)
        rows = torch.stack([found["right"], found["chance"], found["count"]], -1)
        expected = torch.tensor(certain_loop(entropies, losses, valid, groups), dtype=torch.float64)
        torch.testing.assert_close(rows, expected)


def test_chance_is_one_in_k_and_equal_teachers_are_right_as_often():
    positions = positions_of([2])
    found = certain_is_right(
        stats_of([[1.0, 2.0, 3.0]] * 2, [[5.0, 1.0, 7.0]] * 2, [[True] * 3] * 2), positions, "token"
    )
    assert found["right"].tolist() == [0, 0] and found["chance"].tolist() == pytest.approx([1 / 3] * 2)
    same = certain_is_right(stats_of([[1.0, 1.0]] * 2, [[2.0, 2.0]] * 2, [[True] * 2] * 2), positions, "token")
    assert same["right"].tolist() == same["chance"].tolist() == [1, 1]


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_oracles_are_ordered_and_as_counted(data):
    segments = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    teachers = data.draw(st.integers(1, 4))
    rows = [[data.draw(small) for _ in range(teachers)] for _ in range(sum(segments))]
    found = oracles(torch.tensor(rows, dtype=torch.float64), positions_of(segments))
    assert found["oracle/token"].tolist() == [min(row) for row in rows]
    start, total = 0, 0.0
    for length in segments:
        total += min(sum(row[m] for row in rows[start : start + length]) for m in range(teachers))
        start += length
    assert float(found["oracle/document"].sum()) == pytest.approx(total)
    best = min(sum(row[m] for row in rows) for m in range(teachers))
    assert sum(min(row) for row in rows) <= total + 1e-9 <= best + 2e-9


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.floats(-8, 8), min_size=4, max_size=4), min_size=1, max_size=3))
def test_jensen_shannon_against_its_definition(logits):
    logprobs = [torch.tensor([row], dtype=torch.float64).log_softmax(-1) for row in logits]
    found = jensen_shannon(logprobs)[0]
    for i, p in enumerate(p.exp()[0].tolist() for p in logprobs):
        for j, q in enumerate(q.exp()[0].tolist() for q in logprobs):
            mean = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
            kls = [sum(a * math.log(a / m) for a, m in zip(x, mean, strict=True)) for x in (p, q)]
            assert float(found[i, j]) == pytest.approx(sum(kls) / 2, abs=1e-9)
            assert 0 <= float(found[i, j]) <= math.log(2)


def test_effective_teachers():
    weights = torch.tensor([[1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0.0]], dtype=torch.float64)
    assert effective_teachers(weights).tolist() == pytest.approx([1.0, 3.0, 2.0])


def held_out(seeds=(1, 2), domains=("a", "b")):
    blocks = {
        name: pack_documents(
            [{"text": f"{name} {text}"} for text in TEXTS[:6]], byte_tokenizer(), block_size=32, domain=name
        )
        for name in domains
    }
    teachers = [
        LocalTeacher(f"t{seed}", pico_llama(seed), vocab_size=260, fingerprint=str(seed)) for seed in seeds
    ]
    return HeldOut(blocks, BlockCollator(pad_token_id=258, domains=list(domains)), batch_size=3, teachers=teachers)


RULE = Rule(Weighting("entropy", "window:4", 0.25))
ALTERNATIVES = {"uniform": Weighting("uniform"), "bayes": Weighting("bayes")}
OPTIONS = Resampling(num_samples=200)


def restricted(name="t1", domain=0):
    """The same text, one teacher asked about one domain only."""
    text = held_out()
    teachers = [RestrictedTeacher(t, [domain]) if t.name == name else t for t in text.teachers]
    blocks = {
        d: pack_documents(
            [{"text": f"{d} {text}"} for text in TEXTS[:6]], byte_tokenizer(), block_size=32, domain=d
        )
        for d in ("a", "b")
    }
    return HeldOut(blocks, BlockCollator(pad_token_id=258, domains=["a", "b"]), batch_size=3, teachers=teachers)


def test_a_teacher_is_not_credited_with_text_that_it_never_read():
    whole = run_preflight(held_out(), RULE, ALTERNATIVES, resampling=OPTIONS)
    part = run_preflight(restricted(), RULE, ALTERNATIVES, resampling=OPTIONS)
    assert part.heard["t1"] == {"a": 1.0, "b": 0.0, "mean": 0.5}
    own = part.teachers["t1"]
    assert own["a"] == pytest.approx(whole.teachers["t1"]["a"])
    assert math.isnan(own["b"]) and math.isnan(own["mean"]), "no mean over other text than that of others"
    assert part.best_teacher == "t2" and part.complete == ["t2"]
    assert part.oracle["b"] == part.teachers["t2"]["b"]
    assert math.isnan(part.calibration_gap["t1"]["b"])
    assert part.calibration_gap["t1"]["a"] == pytest.approx(whole.calibration_gap["t1"]["a"])


def flat(sums):
    """Figures that are one number a token."""
    return replace(sums, sums={name: value for name, value in sums.sums.items() if value.dim() == 1})


def test_what_a_teacher_never_read_is_neither_in_the_report_nor_compared():
    found = measure_target_figures(restricted(), {"fused": RULE}, RULE, stretches=(), with_pairs=False)
    tables = {
        d: replace(f.sums, sums={k: v for k, v in f.sums.sums.items() if v.dim() == 1}) for d, f in found.items()
    }
    measured = summarize_teachers(tables, confidence=0.95, num_samples=50, seed=0)
    assert measured.figures("a").teacher("t1").nll is not None
    assert measured.figures("b").teacher("t1").nll is None and measured.figures("b").teacher("t2").nll is not None
    assert measured.mean.teacher("t1").nll is None and measured.mean.teacher("t2").nll is not None
    assert measured.figures("b").teacher("t1").heard.value == 0.0
    assert not covers_all(tables, "t1") and covers_all(tables, "t2")


def test_figures_of_a_run_against_a_loop():
    text = held_out()
    found = measure_target_figures(text, {"recipe": RULE}, RULE, stretches=("token",))["a"]
    losses, conflicts, pair, effective, gaps = [], [], 0.0, 0.0, [0.0] * 15
    for batch in text.domains["a"].batches():
        labels = batch.positions.labels
        probs = [s.logits(slice(0, len(labels))).double().softmax(-1) for s in batch.signals]
        weights = RULE.weighting(batch.stats, batch.positions).double()
        for n, label in enumerate(labels.tolist()):
            rows = [p[n] for p in probs]
            mixed = sum(w * p for w, p in zip(weights[n], rows, strict=True))
            entropy = lambda p: float(-(p * p.log()).sum())  # noqa: E731
            losses.append(-math.log(float(mixed[label])))
            conflicts.append(
                entropy(mixed) - sum(float(w) * entropy(p) for w, p in zip(weights[n], rows, strict=True))
            )
            pair += entropy((rows[0] + rows[1]) / 2) - (entropy(rows[0]) + entropy(rows[1])) / 2
            effective += math.exp(entropy(weights[n].clamp_min(1e-300)))
            top = float(rows[0].max())
            gaps[max(0, math.ceil(top * 15) - 1)] += top - float(int(rows[0].argmax()) == label)
    count = len(losses)
    sums = found.sums
    assert sums.mean("rule/recipe/nll") == pytest.approx(sum(losses) / count, rel=1e-5)
    assert sums.mean("conflict") == pytest.approx(sum(conflicts) / count, rel=1e-4)
    assert sums.mean("effective_teachers") == pytest.approx(effective / count, rel=1e-5)
    ranked = torch.tensor(conflicts, dtype=torch.float64).quantile(0.95)
    assert found.conflict_quantile(0.95) == pytest.approx(float(ranked), rel=1e-4)
    assert float(sums.sums["pairs"].sum(0)[0, 1]) == pytest.approx(pair, rel=1e-4)
    found_gaps = float(sums.sums["teacher/t1/confidence_gaps"].sum(0).abs().sum())
    assert found_gaps == pytest.approx(sum(abs(gap) for gap in gaps), rel=1e-4)


def test_preflight_agrees_with_itself():
    result = run_preflight(held_out(), RULE, ALTERNATIVES, resampling=OPTIONS)
    assert set(result.certainty) == {"token", "window:4", "sequence"}
    for domain in ("a", "b", "mean"):
        assert result.oracle_token[domain] <= result.oracle_document[domain] <= result.oracle[domain] + 1e-9
        assert all(
            result.oracle_token[domain] <= row[domain] for name, row in result.rules.items() if "geo" not in name
        )
        assert sum(row[domain] for row in result.weights.values()) == pytest.approx(1)
        assert 1 <= result.effective_teachers[domain] <= 2 and 0 < result.ece["t1"][domain] < 1
    single = result.teachers[result.best_teacher]["mean"]
    for name, gain in result.gains.items():
        assert gain.value == pytest.approx(single - result.rules[name]["mean"])
        assert gain.low <= gain.value <= gain.high
    assert result.better["uniform"].value == pytest.approx(
        result.rules["recipe"]["mean"] - result.rules["uniform"]["mean"]
    )


def test_one_teacher_has_nothing_to_be_compared_with():
    result = run_preflight(held_out(seeds=(1,)), RULE, ALTERNATIVES, resampling=OPTIONS)
    assert math.isnan(result.certainty["token"].right["mean"])
    assert result.effective_teachers["mean"] == 1 and result.conflict["mean"] == pytest.approx(0, abs=1e-6)
    assert verdict(result)[1].startswith("There is one teacher")


def test_equal_teachers_gain_nothing():
    text = held_out(seeds=(1, 1))
    text.teachers[1].name = "twin"
    result = run_preflight(text, RULE, ALTERNATIVES, resampling=OPTIONS)
    assert result.gains["recipe"].value == pytest.approx(0, abs=1e-6)
    assert "too few documents to tell: 6" in verdict(result)[1]
    assert result.pairs["t1"]["twin"] == pytest.approx(0, abs=1e-6)


def test_stretches_are_those_that_the_rule_reads():
    assert stretches_of(RULE) == ("token", "window:4", "sequence")
    assert stretches_of(Rule(JointWeighting("ebkd", "causal:8"))) == ("token", "causal:8", "sequence")
    assert stretches_of(Rule(Weighting("bayes"))) == ("token", "sequence")
    assert stretches_of(Rule(JointWeighting("ca_mkd", "window:4"))) == ("token", "sequence")

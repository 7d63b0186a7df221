"""What a pre-flight says in words, for figures that are made up."""

import math
from dataclasses import replace

import pytest

from collegium.evaluation.advice import Advice
from collegium.evaluation.cost import RunCost
from collegium.evaluation.preflight import Certainty, Preflight
from collegium.evaluation.preflight_verdict import cost_verdict, verdict
from collegium.report.interval import Difference


def row(one, two):
    return {"a": one, "b": two, "mean": (one + two) / 2}


def difference(value, p):
    return Difference(value, value - 0.01, value + 0.01, p, 12)


GOOD = Preflight(
    documents={"a": 12, "b": 20},
    tokens={"a": 1200, "b": 2000},
    heard={"x": row(1.0, 0.97), "y": row(1.0, 1.0)},
    teachers={"x": row(3.0, 4.0), "y": row(4.0, 3.2)},
    rules={"recipe": row(3.0, 3.2), "uniform": row(3.3, 3.4)},
    oracle=row(3.0, 3.2),
    oracle_document=row(2.9, 3.1),
    oracle_token=row(2.0, 2.0),
    calibration_gap={"x": row(0.0, 0.1), "y": row(0.0, 0.1)},
    ece={"x": row(0.1, 0.1)},
    certainty={
        "token": Certainty(row(0.6, 0.6), row(0.5, 0.5)),
        "window:8": Certainty(row(0.9, 0.9), row(0.5, 0.5)),
        "sequence": Certainty(row(0.5, 0.5), row(0.5, 0.5)),
    },
    conflict=row(0.1, 0.1),
    conflict_95=row(0.3, 0.3),
    pairs={},
    weights={"x": row(0.8, 0.2), "y": row(0.2, 0.8)},
    effective_teachers=row(1.6, 1.6),
    gains={"recipe": difference(0.4, 0.001), "uniform": difference(0.15, 0.001)},
    better={"uniform": difference(-0.25, 0.01)},
    temperatures={},
)


ADVICE = Advice(
    alone={name: (f"teachers=[{{name: {name}, model: m}}]",) for name in "xy"},
    without={"y": ("teachers=[{name: x, model: m}]",)},
    calibrated={"y": ("teachers.1.weight_temperature=fit",)},
    rules={"uniform": ("objective.weighting=uniform",)},
    more_documents=("data.held_out_documents=128",),
    smaller_batch=("training.batch_size=4", "training.gradient_accumulation=2"),
    cached=("teachers.0.cached=true",),
    fewer_checkpoints=("training.keep_checkpoints=1",),
)


def text(**changes):
    return "\n".join(verdict(replace(GOOD, **changes), ADVICE))


def test_a_gain_beyond_chance():
    said = text()
    assert "Fusion can help: the fused target has 3.100 nats, the best single teacher ('x') 3.500" in said
    assert "+0.400 [+0.390, +0.410] (95% over documents), beyond chance" in said
    assert "Over window:8 the least uncertain teacher is the best one 90% of the time, 50% by chance" in said
    assert "something to go by" in said
    assert "In effect 1.6 of 2 teachers decide" in said
    assert all(
        word not in said for word in ("overconfident", "better target", "leave it out", "best teacher of each")
    )


@pytest.mark.parametrize(
    ("gain", "p", "start", "mend"),
    [
        (0.4, 0.2, "Fusion may help", "hold out more documents to know: `data.held_out_documents=128`"),
        (-0.4, 0.2, "Fusion may do harm", "within chance"),
        (-0.4, 0.001, "Fusion will not help", "distil from 'x' alone: `'teachers=[{name: x, model: m}]'`"),
        (0.004, 0.001, "Fusion makes no difference", "best teacher alone is cheaper: `'teachers="),
    ],
)
def test_other_gains(gain, p, start, mend):
    said = verdict(replace(GOOD, gains={"recipe": difference(gain, p)}), ADVICE)[1]
    assert said.startswith(start) and mend in said


@pytest.mark.parametrize("documents", [1, 3, 9])
def test_below_ten_documents_a_domain_nothing_is_called_anything(documents):
    """As p-values of a bootstrap over three documents say little, however small."""
    few = Difference(0.4, 0.39, 0.41, 0.001, documents)
    said = text(gains={"recipe": few}, better={"uniform": replace(few, value=0.2)})
    assert f"too few documents to tell: {documents}, 10 are needed in each domain" in said
    assert "beyond chance" not in said and "Rule 'uniform'" not in said
    assert "a 12 documents of 1,200 tokens, b 20 documents of 2,000 tokens" in said


def test_a_teacher_that_covers_one_domain_is_no_single_teacher():
    """`x` has by far the least loss, on the one domain that it speaks of."""
    nan = math.nan
    own = {"x": {"a": 1.0, "b": nan, "mean": nan}, "y": row(4.0, 3.2)}
    heard = {"x": row(1.0, 0.0), "y": row(1.0, 1.0)}
    found = replace(GOOD, teachers=own, heard=heard, gains={"recipe": difference(-0.4, 0.001)})
    assert found.best_teacher == "y"
    said = "\n".join(verdict(found, ADVICE))
    assert "distil from 'y' alone" in said and "'x'" not in said
    neither = replace(found, heard={"x": row(1.0, 0.0), "y": row(0.0, 1.0)}, gains={})
    said = "\n".join(verdict(neither, ADVICE))
    assert neither.best_teacher is None and "alone: `" not in said.split("\n")[1]
    assert "No teacher covers all text, so none could teach alone: x (covers a), y (covers b)" in said


def test_the_only_teacher_of_a_domain_is_not_left_out():
    idle = {"x": row(0.99, 1.0), "y": row(0.01, 0.0)}
    assert "leave it out and save its time: `'teachers=" in text(weights=idle)
    assert "leave it out" not in text(weights=idle, heard={"x": row(1.0, 0.0), "y": row(1.0, 1.0)})


def test_a_rule_that_is_better_is_named_only_beyond_chance():
    assert "Rule 'uniform' makes a better target here: " in text(better={"uniform": difference(0.2, 0.01)})
    assert "Rule 'uniform'" not in text(better={"uniform": difference(0.2, 0.06)})
    assert "Rule 'uniform'" not in text(better={"uniform": difference(0.004, 0.01)})


def test_what_else_is_wrong_is_said_with_its_mend():
    assert "`teachers.1.weight_temperature=fit`" in text(calibration_gap={"x": row(0, 0), "y": row(0.5, 1.0)})
    assert "'y' is overconfident by 0.75 nats" in text(calibration_gap={"x": row(0, 0), "y": row(0.5, 1.0)})
    assert "(a: x, b: y) has 2.600 nats, 0.500 less" in text(oracle=row(2.6, 2.6))
    assert "Teacher 'y' has 0.5% of the weight" in text(weights={"x": row(0.99, 1.0), "y": row(0.01, 0.0)})
    unclear = {**GOOD.certainty, "window:8": Certainty(row(0.5, 0.5), row(0.5, 0.5))}
    assert "weights by entropy know little here" in text(certainty=unclear)
    assert "know little" not in "\n".join(verdict(replace(GOOD, certainty=unclear), reads_entropies=False))


COST = RunCost(
    seconds={"start": 10.0, "steps": 50.0},
    memory_bytes=10**9,
    device_memory_bytes=None,
    disk_bytes={"text": 10**6, "student": 10**6},
    passing_bytes=0,
    needed_bytes=10**6,
    num_steps=100,
    step_seconds=0.5,
    steps_tried=20,
    memory_available=2 * 10**9,
    disk_free=10**9,
)


def test_the_cost_in_words():
    assert cost_verdict(COST) == (
        "On this machine the run takes about 1m00s (100 steps of 0.5 s), 1 GB of memory and 2 MB of disk.",
    )
    _, memory, disk = cost_verdict(replace(COST, memory_available=10**8, disk_free=10**5), ADVICE)
    assert (
        "needs 1 GB of memory, and 100 MB can be had" in memory
        and "`training.batch_size=4 training.gradient_accumulation=2`" in memory
    )
    assert "has 1 MB to write, and 100 kB are free" in disk and "`training.keep_checkpoints=1`" in disk
    assert len(cost_verdict(replace(COST, memory_bytes=None))) == 1

"""Scores on tasks in the results: means over seeds, intervals over items, shares of the specialists."""

import json

import numpy as np
import pytest

from collegium.evaluation.statistics import holm
from collegium.paper.numbers import BOOTSTRAP
from collegium.paper.run_result import RunResult
from collegium.paper.task_scores import described, task_scores


CHANCE = np.random.default_rng(0)


def answered(share: float, items: int = 40) -> dict:
    """Right or wrong on each item."""
    right = (CHANCE.random(items) < share).astype(float)
    return {"value": float(right.mean()), "per_item": [[value, 1.0] for value in right]}


def found(items: int = 30) -> dict:
    """Twice what is right, what was found and what is there, as F1 adds it up."""
    there = CHANCE.integers(0, 4, items)
    right = np.minimum(there, CHANCE.integers(0, 4, items))
    rows = np.stack([2.0 * right, there + right + CHANCE.integers(0, 2, items)], axis=1)
    return {"value": float(rows[:, 0].sum() / rows[:, 1].sum()), "per_item": rows.tolist()}


def run(share: float) -> RunResult:
    return RunResult({"tasks": {"qa": answered(share), "ner": found()}, "parameters": 40})


SPECIALISTS = {
    "tasks": {
        "qa": {"task": "qa", "items": 40, "teachers": {"qa": answered(0.9)}},
        "ner": {"task": "ner", "items": 30, "teachers": {"ner": found()}},
    },
    "parameters": {"qa": 90, "ner": 100},
}
MEASURED = {"ours": [run(0.8), run(0.7)], "ce": [run(0.4), run(0.5)]}
ROWS = task_scores(MEASURED, "ours", SPECIALISTS)


def score(rows: np.ndarray) -> float:
    return rows[:, 0].sum() / rows[:, 1].sum()


def resampled(task: str, *systems: list) -> np.ndarray:
    """Mean over seeds of each system's score on each resample of a task's items, by loops."""
    seed = BOOTSTRAP["seed"] + ["ner", "qa"].index(task)
    generator = np.random.default_rng(seed)
    samples = []
    for _ in range(BOOTSTRAP["num_samples"]):
        count = len(systems[0][0])
        drawn = generator.integers(count, size=count)
        samples.append([np.mean([score(np.array(rows)[drawn]) for rows in system]) for system in systems])
    return np.array(samples)


def of_items(row: str, task: str) -> list:
    return [result.content["tasks"][task]["per_item"] for result in MEASURED[row]]


def specialist(task: str) -> list:
    return [SPECIALISTS["tasks"][task]["teachers"][task]["per_item"]]


def test_scores_are_means_over_seeds_with_an_interval_over_items():
    scores = ROWS["ours"]["tasks"]["qa"]
    values = [result.content["tasks"]["qa"]["value"] for result in MEASURED["ours"]]
    assert scores["values"] == pytest.approx(values) and scores["mean"] == pytest.approx(np.mean(values))
    assert scores["items"]["value"] == pytest.approx(scores["mean"])
    assert scores["items"]["low"] < scores["mean"] < scores["items"]["high"]


def test_what_is_kept_equals_plain_loops_over_tasks_seeds_and_items():
    samples = sum(resampled(task, of_items("ours", task), specialist(task)) for task in ("ner", "qa")) / 2
    kept = ROWS["ours"]["kept"]
    low, high = np.quantile(samples[:, 0] / samples[:, 1], [0.025, 0.975])
    assert (kept["items"]["low"], kept["items"]["high"]) == pytest.approx((low, high), rel=1e-5)
    means = [np.mean([task["value"] for task in result.content["tasks"].values()]) for result in MEASURED["ours"]]
    best = np.mean([SPECIALISTS["tasks"][task]["teachers"][task]["value"] for task in ("ner", "qa")])
    assert kept["values"] == pytest.approx([mean / best for mean in means], rel=1e-5)
    assert ROWS["ours"]["tasks_mean"]["values"] == pytest.approx(means, rel=1e-5)


def test_the_difference_to_the_baseline_equals_plain_loops():
    samples = sum(resampled(task, of_items("ce", task), of_items("ours", task)) for task in ("ner", "qa")) / 2
    against = ROWS["ce"]["tasks_against_baseline"]
    low, high = np.quantile(samples[:, 0] - samples[:, 1], [0.025, 0.975])
    assert (against["over_items"]["low"], against["over_items"]["high"]) == pytest.approx((low, high), rel=1e-5)
    difference = ROWS["ce"]["tasks_mean"]["mean"] - ROWS["ours"]["tasks_mean"]["mean"]
    assert against["over_seeds"]["value"] == pytest.approx(difference, rel=1e-4)
    assert against["over_items"]["value"] == pytest.approx(difference, rel=1e-4)
    assert ROWS["ours"]["tasks_against_baseline"] is None


def test_differences_to_specialists_are_corrected_over_all_rows_and_tasks():
    tests = [score["to_specialist"] for row in ROWS.values() for score in row["tasks"].values()]
    assert len(tests) == 4
    expected = holm([test["p_value"] for test in tests])
    assert [test["p_holm"] for test in tests] == pytest.approx(expected.tolist(), rel=1e-5)
    own = SPECIALISTS["tasks"]["qa"]["teachers"]["qa"]["value"]
    assert tests[0]["value"] == pytest.approx(ROWS["ours"]["tasks"]["qa"]["mean"] - own, rel=1e-4)


def test_one_seed_has_an_interval_over_items_alone():
    rows = task_scores({"ours": [run(0.8)], "ce": [run(0.5)]}, "ours", SPECIALISTS)
    assert rows["ours"]["kept"]["low"] is None and rows["ours"]["kept"]["items"]["low"] > 0
    assert rows["ce"]["tasks_against_baseline"]["over_seeds"]["p_value"] is None
    assert 0 < rows["ce"]["tasks_against_baseline"]["over_items"]["p_value"] <= 1
    json.dumps(rows, allow_nan=False)


def test_a_task_that_no_teacher_is_named_for():
    others = json.loads(json.dumps(SPECIALISTS))
    others["tasks"]["qa"]["teachers"] = {"all": others["tasks"]["qa"]["teachers"]["qa"]}
    assert described(others, MEASURED["ours"][0])["tasks"]["qa"]["specialist"] is None
    rows = task_scores(MEASURED, "ours", others)
    assert rows["ours"]["kept"] is None
    assert rows["ours"]["tasks"]["qa"]["to_specialist"] is None
    assert rows["ours"]["tasks"]["ner"]["to_specialist"] is not None


def test_what_there_is_beside_students():
    content = described(SPECIALISTS, MEASURED["ours"][0])
    assert content["parameters"] == {"student": 40, "specialist": 100}
    teacher = content["tasks"]["qa"]["teachers"]["qa"]
    assert teacher["value"] == pytest.approx(SPECIALISTS["tasks"]["qa"]["teachers"]["qa"]["value"])
    assert teacher["low"] < teacher["value"] < teacher["high"]
    assert content["tasks"]["ner"]["specialist"] == "ner"

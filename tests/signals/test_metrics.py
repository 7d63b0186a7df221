"""Metrics are pairs of total and count; their file survives a crash at any byte."""

import json
import math

import pytest
import torch
from torch import distributed

from collegium.signals.metrics import JsonlWriter, Mean, MeanAccumulator, read_jsonl, reduce_means


def mean_of(values):
    values = torch.tensor(values)
    return Mean(values.sum(), torch.tensor(len(values)))


def test_a_sum_of_means_is_the_mean_over_all_items():
    parts = [1.0, 2.0, 6.0], [5.0], [3.0, 9.0]
    total = mean_of(parts[0]) + mean_of(parts[1]) + mean_of(parts[2])
    assert total.value == pytest.approx(26 / 6)  # the mean of the means is 14 / 3


def test_the_mean_of_nothing_is_nan():
    assert math.isnan(mean_of([]).value)
    assert (mean_of([]) + mean_of([2.0])).value == 2.0


def test_accumulator_adds_micro_batches_and_starts_anew():
    accumulator = MeanAccumulator()
    accumulator.add({"loss": mean_of([1.0, 3.0]), "rare": mean_of([])})
    accumulator.add({"loss": mean_of([8.0])})
    accumulator.add({"rare": mean_of([7.0])})
    assert accumulator.pop() == {"loss": 4.0, "rare": 7.0}
    assert accumulator.pop() == {}


def test_reducing_leaves_out_what_nobody_counted():
    assert reduce_means({"b": mean_of([1.0, 2.0]), "a": mean_of([])}) == {"b": 1.5}


def test_totals_are_added_in_double_precision():
    large = Mean(torch.tensor(2.0**24), torch.tensor(2**24 + 1))
    assert reduce_means({"x": large})["x"] == 2**24 / (2**24 + 1)


def test_ranks_are_reduced_in_one_call(monkeypatch):
    calls = []

    def all_reduce(pairs):  # the other rank has counted two more items, of value 10 each
        calls.append(pairs.shape)
        pairs += torch.tensor([20.0, 2.0])

    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "all_reduce", all_reduce)
    found = reduce_means({"b": mean_of([1.0]), "a": mean_of([])})
    assert found == {"a": 10.0, "b": 7.0}
    assert calls == [(2, 2)]


def test_lines_are_json_and_what_json_does_not_know_is_null(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = JsonlWriter(path)
    writer.write({"step": 1, "loss": 2.5, "name": "ä\u2028"})
    writer.write({"step": 2, "loss": math.nan, "peak": math.inf})
    lines = path.read_text(encoding="utf-8").split("\n")
    assert [json.loads(line) | {"xxh3_64": ""} for line in lines[:-1]] == [
        record | {"xxh3_64": ""} for record in read_jsonl(path)
    ]
    assert read_jsonl(path) == [
        {"step": 1, "loss": 2.5, "name": "ä\u2028"},
        {"step": 2, "loss": None, "peak": None},
    ]


def test_keep_drops_what_a_resumed_run_writes_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = JsonlWriter(path)
    for step in range(1, 6):
        writer.write({"step": step})
    writer.write({"note": "no step"})
    writer.keep(up_to_step=3)
    writer.write({"step": 4, "again": True})
    expected = [{"step": 1}, {"step": 2}, {"step": 3}, {"note": "no step"}, {"step": 4, "again": True}]
    assert read_jsonl(path) == expected
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_keep_drops_a_line_torn_at_any_byte(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = JsonlWriter(path)
    for step in range(1, 4):
        writer.write({"step": step, "loss": 1.25})
    whole = path.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    for length in range(last, len(whole) + 1):
        path.write_bytes(whole[:length])
        writer.keep(up_to_step=9)
        writer.write({"step": 4})
        steps = [record["step"] for record in read_jsonl(path)]
        assert steps == ([1, 2, 3, 4] if length >= len(whole) - 1 else [1, 2, 4]), length


def test_keep_without_a_file_makes_none(tmp_path):
    JsonlWriter(tmp_path / "metrics.jsonl").keep(up_to_step=1)
    assert list(tmp_path.iterdir()) == []

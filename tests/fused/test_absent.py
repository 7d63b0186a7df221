"""A teacher that says nothing in a whole chunk costs nothing there, and changes not a bit."""

from dataclasses import fields, replace
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from collegium.fused import fused, teacher_stats
from collegium.fused.chunked import KdTarget
from collegium.fused.teacher_stats import absences
from collegium.losses.chunks import chunks
from collegium.losses.fusion import geometric_logprobs, mixture_logprobs
from collegium.losses.weighting import Weighting
from collegium.models.head import ProjectionHead
from tests.support.loss_problem import FORMS, N, problem, run


CHUNK = 4
WEIGHTINGS = {
    "uniform": Weighting("uniform"),
    "stretches of a chunk": Weighting("entropy", "token", 0.5),
    "stretches of many": Weighting("entropy", "sequence", 0.5),
    "past labels": Weighting("bayes"),
}


def restricted(signals, num_positions):
    """Each teacher in a part of its own, the first places and the last without any."""
    place = torch.arange(num_positions)
    size = num_positions // (len(signals) + 1)
    return [
        replace(signal, valid=(place >= size // 2 + m * size) & (place < size // 2 + (m + 1) * size))
        for m, signal in enumerate(signals)
    ]


def everywhere(valid, spans):
    return [[False] * len(valid) for _ in spans]


def tensors_of(sums, gradients):
    logged = [getattr(sums, field.name) for field in fields(sums) if field.name != "stats"]
    return [*logged, *(getattr(sums.stats, field.name) for field in fields(sums.stats)), *gradients]


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("fusion", [mixture_logprobs, geometric_logprobs])
@pytest.mark.parametrize("form", FORMS)
def test_the_loss_is_the_same_bit_for_bit(form, fusion, weighting, monkeypatch):
    hidden, head, signals, positions = problem(61, torch.float32)
    arguments = (fused.distillation_loss, hidden, ProjectionHead(head, 61), restricted(signals, N), positions)
    options = {
        "target": KdTarget(FORMS[form], fusion, 1.3),
        "weighting": WEIGHTINGS[weighting],
        "chunk_size": CHUNK,
    }
    found = tensors_of(*run(*arguments, **options))
    for module in (fused, teacher_stats):
        monkeypatch.setattr(module, "absences", everywhere)
    expected = tensors_of(*run(*arguments, **options))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("weighting", ["uniform", "stretches of many"])
def test_a_head_runs_where_its_teacher_speaks(weighting):
    hidden, head, signals, positions = problem(61, torch.float32)
    rows = [0] * len(signals)

    def counting(inner, number, states):
        rows[number] += len(states)
        return inner(states)

    counted = [
        replace(signal, head=partial(counting, signal.head, number))
        for number, signal in enumerate(restricted(signals, N))
    ]
    run(
        fused.distillation_loss,
        hidden,
        ProjectionHead(head, 61),
        counted,
        positions,
        weighting=WEIGHTINGS[weighting],
        chunk_size=CHUNK,
    )
    passes = 1 if weighting == "uniform" else 2
    for number, signal in enumerate(counted):
        speaks = sum(signal.valid[span].any() * (span.stop - span.start) for span in chunks(N, CHUNK))
        silent = 0 if passes == 1 else len(list(chunks(N, CHUNK)))  # a row a chunk, for its size
        assert passes * speaks <= rows[number] <= passes * speaks + silent < passes * N


@given(st.lists(st.lists(st.booleans(), min_size=13, max_size=13) | st.none(), max_size=4), st.integers(1, 15))
def test_absences_equal_loops(valid, chunk_size):
    spans = list(chunks(13, chunk_size))
    found = absences([None if where is None else torch.tensor(where) for where in valid], spans)
    assert found == [[where is not None and not any(where[span]) for where in valid] for span in spans]


def test_nobody_is_absent_from_nothing():
    assert absences([torch.zeros(0, dtype=torch.bool)], [slice(0, 0)]) == [[False]]

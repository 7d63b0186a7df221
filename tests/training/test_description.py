"""Settings of any object as plain data, told apart by value and not by where they are in memory."""

import json
from dataclasses import dataclass
from enum import Enum
from functools import partial

import pytest
import torch
from torch import nn

from collegium.training.description import settings_of


class Colour(Enum):
    RED = 1
    BLUE = 2


@dataclass
class Point:
    x: float
    parts: object = None


class Part(nn.Module):
    def __init__(self, size: int, progress: float = 0.0) -> None:
        super().__init__()
        self._size = size
        self.progress = progress
        self.layer = nn.Linear(size, 2)


def closing_over(value):
    def inner():
        return value

    return inner


PAIRS = [
    (1, 2),
    (True, 1.5),
    ([1, [2]], [1, [3]]),
    ({"a": {"b": 1}}, {"a": {"b": 2}}),
    ({1, 2}, {1, 3}),
    (Colour.RED, Colour.BLUE),
    (Point(1.0), Point(2.0)),
    (Point(0.0, [Point(1.0)]), Point(0.0, [Point(2.0)])),
    (torch.tensor([1.0]), torch.tensor([2.0])),
    (torch.tensor([1.0]), torch.tensor([1.0], dtype=torch.float64)),
    (len, max),
    (closing_over, partial(closing_over, 1)),
    (partial(closing_over, value=1), partial(closing_over, value=2)),
    (closing_over(1), closing_over(2)),
    (Point(1.0).__eq__, Point(2.0).__eq__),
    (Part(2), Part(3)),
    (nn.Linear(2, 3), nn.Linear(2, 4)),
    (nn.Sequential(nn.ReLU()), nn.Sequential(nn.GELU())),
]


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_values_are_told_apart(one, other):
    assert settings_of(one, "a") != settings_of(other, "a")


@pytest.mark.parametrize("make", [lambda: Part(2), lambda: Point(1.0, [{2, 1}]), lambda: closing_over(Point(3.0))])
def test_equal_objects_are_equal_and_json(make):
    found = settings_of(make(), "a")
    assert found == settings_of(make(), "a")
    assert json.loads(json.dumps(found)) == found


def test_weights_and_progress_do_not_count():
    assert settings_of(Part(2, progress=0.5), "a") == settings_of(Part(2), "a")


def test_paths_are_those_of_attributes():
    found = settings_of(Point(1.0, {"inner": Point(2.0), "list": [1, 2]}), "objective")
    assert found["objective.x"] == 1.0
    assert found["objective.parts.inner.x"] == 2.0
    assert found["objective.parts.list"] == [1, 2]


def test_an_object_that_holds_itself_ends():
    point = Point(1.0)
    point.parts = [point]
    assert settings_of(point, "a")["a.parts"] == ["itself"]

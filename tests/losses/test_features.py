"""Feature matching against a loop, garbage that must not be read, and the map between layers."""

import math

import pytest
import torch

from collegium.losses.features import feature_map_transfer, layer_pairs, squared_error


def draw_states(seed=0):
    """States of a student and a teacher, and where there is text."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 2, 5, 8, generator=generator)
    return student, teacher, torch.rand(2, 5, generator=generator) < 0.7


@pytest.mark.parametrize("normalize", [False, True])
def test_equals_a_loop_over_text_positions(normalize):
    student, teacher, mask = draw_states()
    expected = 0.0
    for b, s in mask.nonzero().tolist():
        x, y = student[b, s], teacher[b, s]
        if normalize:
            x, y = ((v - v.mean()) / v.std(correction=0) for v in (x, y))
        expected += (x - y).square().mean()
    found = squared_error(student, teacher, mask, normalize=normalize)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf])
def test_garbage_on_padding_and_of_the_teacher_is_left_out(normalize, garbage):
    student, teacher, mask = draw_states()
    spoilt = teacher.clone()
    spoilt[~mask] = garbage
    usable = mask.clone()
    first = mask.nonzero()[0]
    spoilt[tuple(first)][3] = garbage
    usable[tuple(first)] = False

    def value_and_gradient(teacher, mask):
        leaf = student.clone().requires_grad_()
        value = squared_error(leaf, teacher, mask, normalize=normalize)
        return value, torch.autograd.grad(value, leaf)[0]

    value, gradient = value_and_gradient(spoilt, mask)
    expected, expected_gradient = value_and_gradient(teacher, usable)
    assert torch.equal(value, expected) and torch.equal(gradient, expected_gradient)
    assert (gradient[~usable] == 0).all() and (gradient[usable] != 0).any()


def test_normalisation_takes_away_size_and_offset():
    student, teacher, mask = draw_states()
    moved = squared_error(3 * student + 2, 50 * teacher - 7, mask, normalize=True)
    torch.testing.assert_close(moved, squared_error(student, teacher, mask, normalize=True), rtol=1e-3, atol=1e-3)
    assert squared_error(5 * teacher + 1, teacher, mask, normalize=True) < 1e-3


def test_no_text_gives_0_with_a_gradient_of_0():
    student, teacher, mask = draw_states()
    student.requires_grad_()
    value = squared_error(student, teacher, torch.zeros_like(mask), normalize=True)
    assert value == 0
    assert torch.equal(torch.autograd.grad(value, student)[0], torch.zeros_like(student))


def test_half_precision_is_summed_in_single():
    student, teacher, mask = draw_states()
    found = squared_error(student.bfloat16(), teacher.bfloat16(), mask, normalize=False)
    exact = squared_error(student.bfloat16().float(), teacher.bfloat16().float(), mask, normalize=False)
    assert found.dtype == torch.float32 and torch.equal(found, exact)


@pytest.mark.parametrize(
    ("layer_map", "student", "teacher", "expected"),
    [
        ("last", 3, 12, ((3, 12),)),
        ("uniform", 3, 12, ((0, 0), (1, 4), (2, 8), (3, 12))),
        ("uniform", 4, 6, ((0, 0), (1, 2), (2, 3), (3, 4), (4, 6))),
        ("uniform", 4, 2, ((0, 0), (1, 0), (2, 1), (3, 2), (4, 2))),
        (((0, 0), (2, 12)), 3, 12, ((0, 0), (2, 12))),
    ],
)
def test_layer_pairs(layer_map, student, teacher, expected):
    assert layer_pairs(layer_map, student, teacher) == expected


@pytest.mark.parametrize("pair", [(4, 0), (0, 13), (-1, 0), (0, -1)])
def test_a_layer_that_is_not_there(pair):
    with pytest.raises(ValueError, match="layers 0 to 3 and the teacher 0 to 12"):
        layer_pairs(((0, 0), pair), 3, 12)


def test_feature_map_transfer_equals_a_loop():
    student, teacher, mask = (t.double() if t.is_floating_point() else t for t in draw_states())
    expected = 0.0
    for b, s in mask.nonzero().tolist():
        x, y = student[b, s], teacher[b, s]
        normed = [(v - v.mean()) / (((v - v.mean()) ** 2).mean() + 1e-5).sqrt() for v in (x, y)]
        variances = [((v - v.mean()) ** 2).mean() for v in (x, y)]
        expected += 100 * ((normed[0] - normed[1]) ** 2).mean()
        expected += 5000 * (x.mean() - y.mean()) ** 2 + 5 * abs(variances[0] - variances[1])
    found = feature_map_transfer(student, teacher, mask)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    alone = feature_map_transfer(student, teacher, mask, map_factor=1.0, mean_factor=0.0, variance_factor=0.0)
    torch.testing.assert_close(alone, squared_error(student, teacher, mask, normalize=True))


def test_gradient_of_feature_map_transfer():
    student, teacher, mask = (t.double() if t.is_floating_point() else t for t in draw_states())
    teacher[0, 0, 0] = math.nan
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda states: feature_map_transfer(states, teacher, mask), student)

"""Divergences by name or section, and the functions that they become."""

import pytest
import torch
from pydantic import ValidationError

from collegium.assembly.divergence import build_divergence, build_divergence_schedule
from collegium.assembly.objective import build_target
from collegium.losses.blended_divergences import adaptive_kl, skew_forward_kl, skew_reverse_kl, todi
from collegium.losses.divergences import alpha_beta, forward_kl, generalized_jsd, reverse_kl, total_variation
from collegium.losses.positional_divergences import Blend, Decoupled, SkewPair
from collegium.recipe.sections.objective import ObjectiveSection
from collegium.training.terms.divergence_schedules import OwnTextSchedule, TaidSchedule


def section(given):
    return ObjectiveSection.model_validate({"divergence": given}).divergence


def test_a_name_is_a_section_with_defaults():
    assert ObjectiveSection().divergence == section("forward_kl") == section({"kind": "forward_kl"})
    assert section("jsd") == section({"kind": "jsd", "beta": 0.5})
    assert section("taid").model_dump() == {"kind": "taid", "start": 0.4, "end": 1.0, "alpha": 5e-4, "beta": 0.99}


@pytest.mark.parametrize(
    ("given", "function"),
    [
        ("forward_kl", forward_kl),
        ("reverse_kl", reverse_kl),
        ("total_variation", total_variation),
        ({"kind": "jsd", "beta": 0.9}, lambda s, t: generalized_jsd(s, t, 0.9)),
        ({"kind": "skew_forward_kl", "alpha": 0.3}, lambda s, t: skew_forward_kl(s, t, 0.3)),
        ("skew_reverse_kl", lambda s, t: skew_reverse_kl(s, t, 0.1)),
        ({"kind": "adaptive_kl", "mu": 0.8}, lambda s, t: adaptive_kl(s, t, 0.8)),
        ({"kind": "alpha_beta", "alpha": 0.4, "beta": 0.6}, lambda s, t: alpha_beta(s, t, 0.4, 0.6)),
        ("todi", todi),
    ],
)
def test_a_section_becomes_its_function(given, function):
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 4, 9, dtype=torch.float64).log_softmax(-1)
    assert torch.equal(build_divergence(section(given))(student, teacher), function(student, teacher))


def test_plain_kls_stay_what_the_fused_loss_looks_for():
    assert build_divergence(section("forward_kl")) is forward_kl
    assert build_divergence(section("reverse_kl")) is reverse_kl


def test_only_the_total_variation_is_not_scaled_by_the_squared_temperature():
    for name in ("forward_kl", "todi", "total_variation"):
        target = build_target(ObjectiveSection.model_validate({"divergence": name, "kd_temperature": 2.0}))
        assert target.scale == (1.0 if name == "total_variation" else 4.0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("kl", "forward_kl"),
        ({"kind": "jsd", "beta": 2.0}, "less than or equal to 1"),
        ({"kind": "forward_kl", "beta": 0.5}, "Extra inputs"),
        ({"kind": "skew_forward_kl", "alpha": 1.0}, "less than 1"),
        ({"kind": "taid", "start": 0.8, "end": 0.5}, "start is 0.8 and end 0.5"),
    ],
)
def test_what_is_wrong_is_said(given, message):
    with pytest.raises(ValidationError, match=message):
        section(given)


@pytest.mark.parametrize(
    ("given", "built", "schedule"),
    [
        ({"kind": "decoupled", "beta": 2.0}, Decoupled(1.0, 2.0), None),
        ({"kind": "distillm2", "alpha": 0.2}, SkewPair(0.2), OwnTextSchedule),
        ("taid", Blend(), TaidSchedule),
        ("todi", todi, None),
    ],
)
def test_those_that_depend_on_more_come_with_what_moves_them(given, built, schedule):
    assert build_divergence(section(given)) == built
    assert type(build_divergence_schedule(section(given))) is (type(None) if schedule is None else schedule)


def test_own_text_has_the_sign_that_the_pair_reads():
    written = torch.tensor([True, False])
    assert OwnTextSchedule().parameter(written, 0.5).tolist() == [1.0, -1.0]
    assert OwnTextSchedule(gradual=True).parameter(written, 0.5).tolist() == [1.5, -0.5]


def test_taid_moves_with_the_steps_and_is_part_of_the_state():
    schedule = TaidSchedule(start=0.4, end=1.0)
    for step, loss in enumerate([3.0, 2.5, 2.0], 1):
        schedule.after_step(loss, step / 10)
    other = TaidSchedule()
    other.load_state_dict(schedule.state_dict())
    share = float(other.parameter(torch.zeros(1, dtype=torch.bool), 0.0))
    assert share == float(schedule.t) and share == pytest.approx(0.4 + 0.6 * 0.3)

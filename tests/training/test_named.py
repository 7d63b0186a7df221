"""Parts of an objective by name, what is given wrongly, and an objective that is given twice."""

import importlib
import pkgutil
from typing import get_args

import pytest
import torch
from torch import nn

import collegium
from collegium.assembly.divergence import build_divergence, build_divergence_schedule
from collegium.assembly.objective import build_weighting
from collegium.fused.chunked import KdTarget
from collegium.losses.divergences import forward_kl
from collegium.losses.fusion import geometric_logprobs, mixture_logprobs
from collegium.losses.weighting import Weighting
from collegium.recipe.sections.divergences import DivergenceSection
from collegium.recipe.sections.objective import ObjectiveSection, WeightingSection
from collegium.training.module import TrainedModule
from collegium.training.named import _NEED_MORE, DIVERGENCES, FUSIONS, WEIGHTINGS
from collegium.training.objective import Objective
from collegium.training.trainer import DistillationTrainer
from tests.support.pico import byte_tokenizer, pico_llama
from tests.support.runs import arguments, packed, same, weights_of


SECTIONS = {
    get_args(section.model_fields["kind"].annotation)[0]: section
    for section in get_args(get_args(DivergenceSection)[0])
}


def described(part):
    """A function with its parameters, to be compared."""
    return (part.func, part.keywords) if hasattr(part, "func") else part


def test_names_are_those_of_recipes():
    assert set(DIVERGENCES) == set(SECTIONS)
    kinds = get_args(WeightingSection.model_fields["kind"].annotation)
    assert set(WEIGHTINGS) | set(_NEED_MORE) == {*kinds, "paper"}
    assert set(FUSIONS) == set(get_args(ObjectiveSection.model_fields["fusion"].annotation))


@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_named_divergence_is_the_recipes(name):
    section = SECTIONS[name](kind=name)
    objective = Objective(target=name)
    assert described(objective.target.divergence) == described(build_divergence(section))
    schedule = build_divergence_schedule(section)
    assert type(objective.divergence_schedule) is type(schedule)
    if schedule is not None:
        public = {key: value for key, value in vars(schedule).items() if not isinstance(value, dict | set)}
        assert all(getattr(objective.divergence_schedule, key) == value for key, value in public.items())
    assert objective.target.scale_by_squared_temperature == (name != "total_variation")


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_a_named_weighting_is_the_recipes(name):
    section = ObjectiveSection.model_validate({"weighting": name}).weighting
    assert Objective(weighting=name).weighting == build_weighting(section, ["one", "two"], [])


def test_a_named_fusion():
    assert Objective(fusion="geometric").target.fusion is geometric_logprobs
    assert Objective(target="todi", fusion="geometric").target.fusion is geometric_logprobs
    assert Objective(target="todi").target.fusion is mixture_logprobs


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": "jds"}, "target is 'jds': .* did you mean `jsd`"),
        ({"target": forward_kl}, "target is .*: give a KdTarget or a name"),
        ({"fusion": "mixtur"}, "fusion is 'mixtur': .* did you mean `mixture`"),
        (
            {"target": KdTarget(forward_kl, mixture_logprobs), "fusion": "mixture"},
            "fusion is a part of the KdTarget",
        ),
        ({"weighting": "unifrom"}, "there is no weighting 'unifrom'; did you mean `uniform`"),
        ({"weighting": "static"}, r"needs more than its name: give Weighting\('static'"),
        ({"weighting": 3}, "weighting is a int: give a Weighting"),
        ({"kd_weight": "0.5"}, "kd_weight is '0.5': give a number or a Schedule"),
        ({"kd_weight": None}, "kd_weight is None: give a number"),
        ({"kd_weight": float("nan")}, "kd_weight is nan; it must be 0 or more"),
        ({"kd_weight": float("inf"), "ce_weight": 1.0}, "kd_weight is inf; it must be 0 or more"),
        ({"teacher_names": "one"}, "teacher_names is the text 'one': give a list"),
    ],
)
def test_what_is_given_wrongly_is_said_at_once(options, words):
    with pytest.raises(ValueError, match=words):
        Objective(**options)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: KdTarget("jsd", mixture_logprobs),
            "divergence is 'jsd': give a function; names go into Objective",
        ),
        (lambda: KdTarget(forward_kl, "mixture"), "fusion is 'mixture': give a function"),
        (lambda: KdTarget(forward_kl, mixture_logprobs, temperature=0.0), "temperature is 0.0"),
        (lambda: Weighting("entropy", granularity="windows:3"), "granularity 'windows:3': give token"),
        (lambda: Weighting("entropy", tau=0.0), "tau is 0.0; it must be above 0"),
        (lambda: Weighting("static"), "values, a weight for each teacher, go with `static`"),
        (lambda: Weighting("domain"), "`domain` needs routes"),
    ],
)
def test_parts_say_at_once_what_they_cannot_use(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def make(folder, teachers, objective=None, **options):
    return DistillationTrainer(
        pico_llama(0),
        teachers=teachers,
        objective=objective,
        args=arguments(folder, max_steps=2),
        train_dataset=packed(),
        processing_class=byte_tokenizer(),
        **options,
    )


def test_an_objective_serves_two_trainers(tmp_path):
    objective = Objective(kd_weight=0.9)
    first = make(tmp_path, [pico_llama(1), pico_llama(2)], objective)
    second = make(tmp_path, [pico_llama(1)], objective)
    first.train()
    second.train()
    alone = make(tmp_path, [pico_llama(1)], Objective(kd_weight=0.9))
    alone.train()
    assert same(weights_of(second), weights_of(alone))
    assert (len(first.objective.teacher_names), len(second.objective.teacher_names)) == (2, 1)
    assert objective.teacher_names == ()


def test_teachers_by_name(tmp_path):
    trainer = make(tmp_path, {"small": pico_llama(1), "large": pico_llama(2)})
    trainer.train()
    assert "teacher/small/weight" in trainer.state.log_history[0]
    assert trainer.objective.teacher_names == ("small", "large")
    same_names = make(tmp_path, {"a": pico_llama(1)}, Objective(["a"]))
    assert same_names.objective.teacher_names == ("a",)


@pytest.mark.parametrize(
    ("teachers", "options", "words"),
    [
        (pico_llama(1), {}, "teachers is a LlamaForCausalLM: give a list"),
        ("folder", {}, "teachers is a str: give a list"),
        ([byte_tokenizer()], {}, "teacher 0 is a .*: give a causal language model"),
        ([None], {}, "teacher 0 is a NoneType"),
        ({"a": pico_llama(1)}, {"objective": Objective(["b"])}, r"called \['a'\], the objective names \['b'\]"),
        ([], {"objective": Objective(kd_weight=0.5)}, "the objective asks teachers, but there are none"),
        (
            [pico_llama(1)],
            {"objective": Objective(weighting=Weighting("static", values=(0.5, 0.5)))},
            "weighs 2 teachers, but 1 is given",
        ),
    ],
)
def test_teachers_that_do_not_fit_are_said_at_once(tmp_path, teachers, options, words):
    with pytest.raises(ValueError, match=words):
        make(tmp_path, teachers, **options)


def test_a_student_that_is_no_model_is_said_at_once(tmp_path):
    for student in (None, byte_tokenizer(), nn.Linear(2, 2)):
        with pytest.raises(ValueError, match="model is a .*: give a causal language model"):
            DistillationTrainer(student, args=arguments(tmp_path), processing_class=byte_tokenizer())
    with pytest.raises(ValueError, match="names no tokenizer: give processing_class"):
        DistillationTrainer(pico_llama(0), args=arguments(tmp_path))


def modules():
    """Modules of the package that have properties."""
    for info in pkgutil.walk_packages(collegium.__path__, "collegium."):
        if info.name.split(".")[1] in (
            "losses",
            "fused",
            "signals",
            "training",
            "models",
            "teachers",
            "evaluation",
        ):
            importlib.import_module(info.name)
    found = [nn.Module]
    for owner in found:
        found += owner.__subclasses__()
    own = {owner for owner in found if owner.__module__.startswith("collegium.")}
    return [owner for owner in own if any(isinstance(value, property) for value in vars(owner).values())]


def test_no_module_hides_an_error_in_a_property():
    assert modules()
    assert [owner.__name__ for owner in modules() if not issubclass(owner, TrainedModule)] == []


def test_the_error_in_a_property_is_its_own():
    class Owner(TrainedModule):
        @property
        def length(self):
            return torch.zeros(2).lenght

    with pytest.raises(AttributeError, match="lenght"):
        _ = Owner().length
    with pytest.raises(AttributeError, match="'Owner' object has no attribute 'other'"):
        _ = Owner().other

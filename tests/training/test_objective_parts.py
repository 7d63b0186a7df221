"""Parts of an objective in training: they move, learn and balance, resume, and do not mind how a step is cut."""

import pytest
import torch

from collegium.base.schedule import Schedule
from collegium.fused.chunked import KdTarget
from collegium.fused.uncertainty import student_figures
from collegium.losses.fusion import mixture_logprobs
from collegium.losses.positional_divergences import Blend
from collegium.losses.weighting import Weighting
from collegium.models.head import ProjectionHead
from collegium.models.pretrained import last_hidden_states
from collegium.signals.contracts import predicted_positions
from collegium.training.checkpoint import load_model_state, model_state
from collegium.training.objective import Objective, term_names
from collegium.training.terms.balancing import GradientFree, UncertaintyWeighting
from collegium.training.terms.cross_tokenizer import CrossTokenizerLoss, GoldTerm, UldTerm
from collegium.training.terms.divergence_schedules import TaidSchedule
from collegium.training.terms.dual_space import DualSpaceTerm
from collegium.training.terms.dynamic import DynamicDistillation
from collegium.training.terms.features import HiddenStatesTerm
from collegium.training.terms.likelihood import AlmTerm
from collegium.training.terms.routing import Router
from tests.support.objectives import batch_of, counts_of, run, student_with, teachers_of
from tests.support.pico import pico_llama
from tests.support.runs import same, stop_after, trainer_of, weights_of


NAMES = ["llama-1", "llama-2"]


def router():
    return Objective(NAMES, router=Router(32, 2, tau=0.5))


def taid():
    return Objective(
        NAMES, kd_weight=1.0, target=KdTarget(Blend(), mixture_logprobs), divergence_schedule=TaidSchedule()
    )


def uncertainty():
    feature = HiddenStatesTerm((32, 2), [(32, 2)] * 2)
    return Objective(
        NAMES, feature_weight=1.0, features=[feature], balancer=UncertaintyWeighting(term_names(1)), chunk_size=13
    )


def gradient_free():
    feature = HiddenStatesTerm((32, 2), [(32, 2)] * 2)
    schedule = Schedule("step", 1.0, 0.0, begin=0.5)
    return Objective(
        NAMES, feature_weight=schedule, features=[feature], balancer=GradientFree(term_names(1)), chunk_size=13
    )


def scheduled():
    return Objective(NAMES, kd_weight=Schedule("linear", 0.0, 2.0), ce_weight=Schedule("cosine", 1.0, 0.2))


def own_vocabularies():
    embeds = [pico_llama(seed).get_input_embeddings() for seed in (1, 2)]
    torch.manual_seed(5)
    terms = [
        DualSpaceTerm(NAMES, (32, 32), [32, 32], embeds=embeds),
        GoldTerm(NAMES, weight=Schedule("linear", 0.0, 2.0)),
        AlmTerm(NAMES, weight=50.0),
        UldTerm(NAMES, weight=Schedule("step", 1.0, 0.0, begin=0.5)),
    ]
    cross_tokenizer = CrossTokenizerLoss(Schedule("step", 0.5, 1.0, begin=0.5), terms)
    balancer = GradientFree(term_names(0, 4))
    return Objective(NAMES, kd_weight=0.2, cross_tokenizer=cross_tokenizer, balancer=balancer, chunk_size=13)


OBJECTIVES = [router, taid, uncertainty, gradient_free, scheduled, own_vocabularies]
each_objective = pytest.mark.parametrize("make", OBJECTIVES, ids=lambda make: make.__name__)


def trained(folder, make, **options):
    torch.manual_seed(5)
    trainer = trainer_of(folder, objective=make(), **{"max_steps": 4, "learning_rate": 1e-3, **options})
    trainer.train(resume_from_checkpoint=True)
    return trainer


@each_objective
def test_how_a_step_is_cut_does_not_matter(tmp_path, make):
    cuts = [(8, 1), (2, 4)]
    whole, cut = (
        weights_of(trained(tmp_path / str(a), make, per_device_train_batch_size=a, gradient_accumulation_steps=b))
        for a, b in cuts
    )
    for name, weight in whole.items():
        torch.testing.assert_close(cut[name], weight, rtol=1e-3, atol=1e-4)


@each_objective
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, make):
    saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    whole = trained(tmp_path / "whole", make, **saving)
    torch.manual_seed(5)
    first = trainer_of(tmp_path / "stopped", objective=make(), learning_rate=1e-3, **saving)
    stop_after(first, 2)
    first.train()
    second = trained(tmp_path / "stopped", make, **saving)
    assert same(weights_of(whole), weights_of(second))
    buffers = dict(whole.objective.named_buffers())
    assert all(torch.equal(buffers[name], value) for name, value in second.objective.named_buffers())


def test_what_is_learned_moves(tmp_path):
    balancer = trained(tmp_path / "a", uncertainty).objective.balancer
    assert float(balancer.log_variances.detach().abs().min()) > 0
    learned = trained(tmp_path / "b", router).objective.router
    assert float(learned.scores.weight.abs().sum()) > 0
    assert float(trained(tmp_path / "c", taid).objective.divergence_schedule.t) > 0.4
    scales = trained(tmp_path / "d", gradient_free).objective.balancer.factors()
    assert float(scales["feature/0"]) != 1.0


def test_a_checkpoint_with_the_schedule_under_its_earlier_name_is_read(tmp_path):
    from safetensors.torch import save_file

    trainer = trainer_of(tmp_path, objective=taid())
    weights = {
        name.replace("objective.divergence_schedule.", "objective.course."): tensor
        for name, tensor in model_state(trainer.distillation_model).items()
    }
    weights["objective.course.t"] = torch.tensor(0.625)
    save_file(weights, tmp_path / "model.safetensors")
    load_model_state(trainer.distillation_model, tmp_path)
    assert float(trainer.objective.divergence_schedule.t) == 0.625


@pytest.mark.parametrize("make", [router, own_vocabularies])
def test_the_student_is_saved_without_them(tmp_path, make):
    trainer = trained(tmp_path, make)
    assert any(name.startswith("objective.") for name, _ in trainer.distillation_model.named_parameters())
    trainer.save_model(str(tmp_path / "student"))
    names = {path.name for path in (tmp_path / "student").iterdir()}
    assert "model.safetensors" in names
    from safetensors import safe_open

    with safe_open(tmp_path / "student" / "model.safetensors", "pt") as file:
        assert not any("router" in key or "objective" in key for key in file.keys())  # noqa: SIM118


# ---- Dynamic KD and the router on one batch, in float64


def figures(model, batch):
    positions = predicted_positions(batch)
    hidden = positions.select(last_hidden_states(model.student, batch.input_ids, batch.position_ids))
    head = ProjectionHead.from_model(model.student, 260)
    return student_figures(hidden, head, positions.labels, chunk_size=64)


def result_of(model, batch, teachers):
    positions = predicted_positions(batch)
    outputs = [teacher.score(batch, positions, need=model.objective.need) for teacher in teachers]
    return model(batch, positions, outputs, counts_of(batch))


def test_adoption_weighs_the_small_and_the_large_teacher():
    dynamic = DynamicDistillation(adoption="instance")
    model, batch = student_with(Objective(["t1", "t2"], kd_weight=1.0, dynamic=dynamic)), batch_of()
    metrics = result_of(model, batch, teachers_of(1, 2)).metrics
    small = metrics["teacher/t1/weight"]
    expected = figures(model, batch).uncertainty.mean()
    assert float(small.total / small.count) == pytest.approx(float(expected), rel=1e-9)


def test_selection_is_a_mean_over_the_selected():
    dynamic = DynamicDistillation(selection="entropy", selected_share=0.5)
    model, batch = student_with(Objective(["t1"], kd_weight=1.0, ce_weight=0.0, dynamic=dynamic)), batch_of()
    loss, _ = run(model, batch, teachers_of(1))
    doubt = figures(model, batch).uncertainty
    chosen = doubt.argsort(descending=True)[: len(doubt) // 2]
    positions = predicted_positions(batch)
    inputs = {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "use_cache": False}
    logq = model.student(**inputs).logits.flatten(0, 1)[positions.index].log_softmax(-1)
    logp = pico_llama(1, dtype=torch.float64)(**inputs).logits.flatten(0, 1)[positions.index].log_softmax(-1)
    kl = (logp.exp() * (logp - logq)).sum(-1)
    assert float(loss) == pytest.approx(float(kl[chosen].mean()), rel=1e-9)


def test_an_uncertain_student_matches_states_a_certain_one_distributions():
    def loss_with(dynamic, kd_weight, feature_weight):
        torch.manual_seed(3)
        objective = Objective(
            ["t1"],
            kd_weight=kd_weight,
            ce_weight=0.0,
            feature_weight=feature_weight,
            features=[HiddenStatesTerm((32, 2), [(32, 2)])],
            dynamic=dynamic,
        )
        model = student_with(objective)
        return float(run(model, batch_of(), teachers_of(1))[0]), figures(model, batch_of()).uncertainty

    strategy = DynamicDistillation(objective=True)
    both, doubt = loss_with(strategy, 1.0, 1.0)
    states, _ = loss_with(strategy, 0.0, 1.0)
    plain, _ = loss_with(None, 1.0, 1e-12)
    assert 0.0 < both - states < plain * float((1.0 - doubt).max()) + 1e-9
    assert both - states > plain * float((1.0 - doubt).min()) - 1e-9


def test_a_router_at_its_start_is_uniform():
    routed = student_with(Objective(["t1", "t2"], kd_weight=1.0, router=Router(32, 2, loss_weight=0.0)))
    uniform = student_with(Objective(["t1", "t2"], kd_weight=1.0, weighting=Weighting("uniform")))
    (found, _), (expected, _) = (run(model, batch_of(), teachers_of(1, 2)) for model in (routed, uniform))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)

"""Dynamic KD in an objective: what reaches the loss, against whole-tensor arithmetic in float64."""

import math

import pytest
import torch

from collegium.signals.contracts import predicted_positions
from collegium.training.objective import Objective
from collegium.training.terms.dynamic import DynamicDistillation
from collegium.training.terms.features import HiddenStatesTerm
from tests.support.objectives import V, batch_of, counts_of, student_with, teachers_of


KD_WEIGHT = 0.6


@pytest.fixture
def batch():
    return batch_of()


def objective_of(names, dynamic, **changes):
    return Objective(names, kd_weight=KD_WEIGHT, dynamic=dynamic, chunk_size=7, **changes)


def result_of(objective, batch, teachers):
    """The output, the student's and the teachers' log-probabilities at predicted positions."""
    model, positions = student_with(objective), predicted_positions(batch)
    outputs = [teacher.score(batch, positions, need=objective.need) for teacher in teachers]
    result = model(batch, positions, outputs, counts_of(batch))
    inputs = {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "use_cache": False}
    models = [model.student, *(teacher._base.model for teacher in teachers)]
    logprobs = [m(**inputs).logits.flatten(0, 1)[positions.index].log_softmax(-1) for m in models]
    return model, result, logprobs[0], [rows.detach() for rows in logprobs[1:]]


def entropy_of(logq):
    return -(logq.exp() * logq).sum(-1).detach()


def kl(logp, logq):
    return (logp.exp() * (logp - logq)).sum(-1)


def assert_loss(model, result, expected):
    """The loss and its gradient; nothing flows through weights, so the expected one has them detached."""
    assert float(result.loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-10)
    parameters = [p for p in model.student.parameters() if p.requires_grad]
    ours, theirs = (torch.autograd.grad(loss, parameters) for loss in (result.loss, expected))
    for found, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("adoption", ["hard", "soft", "instance"])
def test_adoption_weighs_the_small_and_the_large_teacher(batch, adoption):
    teachers = teachers_of(1, 2)
    objective = objective_of(["t1", "t2"], DynamicDistillation(adoption=adoption))
    model, result, logq, (small, large) = result_of(objective, batch, teachers)
    labels, entropy = predicted_positions(batch).labels, entropy_of(logq)
    if adoption == "hard":
        weight = torch.zeros_like(entropy)
        weight[entropy.argsort(descending=True)[: len(entropy) // 2]] = 1.0
    else:
        weight = entropy / math.log(V)
        weight = weight if adoption == "instance" else weight.mean().expand_as(weight)
    target = (weight[:, None] * small.exp() + (1 - weight)[:, None] * large.exp()).log()
    cross_entropy = -logq.gather(-1, labels[:, None]).mean()
    assert_loss(model, result, KD_WEIGHT * kl(target, logq).mean() + (1 - KD_WEIGHT) * cross_entropy)
    for name, share in {"t1": weight.mean(), "t2": 1 - weight.mean()}.items():
        mean = result.metrics[f"teacher/{name}/weight"]
        assert float(mean.total / mean.count) == pytest.approx(float(share), rel=1e-9)


@pytest.mark.parametrize("selection", ["entropy", "label"])
@pytest.mark.parametrize("share", [0.5, 0.25])
def test_selection_distils_the_mean_over_the_chosen_and_learns_all_text(batch, selection, share):
    dynamic = DynamicDistillation(selection=selection, selected_share=share)
    model, result, logq, (logp,) = result_of(objective_of(["t1"], dynamic), batch, teachers_of(1))
    nll = -logq.gather(-1, predicted_positions(batch).labels[:, None]).squeeze(-1)
    score = entropy_of(logq) if selection == "entropy" else nll.detach()
    count = int(len(score) * share)
    chosen = score.argsort(descending=True)[:count]
    distilled = kl(logp, logq)[chosen].mean()
    assert_loss(model, result, KD_WEIGHT * distilled + (1 - KD_WEIGHT) * nll.mean())


@pytest.mark.parametrize(
    ("num_positions", "share", "num_chosen"),
    [(21, 0.5, 10), (3, 0.5, 1), (1, 0.5, 1), (100, 0.29, 29), (8, 1.0, 8)],
)
def test_chosen_positions_weigh_as_much_as_all_would(num_positions, share, num_chosen):
    """The weight of the divergence at each position, as `guide` hands it to the loss: its mean is 1."""
    dynamic = DynamicDistillation(selection="entropy", selected_share=share)
    model = student_with(objective_of(["t1"], dynamic))
    hidden = torch.randn(num_positions, 32, dtype=torch.float64)
    guidance = dynamic.guide(hidden, model.student.lm_head, torch.randint(V, (num_positions,)), chunk_size=5)
    weights = [0.0] * (num_positions - num_chosen) + [num_positions / num_chosen] * num_chosen
    assert sorted(guidance.kd.tolist()) == pytest.approx(weights)
    assert guidance.features is None and guidance.teacher_scores is None


def test_the_objective_moves_from_states_to_logits_as_certainty_grows(batch):
    torch.manual_seed(3)
    term = HiddenStatesTerm((32, 2), [(32, 2)], layer_map=((1, 2),), layer_norm=False)
    objective = objective_of(["t1"], DynamicDistillation(objective=True), feature_weight=0.3, features=[term])
    teachers, positions = teachers_of(1), predicted_positions(batch)
    model, result, logq, (logp,) = result_of(objective, batch, teachers)
    u = entropy_of(logq) / math.log(V)
    nll = -logq.gather(-1, positions.labels[:, None]).squeeze(-1)
    inputs = {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "use_cache": False}
    student = model.student(**inputs, output_hidden_states=True).hidden_states[1]
    teacher = teachers[0]._base.model(**inputs, output_hidden_states=True).hidden_states[2].detach()
    errors = (term.projections[0][0](student) - teacher).square().mean(-1).flatten()[positions.index]
    features = (u * errors).sum() / batch.attention_mask.sum()
    expected = KD_WEIGHT * ((1 - u) * kl(logp, logq)).mean() + (1 - KD_WEIGHT) * nll.mean() + 0.3 * features
    # Inner states are compared in float32.
    assert float(result.loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    plain = objective_of(["t1"], None, feature_weight=0.3, features=[term])
    assert abs(float(result_of(plain, batch, teachers)[1].loss.detach()) / float(expected.detach()) - 1) > 1e-3

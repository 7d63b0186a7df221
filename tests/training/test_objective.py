"""The objective as a whole: its terms, weights, and what must not change its value."""

import math

import pytest
import torch

from collegium.data.collate import BlockCollator
from collegium.fused.chunked import KdTarget
from collegium.losses.divergences import forward_kl
from collegium.losses.fusion import mixture_logprobs
from collegium.losses.weighting import Weighting
from collegium.models.head import ProjectionHead
from collegium.models.pretrained import last_hidden_states
from collegium.signals.contracts import Batch, TeacherOutput, predicted_positions
from collegium.signals.inner_states import InnerStates
from collegium.signals.signals import ProjectedSignal
from collegium.training.chunk_size import default_chunk_size
from collegium.training.objective import Objective
from collegium.training.terms.features import HiddenStatesTerm
from tests.support.objectives import V, assert_same, batch_of, counts_of, run, student_with, teachers_of
from tests.support.pico import pico_llama


def test_loss_is_the_formula():
    """kd_weight KL + (1 - kd_weight) CE + feature_weight F, against whole-tensor arithmetic."""
    teachers = teachers_of(1, 2)
    feature = HiddenStatesTerm(
        (32, 2), [(32, 2)] * 2, layer_map=((0, 0), (2, 1)), importance=[3.0, 1.0], layer_norm=False
    )
    objective = Objective(
        ["t1", "t2"],
        kd_weight=0.7,
        weighting=Weighting("entropy", "token", 1.0),
        feature_weight=0.3,
        features=[feature],
        chunk_size=7,
    )
    model, batch = student_with(objective), batch_of()
    positions = predicted_positions(batch)
    loss, _ = run(model, batch, teachers)

    inputs = {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "use_cache": False}
    student = model.student(**inputs, output_hidden_states=True)
    rows = lambda t: t.flatten(0, 1)[positions.index]  # noqa: E731
    logq = rows(student.logits).log_softmax(-1)
    outputs = [t._base.model(**inputs, output_hidden_states=True) for t in teachers]
    logp = torch.stack([rows(o.logits).log_softmax(-1) for o in outputs])
    entropy = -(logp.exp() * logp).sum(-1)
    weights = (-entropy).softmax(0)
    fused = (weights[..., None] * logp.exp()).sum(0)
    kl = (fused * (fused.log() - logq)).sum(-1).mean()
    cross_entropy = -logq.gather(-1, positions.labels[:, None]).mean()
    features = torch.zeros(())
    for beta, projections, output in zip((0.75, 0.25), feature.projections, outputs, strict=True):
        for projection, (s, t) in zip(projections, ((0, 0), (2, 1)), strict=True):
            error = (projection(student.hidden_states[s]) - output.hidden_states[t]).square().mean(-1)
            features = features + beta * 0.5 * (error * batch.attention_mask).sum() / batch.attention_mask.sum()
    expected = 0.7 * kl + 0.3 * cross_entropy + 0.3 * features
    assert float(loss) == pytest.approx(float(expected.detach()), rel=1e-10)


def test_kd_weight_zero_is_cross_entropy_bit_for_bit():
    batch = batch_of()
    alone = run(student_with(Objective(kd_weight=0.0, chunk_size=9)), batch, [])
    beside = run(student_with(Objective(["t1"], kd_weight=0.0, chunk_size=9)), batch, teachers_of(1))
    assert torch.equal(alone[0], beside[0])
    for name, grad in alone[1].items():
        assert torch.equal(grad, beside[1][name])


@pytest.mark.parametrize("granularity", ["token", "sequence", "window:8"])
@pytest.mark.parametrize("split", [[range(0, 1), range(1, 4)], [range(i, i + 1) for i in range(4)]])
def test_any_split_into_micro_batches(granularity, split):
    """Blocks of unequal lengths: sums over micro-batches with one global count are the whole batch."""

    def objective() -> Objective:
        torch.manual_seed(5)
        feature = HiddenStatesTerm((32, 2), [(32, 2), (32, 2)])
        weighting = Weighting("entropy", granularity, 0.5)
        return Objective(["t1", "t2"], weighting=weighting, feature_weight=0.2, features=[feature], chunk_size=11)

    teachers, counts = teachers_of(1, 2), counts_of(batch_of())
    whole = run(student_with(objective()), batch_of(), teachers)
    parts = [run(student_with(objective()), batch_of(part), teachers, counts) for part in split]
    total = sum(loss for loss, _ in parts)
    grads = {name: sum(part[1][name] for part in parts) for name in parts[0][1]}
    assert_same(whole, (total, grads))


@pytest.mark.parametrize("granularity", ["token", "sequence", "window:8"])
def test_left_and_right_padding_agree(granularity):
    objective = lambda: Objective(["t1", "t2"], weighting=Weighting("entropy", granularity), chunk_size=16)  # noqa: E731
    teachers = teachers_of(1, 2)
    right = run(student_with(objective()), batch_of(pad_to=40), teachers)
    left = run(student_with(objective()), batch_of(pad_to=40, side="left"), teachers)
    assert_same(right, left, tolerance=1e-10)


@pytest.mark.parametrize("granularity", ["token", "sequence", "window:8"])
def test_packed_is_unpacked(granularity):
    """Two documents in one block give what they give in a block each: neither attention nor weights cross."""
    from collegium.data.blocks import pack_documents
    from tests.support.pico import byte_tokenizer

    rows = [{"text": "the cat sat on the mat"}, {"text": "numbers: 1 2 3 4 5"}]
    objective = lambda: Objective(["t1", "t2"], weighting=Weighting("entropy", granularity), chunk_size=16)  # noqa: E731
    collator = BlockCollator(pad_token_id=258)
    block = pack_documents(rows, byte_tokenizer(), block_size=64)
    assert len(block) == 1
    together = Batch.from_inputs(collator([block[0]]))
    alone = Batch.from_inputs(
        collator([pack_documents([row], byte_tokenizer(), block_size=64)[0] for row in rows])
    )
    teachers = teachers_of(1, 2)
    assert_same(
        run(student_with(objective()), together, teachers),
        run(student_with(objective()), alone, teachers),
        tolerance=1e-10,
    )


def test_identical_teachers_are_one():
    one = run(student_with(Objective(["a"])), batch_of(), teachers_of(1))
    three = run(student_with(Objective(["a", "b", "c"])), batch_of(), teachers_of(1, 1, 1))
    assert_same(one, three)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_static_weight_zero_is_absent_bit_for_bit(place):
    present, values = [1, 2], [0.25, 0.75]
    with_zero, seeds = list(values), list(present)
    with_zero.insert(place, 0.0)
    seeds.insert(place, 3)
    objective = lambda v: Objective(  # noqa: E731
        [str(i) for i in range(len(v))], weighting=Weighting("static", values=tuple(v)), chunk_size=13
    )
    two = run(student_with(objective(values)), batch_of(), teachers_of(*present))
    three = run(student_with(objective(with_zero)), batch_of(), teachers_of(*seeds))
    assert torch.equal(two[0], three[0])
    for name, grad in two[1].items():
        assert torch.equal(grad, three[1][name]), name


def damaged(output: TeacherOutput, rows: torch.Tensor, value: float) -> TeacherOutput:
    signal = output.signal
    assert isinstance(signal, ProjectedSignal)
    hidden = signal.hidden.clone()
    hidden[rows] = value
    return TeacherOutput(ProjectedSignal(hidden, signal.head), output.features)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("granularity", ["token", "sequence"])
def test_bad_positions_of_a_teacher_are_as_if_it_were_absent_there(value, granularity):
    batch = batch_of()
    positions = predicted_positions(batch)
    rows = torch.arange(len(positions)) % 5 == 0
    teachers = teachers_of(1, 2)

    def loss_with(change) -> tuple:
        model = student_with(Objective(["t1", "t2"], weighting=Weighting("entropy", granularity), chunk_size=16))
        outputs = [t.score(batch, positions, need=model.objective.need) for t in teachers]
        result = model(batch, positions, [outputs[0], change(outputs[1])], counts_of(batch))
        result.loss.backward()
        return result, {n: p.grad for n, p in model.named_parameters()}

    def absent(output: TeacherOutput) -> TeacherOutput:
        signal = output.signal
        return TeacherOutput(ProjectedSignal(signal.hidden, signal.head, valid=~rows))

    bad, bad_grads = loss_with(lambda output: damaged(output, rows, value))
    reference, reference_grads = loss_with(absent)
    assert torch.equal(bad.loss, reference.loss)
    assert all(torch.equal(grad, reference_grads[name]) for name, grad in bad_grads.items())
    share = bad.metrics["teacher/t2/invalid_fraction"].value
    assert share == pytest.approx(float(rows.double().mean()))
    assert bad.loss.isfinite()


def test_a_teacher_bad_too_often_is_named():
    objective = Objective(["good", "bad"], max_invalid_fraction=0.01)
    metrics = {"teacher/good/invalid_fraction": 0.01, "teacher/bad/invalid_fraction": 0.02}
    assert objective.unreliable_teachers(metrics) == {"bad": 0.02}


def test_overfits_to_a_copy_only_if_everything_is_aligned():
    """A student that equals its teacher has no loss and no gradient (an off-by-one would show)."""
    model = student_with(Objective(["t1"], kd_weight=1.0), seed=1)
    loss, grads = run(model, batch_of(), teachers_of(1))
    assert abs(float(loss)) < 1e-12
    assert max(float(grad.abs().max()) for grad in grads.values()) < 1e-12


def test_all_padding_has_no_loss_but_a_gradient_of_zero():
    batch = batch_of()
    nothing = Batch(
        batch.input_ids,
        torch.zeros_like(batch.attention_mask),
        torch.full_like(batch.labels, -100),
        batch.position_ids,
        batch.sample_ids,
    )
    feature = HiddenStatesTerm((32, 2), [(32, 2)])
    model = student_with(Objective(["t1"], feature_weight=1.0, features=[feature]))
    loss, grads = run(model, nothing, teachers_of(1))
    assert float(loss) == 0.0
    assert all(float(grad.abs().max()) == 0.0 for grad in grads.values())


def test_student_vocabulary_padding_is_cut():
    """Padded rows of the head get no probability: the loss is that of the real vocabulary."""
    torch.manual_seed(0)
    model = pico_llama(0, dtype=torch.float64, vocab_size=272, tied=False)
    real = ProjectionHead.from_model(model, V)
    hidden = torch.randn(5, 32, dtype=torch.float64)
    assert real(hidden).shape == (5, V)
    with torch.no_grad():
        model.lm_head.weight[V:] = 1e3
    assert torch.allclose(real(hidden), hidden @ model.lm_head.weight[:V].T, rtol=1e-12)


def test_projections_learn():
    feature = HiddenStatesTerm((32, 2), [(32, 2)])
    _, grads = run(
        student_with(Objective(["t1"], feature_weight=1.0, features=[feature])), batch_of(), teachers_of(1)
    )
    projections = [grad for name, grad in grads.items() if "projections" in name]
    assert len(projections) == 3
    assert all(float(grad.norm()) > 0 for grad in projections)


def test_feature_term_leaves_out_positions_where_the_teacher_is_not_finite():
    feature = HiddenStatesTerm((4, 1), [(4, 1)], layer_map="last").double()
    states = [torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    teacher = [torch.randn(1, 3, 4, dtype=torch.float64) for _ in range(2)]
    mask = torch.tensor([[True, True, False]])

    def value(last: torch.Tensor) -> torch.Tensor:
        batch = Batch(mask.long(), mask, mask.long(), mask.long(), mask.long())
        return feature(
            InnerStates(dict(enumerate(states))), [InnerStates(dict(enumerate((teacher[0], last))))], batch
        )

    bad = teacher[1].clone()
    bad[0, 1] = math.nan
    loss = value(bad)
    loss.backward()
    assert loss.isfinite()
    assert states[1].grad.isfinite().all()
    assert float(states[1].grad[0, 1:].abs().max()) == 0.0  # NaN, and padding
    assert float(loss) < float(value(teacher[1]))


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="kd_weight is 1.5"):
        Objective(kd_weight=1.5)
    with pytest.raises(ValueError, match="go together"):
        Objective(feature_weight=1.0)
    with pytest.raises(ValueError, match="the student has layers 0 to 2"):
        HiddenStatesTerm((32, 2), [(32, 4)], layer_map=((3, 4),))
    with pytest.raises(ValueError, match="importance must be 0 or more"):
        HiddenStatesTerm((32, 2), [(32, 4)], importance=[-1.0])


def test_chunks_fill_their_buffer():
    assert default_chunk_size(49_152, torch.device("cpu")) == 128
    assert default_chunk_size(10**9, torch.device("cpu")) == 128


def test_teachers_hidden_states_are_not_changed_by_scoring_twice():
    teacher, batch = teachers_of(1)[0], batch_of()
    positions = predicted_positions(batch)
    first, second = (teacher.score(batch, positions, need=frozenset()).signal.hidden for _ in range(2))
    assert torch.equal(first, second)
    expected = last_hidden_states(teacher._base.model, batch.input_ids, batch.position_ids)
    assert torch.equal(first, positions.select(expected))
    assert not first.requires_grad
    assert KdTarget(forward_kl, mixture_logprobs, temperature=2.0).scale == 4.0

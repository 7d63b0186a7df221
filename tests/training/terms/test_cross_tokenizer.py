"""ULD, GOLD, ALM and DSKD in the objective: against plain loops, and what must not change their values."""

import math
from dataclasses import replace

import pytest
import torch

from collegium.assembly.cross_tokenizer import boundary_tokens
from collegium.losses.divergences import entropy
from collegium.signals.contracts import predicted_positions
from collegium.signals.signals import TopKSignal
from collegium.training.model import DistillationModel
from collegium.training.objective import Objective
from collegium.training.terms.cross_tokenizer import CrossTokenizerLoss, GoldTerm, UldTerm
from collegium.training.terms.dual_space import DualSpaceTerm
from collegium.training.terms.likelihood import AlmTerm
from tests.support.objectives import assert_same, counts_of
from tests.support.own_references import Reference, alm, dskd, gold, uld
from tests.support.own_vocabularies import (
    STUDENT,
    TABLES,
    TEXTS,
    VOCAB_SIZE,
    aligned_teacher,
    batch_of,
    local_teacher,
    own_batch,
    stretches_of,
)
from tests.support.pico import pico_llama


NAMES = ["t7", "t8"]
"""One with another tokenizer, one with the student's."""


def boundaries():
    return boundary_tokens(TABLES["student"].pieces), [boundary_tokens(TABLES["other"].pieces), None]


def dual_space(teachers):
    torch.manual_seed(3)
    sizes = [40 if teacher.name == "t7" else 32 for teacher in teachers]
    embeds = [teacher.native.underlying_model.embed for teacher in teachers]
    return DualSpaceTerm([t.name for t in teachers], (32, 32), sizes, embeds=embeds)


TERMS = {
    "uld": lambda teachers: UldTerm(NAMES, temperature=1.5, importance=[3.0, 1.0]),
    "gold": lambda teachers: GoldTerm(NAMES, importance=[3.0, 1.0]),
    "gold_first": lambda teachers: GoldTerm(NAMES, merge="first", beta=0.3, part_weights=(0.7, 2.0)),
    "alm": lambda teachers: AlmTerm(NAMES, tau=10.0, threshold=0.03, boundaries=boundaries()),
    "alm_plain": lambda teachers: AlmTerm(NAMES),
    "dskd": dual_space,
}
each_term = pytest.mark.parametrize("name", TERMS)


def teachers_of():
    return [aligned_teacher(7), local_teacher(8, VOCAB_SIZE)]


def model_with(*terms, chunk_size=7):
    objective = Objective(
        [], kd_weight=0.0, ce_weight=0.0, cross_tokenizer=CrossTokenizerLoss(1.0, terms), chunk_size=chunk_size
    )
    objective.teacher_names = terms[0].teacher_names
    student = pico_llama(0, vocab_size=VOCAB_SIZE, dtype=torch.float64)
    return DistillationModel(student, objective.double(), vocab_size=VOCAB_SIZE)


def output_of(model, batch, teachers, counts=None):
    positions = predicted_positions(batch)
    outputs = [teacher.score(batch, positions, need=model.objective.need) for teacher in teachers]
    return model(batch, positions, outputs, counts or counts_of(batch))


def run(model, batch, teachers, counts=None):
    result = output_of(model, batch, teachers, counts)
    model.zero_grad()
    result.loss.backward()
    return result.loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


EXPECTED = {
    "uld": lambda r, term, m: (3.0, 1.0)[m] / 4 * uld(r),
    "gold": lambda r, term, m: (3.0, 1.0)[m] / 4 * gold(r),
    "gold_first": lambda r, term, m: 0.5 * gold(r, "first", 0.3, (0.7, 2.0)),
    "alm": lambda r, term, m: 0.5 * alm(r, 10.0, 0.03),
    "alm_plain": lambda r, term, m: 0.5 * alm(r, 100.0),
    "dskd": lambda r, term, m: 0.5 * dskd(r, term.projections[m]),
}


@each_term
def test_value_and_gradient_are_those_of_a_loop(name):
    teachers, batch = teachers_of(), batch_of(TEXTS)
    model = model_with(TERMS[name](teachers))
    loss, gradients = run(model, batch, teachers)
    term = model.objective.cross_tokenizer.terms[0]
    model.zero_grad()
    expected = sum(EXPECTED[name](Reference(model, t, batch), term, m) for m, t in enumerate(teachers))
    expected = expected / len(predicted_positions(batch))
    expected.backward()
    assert float(loss) == pytest.approx(float(expected.detach()), rel=1e-10)
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(
            gradients[key], parameter.grad, rtol=1e-5, atol=1e-7, msg=key
        )  # norms are float32
    assert all(float(gradient.abs().max()) > 0 for gradient in gradients.values())


def test_dskd_teaches_what_the_projected_states_predict_right():
    teachers, batch = teachers_of(), batch_of(TEXTS)
    model = model_with(dual_space(teachers))
    term = model.objective.cross_tokenizer.terms[0]
    labels = predicted_positions(batch).labels
    common = model.student.get_output_embeddings().weight[labels.mode().values].detach()
    with torch.no_grad():
        term.projections[0]["t2s"].bias.copy_(10 * common)
        term.projections[1]["t2s"].bias.copy_(3 * common)
    metrics = output_of(model, batch, teachers).metrics
    shares = [metrics[f"cross_tokenizer/0/{name}/projected_accuracy"].value for name in NAMES]
    assert all(0.0 < share < 1.0 for share in shares)
    loss, gradients = run(model, batch, teachers)
    model.zero_grad()
    expected = sum(EXPECTED["dskd"](Reference(model, t, batch), term, m) for m, t in enumerate(teachers))
    (expected / len(labels)).backward()
    assert float(loss) == pytest.approx(float(expected.detach()) / len(labels), rel=1e-10)
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[key], parameter.grad, rtol=1e-5, atol=1e-6, msg=key)


def test_stretches_are_worth_the_name():
    """The tokenizers differ in some stretches and agree in others, or the tests above would show little."""
    teacher, batch = aligned_teacher(), batch_of(TEXTS)
    stretches = stretches_of(batch, own_batch(teacher, batch), TABLES["other"])
    shapes = {(min(len(s.student), 2), min(len(s.teacher), 2)) for s in stretches}
    assert shapes == {(1, 1), (1, 2), (2, 1), (2, 2)}


# ---- what must not change it


@each_term
def test_any_split_into_micro_batches(name):
    teachers, counts = teachers_of(), counts_of(batch_of(TEXTS))
    whole = run(model_with(TERMS[name](teachers)), batch_of(TEXTS), teachers)
    parts = [run(model_with(TERMS[name](teachers)), batch_of([texts]), teachers, counts) for texts in TEXTS]
    gradients = {key: sum(part[1][key] for part in parts) for key in parts[0][1]}
    assert_same(whole, (sum(loss for loss, _ in parts), gradients), tolerance=1e-10)


@each_term
@pytest.mark.parametrize("chunk_size", [1, 1000])
def test_any_chunk_size(name, chunk_size):
    teachers = teachers_of()
    expected = run(model_with(TERMS[name](teachers)), batch_of(TEXTS), teachers)
    found = run(model_with(TERMS[name](teachers), chunk_size=chunk_size), batch_of(TEXTS), teachers)
    assert_same(expected, found, tolerance=1e-10)


@each_term
def test_no_term_reads_across_segments(name):
    """Documents that share a block count as in blocks of their own."""
    teachers = teachers_of()
    together, alone = batch_of(TEXTS), batch_of([[text] for texts in TEXTS for text in texts])
    assert_same(
        run(model_with(TERMS[name](teachers)), together, teachers),
        run(model_with(TERMS[name](teachers)), alone, teachers),
        tolerance=1e-10,
    )


@pytest.mark.parametrize("name", ["uld", "gold", "gold_first", "alm_plain"])
def test_nothing_is_to_learn_from_a_copy(name):
    teacher, batch = local_teacher(0, VOCAB_SIZE), batch_of(TEXTS)
    term = {"uld": UldTerm, "alm_plain": AlmTerm}.get(name, GoldTerm)(["t0"])
    loss, gradients = run(model_with(term), batch, [teacher])
    assert abs(float(loss)) < 1e-12
    assert max(float(gradient.abs().max()) for gradient in gradients.values()) < 1e-9


@pytest.mark.parametrize("name", ["uld", "gold", "gold_first", "alm_plain"])
def test_one_tokenizer_is_read_alike_with_and_without_alignment(name):
    """Aligned to itself, a teacher has the same stretches; only BOS is not shared."""
    aligned = aligned_teacher(8, STUDENT, width=32)
    term = {"uld": UldTerm, "alm_plain": AlmTerm}.get(name, GoldTerm)
    batch, model = batch_of(TEXTS), model_with(term(["t8"]))
    positions = predicted_positions(batch)
    output = aligned.score(batch, positions, need=model.objective.need)
    every = torch.arange(VOCAB_SIZE).unsqueeze(-1).expand(-1, 2)
    assert len(output.own.shared_tokens) == VOCAB_SIZE - 1
    output = replace(output, own=replace(output.own, shared_tokens=every))
    result = model(batch, positions, [output], counts_of(batch))
    result.loss.backward()
    found = result.loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters()}
    assert_same(found, run(model_with(term(["t8"])), batch, [aligned.teacher]), tolerance=1e-10)


# ---- what is absent, bad or left out


@each_term
def test_a_teacher_that_says_nothing_teaches_nothing(name):
    teachers, batch = teachers_of(), batch_of(TEXTS)
    model = model_with(TERMS[name](teachers))
    positions = predicted_positions(batch)
    outputs = [teacher.score(batch, positions, need=model.objective.need) for teacher in teachers]
    none = torch.zeros(len(positions), dtype=torch.bool)
    own = outputs[0].own
    own = replace(own, signal=replace(own.signal, valid=torch.zeros(len(own.labels), dtype=torch.bool)))
    absent = [replace(outputs[0], own=own), replace(outputs[1], signal=replace(outputs[1].signal, valid=none))]
    result = model(batch, positions, absent, counts_of(batch))
    result.loss.backward()
    assert float(result.loss.detach()) == 0.0
    gradients = [p.grad for p in model.objective.parameters()]
    assert all(gradient is not None and float(gradient.abs().max()) == 0.0 for gradient in gradients)


@each_term
def test_rows_that_are_not_finite_are_left_out(name):
    teachers, batch = teachers_of(), batch_of(TEXTS)
    model = model_with(TERMS[name](teachers))
    positions = predicted_positions(batch)
    outputs = [teacher.score(batch, positions, need=model.objective.need) for teacher in teachers]

    def spoilt(signal, rows, value):
        hidden = signal.hidden.clone()
        hidden[rows] = value
        return replace(signal, hidden=hidden, valid=None)

    def absent(signal, rows):
        valid = torch.ones(len(signal), dtype=torch.bool)
        valid[rows] = False
        return replace(signal, valid=valid)

    def run_with(change):
        own = replace(outputs[0].own, signal=change(outputs[0].own.signal, [3, 9, 10]))
        changed = [replace(outputs[0], own=own), replace(outputs[1], signal=change(outputs[1].signal, [4, 20]))]
        model.zero_grad()
        result = model(batch, positions, changed, counts_of(batch))
        result.loss.backward()
        return result.loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters()}

    bad, out = run_with(lambda signal, rows: spoilt(signal, rows, math.nan)), run_with(absent)
    assert bad[0].isfinite() and float(bad[0]) > 0
    if name in ("uld", "gold", "gold_first"):  # these read one or all rows of a stretch: more may be kept
        assert all(gradient.isfinite().all() for gradient in bad[1].values())
        return
    assert_same(bad, out, tolerance=1e-12)


@each_term
def test_no_positions_at_all(name):
    teachers, batch = teachers_of(), batch_of(TEXTS)
    nothing = replace(batch, labels=torch.full_like(batch.labels, -100))
    loss, gradients = run(model_with(TERMS[name](teachers)), nothing, teachers)
    assert float(loss) == 0.0
    assert all(float(gradient.abs().max()) == 0.0 for gradient in gradients.values())


def test_a_stretch_beside_what_is_not_predicted_is_left_out():
    """A masked label may be a part of the stretch, whose likelihood would then lack a factor."""
    teacher, batch = aligned_teacher(), batch_of([TEXTS[2]])
    stretches = stretches_of(batch, own_batch(teacher, batch), TABLES["other"])
    split = next(s for s in stretches if len(s.student) > 1)
    labels = batch.labels.clone()
    labels[0, split.student[0] + 1] = -100
    masked = replace(batch, labels=labels)
    positions = predicted_positions(masked)
    term = AlmTerm(["t7"])
    result = output_of(model_with(term), masked, [teacher])
    count = result.metrics["cross_tokenizer/0/t7/compared"]
    gone = [s for s in stretches if any(abs(row - split.student[0]) <= 1 for row in s.student)]
    assert split in gone
    assert int(count.total) == len(stretches) - len(gone)
    assert int(count.count) == len(positions)


@each_term
def test_half_precision_changes_little(name):
    """Autocast rounds the student's products; what is compared of them is in float32."""
    teachers, batch = teachers_of(), batch_of(TEXTS)
    for teacher in teachers:
        getattr(teacher, "teacher", teacher)._base.model.float()
    model = model_with(TERMS[name](teachers)).float()
    exact = output_of(model, batch, teachers).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = output_of(model, batch, teachers).loss
    rounded.backward()
    assert rounded.dtype == torch.float32
    assert float(rounded.detach()) == pytest.approx(float(exact.detach()), rel=0.05)
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())


# ---- lists


def listed(signal, labels, vocab_size):
    logprobs = signal.head(signal.hidden).log_softmax(-1)
    top = logprobs.topk(5)
    of_label = logprobs.gather(-1, labels[:, None]).squeeze(-1)
    return TopKSignal(top.indices, top.values, entropy(logprobs), of_label, vocab_size)


def test_lists_serve_alm_as_well_as_whole_distributions():
    teachers, batch = teachers_of(), batch_of(TEXTS)
    model, positions = model_with(AlmTerm(NAMES)), predicted_positions(batch)
    outputs = [teacher.score(batch, positions, need=model.objective.need) for teacher in teachers]
    own = outputs[0].own
    lists = [
        replace(outputs[0], own=replace(own, signal=listed(own.signal, own.labels, 520))),
        replace(outputs[1], signal=listed(outputs[1].signal, positions.labels, VOCAB_SIZE)),
    ]
    found, expected = (float(model(batch, positions, o, counts_of(batch)).loss) for o in (lists, outputs))
    assert found == pytest.approx(expected, rel=1e-10)
    debiased = model_with(AlmTerm(NAMES, boundaries=boundaries()))
    assert float(debiased(batch, positions, lists, counts_of(batch)).loss) == pytest.approx(expected, rel=1e-10)
    assert float(debiased(batch, positions, outputs, counts_of(batch)).loss) != pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("uld", "teacher 't7' gives lists"),
        ("gold", "teacher 't7' gives lists"),
        ("dskd", "teacher 't7' gives no hidden states"),
    ],
)
def test_lists_serve_no_other_term(name, message):
    teachers, batch = teachers_of(), batch_of(TEXTS)
    model, positions = model_with(TERMS[name](teachers)), predicted_positions(batch)
    outputs = [teacher.score(batch, positions, need=model.objective.need) for teacher in teachers]
    own = outputs[0].own
    lists = replace(outputs[0], own=replace(own, signal=listed(own.signal, own.labels, 520)))
    with pytest.raises(ValueError, match=message):
        model(batch, positions, [lists, outputs[1]], counts_of(batch))


def test_a_carried_signal_alone_is_no_view():
    teachers, batch = teachers_of(), batch_of(TEXTS)
    model, positions = model_with(UldTerm(NAMES)), predicted_positions(batch)
    outputs = [teacher.score(batch, positions, need=model.objective.need) for teacher in teachers]
    with pytest.raises(ValueError, match="teacher 't7' has another tokenizer, but does not show"):
        model(batch, positions, [replace(outputs[0], own=None), outputs[1]], counts_of(batch))


# ---- parts of the objective


def test_terms_are_weighed_and_logged():
    teachers, batch = teachers_of(), batch_of(TEXTS)
    alone = [float(run(model_with(TERMS[name](teachers)), batch, teachers)[0]) for name in ("uld", "alm")]
    first, second = (TERMS[name](teachers) for name in ("uld", "alm"))
    first.weight, second.weight = 0.5, 3.0
    model = model_with(first, second)
    model.objective.cross_tokenizer._weight = 2.0
    result = output_of(model, batch, teachers)
    expected = 2.0 * (0.5 * alone[0] + 3.0 * alone[1])
    assert float(result.loss) == pytest.approx(expected, rel=1e-10)
    metrics = {name: mean.value for name, mean in result.metrics.items() if "cross_tokenizer" in name}
    assert metrics["cross_tokenizer_loss"] == pytest.approx(expected / 2.0), "without the weight of all"
    assert [metrics[f"cross_tokenizer/{i}"] for i in (0, 1)] == pytest.approx(alone)
    assert 0.0 < metrics["cross_tokenizer/0/t7/compared"] < 1.0
    assert metrics["cross_tokenizer/0/t8/compared"] == 1.0


def test_a_term_without_weight_is_not_asked_but_its_parameters_have_a_gradient():
    teachers, batch = teachers_of(), batch_of(TEXTS)
    term = dual_space(teachers)
    term.weight = 0.0
    model = model_with(term)
    result = output_of(model, batch, teachers)
    result.loss.backward()
    assert float(result.loss.detach()) == 0.0 and "cross_tokenizer/0" not in result.metrics
    assert all(float(p.grad.abs().max()) == 0.0 for p in term.parameters())


def test_weights_and_importances_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="go together"):
        CrossTokenizerLoss(1.0, [])
    with pytest.raises(ValueError, match="go together"):
        CrossTokenizerLoss(0.0, [UldTerm(NAMES)])
    with pytest.raises(ValueError, match="importance must be 0 or more"):
        UldTerm(NAMES, importance=[1.0])


def test_the_student_head_gets_no_gradient_from_what_was_projected():
    """With an untrained teacher nothing is predicted right, so no KL to the projected states reaches the head."""
    teachers, batch = teachers_of()[1:], batch_of(TEXTS)
    student = pico_llama(0, vocab_size=VOCAB_SIZE, dtype=torch.float64, tied=False)
    model = model_with(dual_space(teachers))
    model.student = student
    result = output_of(model, batch, teachers)
    result.loss.backward()
    assert float(result.metrics["cross_tokenizer/0/t8/projected_accuracy"].total) == 0.0
    assert float(student.lm_head.weight.grad.abs().max()) == 0.0
    assert all(float(p.grad.abs().max()) > 0 for p in model.objective.parameters())

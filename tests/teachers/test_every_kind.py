"""The promises of the `Teacher` protocol, kept by every kind of teacher that there is."""

import json
from dataclasses import fields

import pytest
import torch

from collegium.base.errors import TeacherError
from collegium.fused.teacher_stats import teacher_stats
from collegium.signals.contracts import Batch, Capability, Teacher, TeacherStats, predicted_positions
from collegium.signals.inner_states import InnerLayers
from collegium.signals.signals import CarriedSignal, TopKSignal
from collegium.teachers.collect import reading_ahead
from tests.support.pico import VOCAB_SIZE
from tests.support.teacher_kinds import KINDS, STANDS_FOR, batch_of, inputs_of, rows


LISTS = frozenset({Capability.SAMPLES, Capability.TOP_K, Capability.FULL_VOCAB})
INNER = frozenset({Capability.HIDDEN_STATES, Capability.ATTENTION})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Teachers by kind and seed, each made once."""
    folder, known = tmp_path_factory.mktemp("teachers"), {}

    def make(kind, seed=1):
        if (kind, seed) not in known:
            known[kind, seed] = KINDS[kind](folder / kind / str(seed), seed)
        return known[kind, seed]

    return make


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def teacher(made, kind):
    return made(kind)


def scored(teacher, batch, need=frozenset({Capability.SAMPLES})):
    return teacher.score(batch, predicted_positions(batch), need=need)


def stats_of(teacher, batch) -> TeacherStats:
    return teacher_stats([scored(teacher, batch).signal], predicted_positions(batch).labels, chunk_size=7)


def by_position(teacher, *numbers) -> dict[tuple[int, int], list[float]]:
    """Entropy, cross-entropy and presence at each position of these blocks, asked in one batch."""
    batch = batch_of([rows()[number] for number in numbers])
    stats, length = stats_of(teacher, batch), batch.input_ids.shape[1]
    figures = torch.stack([stats.entropy, stats.cross_entropy, stats.valid.double()], -1).squeeze(1)
    figures[figures[:, 2] == 0] = 0.0
    places = predicted_positions(batch).index.tolist()
    return {
        (numbers[place // length], place % length): row
        for place, row in zip(places, figures.tolist(), strict=True)
    }


def tensors_of(thing) -> dict[str, torch.Tensor]:
    """All tensors of a signal, with those of what it makes distributions from."""
    found = {field.name: getattr(thing, field.name) for field in fields(thing)}
    found = {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}
    return found if isinstance(thing, TopKSignal) else {**found, "logits": thing.logits(slice(0, len(thing)))}


def assert_close(left, right, tolerance=2e-5):
    assert left.keys() == right.keys()
    for place, figures in left.items():
        assert figures == pytest.approx(right[place], abs=tolerance), place


ALL = range(len(rows()))
WHOLE = batch_of(rows())
POSITIONS = predicted_positions(WHOLE)


def test_it_answers_everything_that_the_protocol_asks(teacher):
    assert isinstance(teacher, Teacher)
    assert teacher.name == "pico" and teacher.fingerprint
    assert teacher.provides and teacher.provides <= frozenset(Capability)
    assert json.loads(json.dumps(dict(teacher.settings))) == dict(teacher.settings)


def test_its_signal_has_a_row_for_each_position(teacher):
    signal = scored(teacher, WHOLE).signal
    assert len(signal) == len(POSITIONS)
    assert signal.valid is None or (signal.valid.shape == (len(POSITIONS),) and signal.valid.dtype == torch.bool)
    if isinstance(signal, TopKSignal):
        assert signal.vocab_size == VOCAB_SIZE
        assert signal.logprobs.shape == signal.token_ids.shape
    else:
        assert signal.logits(slice(2, 9)).shape == (7, VOCAB_SIZE)


def test_it_gives_the_distributions_that_it_says(teacher):
    signal = scored(teacher, WHOLE, teacher.provides & LISTS).signal
    assert Capability.SAMPLES in teacher.provides
    assert isinstance(signal, TopKSignal) == (Capability.FULL_VOCAB not in teacher.provides)
    if isinstance(signal, TopKSignal):
        assert signal.drawn == (Capability.TOP_K not in teacher.provides)


def test_it_gives_the_inner_states_that_it_says(teacher):
    need = teacher.provides & (INNER | {Capability.SAMPLES})
    features, model = scored(teacher, WHOLE, need).features, teacher.underlying_model
    if not teacher.provides & INNER:
        assert features is None
        return
    assert set(features.hidden_states) == model.hidden_layers
    grid = (*WHOLE.input_ids.shape, model.hidden_size)
    assert all(states.shape == grid for states in features.hidden_states.values())
    assert bool(features.before_norm) == model.before_norm
    assert bool(features.queries) == (Capability.ATTENTION in teacher.provides) == (model.attention is not None)
    for queries in features.queries.values():
        assert queries.shape[1::2] == (model.attention.num_heads, model.attention.head_dim)


@pytest.mark.parametrize("capability", sorted(LISTS | INNER, key=str), ids=str)
def test_it_refuses_to_give_anything_else(teacher, capability):
    if capability in teacher.provides:
        scored(teacher, WHOLE, frozenset({capability}))
        return
    with pytest.raises(TeacherError, match=rf"teacher 'pico' is asked for {capability}, but provides "):
        scored(teacher, WHOLE, frozenset({capability}))


def test_inner_states_are_limited_to_the_layers_that_are_asked_for(kind, tmp_path):
    teacher = KINDS[kind](tmp_path, 1)
    teacher.limit_inner_states(InnerLayers(frozenset({2}), frozenset({1})))
    need = teacher.provides & (INNER | {Capability.SAMPLES})
    features = scored(teacher, WHOLE, need).features
    assert features is None or set(features.hidden_states) == {2}
    assert features is None or set(features.queries) <= {1}


def test_its_distributions_sum_to_one(teacher):
    signal = scored(teacher, WHOLE).signal
    valid = torch.ones(len(signal), dtype=torch.bool) if signal.valid is None else signal.valid
    assert valid.any()
    if isinstance(signal, TopKSignal):
        listed = signal.token_ids >= 0
        mass = signal.logprobs.exp().masked_fill(~listed, 0.0).sum(-1)
        rest = 1.0 - mass if signal.tail_logprob is None else signal.tail_logprob.exp()
        torch.testing.assert_close((mass + rest)[valid], torch.ones(int(valid.sum())), atol=2e-3, rtol=0)
        ids = signal.token_ids.masked_fill(~listed, VOCAB_SIZE).sort(-1).values
        assert not ((ids.diff(dim=-1) == 0) & (ids[:, 1:] < VOCAB_SIZE)).any()
        assert ids.max() <= VOCAB_SIZE
    elif isinstance(signal, CarriedSignal):
        total = signal.logits(slice(0, len(signal)))[valid].logsumexp(-1)
        torch.testing.assert_close(total, torch.zeros_like(total), atol=1e-5, rtol=0)
    else:
        assert signal.logits(slice(0, len(signal)))[valid].isfinite().all()


@pytest.mark.parametrize("kind", STANDS_FOR)
def test_it_says_what_the_teacher_says_that_it_stands_for(made, kind):
    """Of lists too the figures are those of the full distribution, to the precision of a file."""
    found, expected = by_position(made(kind), *ALL), by_position(made(STANDS_FOR[kind]), *ALL)
    spoken = {place for place, figures in found.items() if figures[2]}
    assert spoken
    assert_close({p: found[p] for p in spoken}, {p: expected[p] for p in spoken}, tolerance=2e-2)


def test_it_is_absent_outside_of_its_domains(teacher):
    stats = stats_of(teacher, WHOLE)
    if teacher.domains is None:
        assert stats.valid.any()
        return
    within = torch.isin(POSITIONS.domains, torch.tensor(teacher.domains))
    assert not stats.valid[~within].any() and stats.valid[within].any()
    elsewhere = batch_of(
        [row for row, domain in zip(rows(), WHOLE.domain_ids.tolist(), strict=True) if domain == 0]
    )
    assert not stats_of(teacher, elsewhere).valid.any()


def test_blocks_beside_it_change_nothing(teacher):
    together = by_position(teacher, *ALL)
    alone = {place: figures for number in ALL for place, figures in by_position(teacher, number).items()}
    assert_close(together, alone)
    assert_close(together, by_position(teacher, *reversed(ALL)))
    assert_close(
        {place: figures for place, figures in together.items() if place[0] == 1},
        {place: figures for place, figures in by_position(teacher, 1, 1).items() if place[0] == 1},
    )


def test_asking_again_gives_the_same_bits(made, kind, tmp_path):
    """Dropout is off, whatever the mode of the model that it was made from; so is it in one made again."""
    first, second = (tensors_of(scored(made(kind), WHOLE).signal) for _ in range(2))
    again = tensors_of(scored(KINDS[kind](tmp_path, 1), WHOLE).signal)
    assert first.keys() == second.keys() == again.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]) and torch.equal(tensor, again[name]), name


def test_what_is_read_ahead_is_what_is_read_when_asked(teacher):
    collate = reading_ahead(inputs_of, [teacher])
    assert (collate is not inputs_of) == teacher.reads_ahead
    ahead = Batch.from_inputs(collate(rows()))
    assert set(ahead.stored) == ({"pico"} if teacher.reads_ahead else set())
    if not teacher.reads_ahead:
        assert teacher.read(inputs_of(rows())) == {}
        return
    found, expected = (tensors_of(scored(teacher, batch).signal) for batch in (ahead, WHOLE))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def test_its_fingerprint_is_of_its_weights(made, kind, tmp_path):
    assert KINDS[kind](tmp_path, 1).fingerprint == made(kind).fingerprint
    assert made(kind, 2).fingerprint != made(kind).fingerprint


def test_no_gradient_reaches_it(teacher):
    output = scored(teacher, WHOLE, teacher.provides & (INNER | {Capability.SAMPLES}))
    assert not any(tensor.requires_grad for tensor in tensors_of(output.signal).values())
    if output.features is not None:
        assert not any(states.requires_grad for states in output.features.hidden_states.values())


def test_its_figures_are_of_full_precision_and_finite(teacher):
    stats = stats_of(teacher, WHOLE)
    assert stats.entropy.dtype in (torch.float32, torch.float64)
    assert stats.entropy[stats.valid].isfinite().all() and stats.cross_entropy[stats.valid].isfinite().all()
    assert (stats.entropy[stats.valid] >= 0).all()


def test_a_signal_moves_to_a_device(teacher):
    signal = scored(teacher, WHOLE).signal
    moved, there = tensors_of(signal.to(torch.device("cpu"))), tensors_of(signal)
    assert all(torch.equal(tensor, there[name]) for name, tensor in moved.items())


def test_natively_it_speaks_its_own_vocabulary_about_all_text(teacher):
    native = teacher.native
    assert native.native is native and native.name == teacher.name
    assert native.own_vocabulary is None and native.domains is None
    assert native.is_cached == teacher.is_cached
    assert native.underlying_model is not None


def test_it_shows_its_own_vocabulary_if_it_has_one(teacher):
    own, output = teacher.own_vocabulary, scored(teacher, WHOLE)
    if own is None:
        assert output.own is None
        return
    assert len(own.student) == VOCAB_SIZE and own.teacher[own.student.index(b"a")] != b"a"
    if teacher.domains is not None:
        return
    view = output.own
    assert len(view.signal) == len(view.inputs) == len(view.labels) == len(view.segments)
    assert int(view.labels.min()) >= 0 and int(view.labels.max()) < len(own.teacher)
    for student, theirs in view.shared_tokens.tolist():
        assert own.student[student] == own.teacher[theirs]
    runs_here = teacher.native.underlying_model.embed is not None
    assert (view.embed is not None) == runs_here == (not teacher.is_cached)


def test_it_writes_as_it_scores_if_it_writes(teacher):
    if Capability.GENERATE not in teacher.provides:
        with pytest.raises(TeacherError, match="teacher 'pico' does not write text"):
            teacher.next_tokens(2)
        return
    batch = batch_of([rows()[1]])
    expected = scored(teacher, batch).signal.logits(slice(0, 9)).log_softmax(-1)
    tokens = batch.input_ids[:, :9]
    with torch.no_grad():
        text = teacher.next_tokens(2)
        first = text.prefill(tokens[:, :8], torch.ones(1, 8, dtype=torch.bool))
        second = text.step(tokens[:, 8])
    torch.testing.assert_close(first.logprobs[0], expected[7], atol=1e-5, rtol=0)
    torch.testing.assert_close(second.logprobs[0], expected[8], atol=1e-5, rtol=0)
    assert float(first.entropy) == pytest.approx(float(-(expected[7].exp() * expected[7]).sum()), abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_a_local_one_keeps_the_type_of_its_model(dtype, tmp_path):
    teacher = KINDS["local"](tmp_path, 1)
    teacher._base.model.to(dtype)
    signal = scored(teacher, WHOLE).signal
    assert signal.hidden.dtype == signal.logits(slice(0, 2)).dtype == dtype
    assert stats_of(teacher, WHOLE).entropy.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)

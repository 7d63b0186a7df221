"""A restricted teacher says in its domains what the teacher says, and nothing elsewhere."""

import pytest
import torch

from collegium.base.errors import DataError
from collegium.data.collate import BlockCollator
from collegium.losses.weighting import Weighting
from collegium.signals.contracts import Batch, Capability, ItemCounts, predicted_positions
from collegium.teachers.cached import CachedTeacher
from collegium.teachers.collect import reading_ahead
from collegium.teachers.local import LocalTeacher
from collegium.teachers.restricted import RestrictedTeacher
from collegium.training.model import DistillationModel
from collegium.training.objective import Objective
from tests.support.caches import all_rows, builder_of, plan_of
from tests.support.pico import VOCAB_SIZE, pico_llama
from tests.support.runs import packed


NEED = frozenset({Capability.SAMPLES})
DOMAINS = ["cats", "dogs", "birds"]


def rows_of(*domains):
    blocks = packed()
    return [{**blocks[i], "domain": domain} for i, domain in enumerate(domains)]


def batch_of(*domains):
    return Batch.from_inputs(BlockCollator(pad_token_id=258, domains=DOMAINS)(rows_of(*domains)))


def local(seed=1, name="one"):
    return LocalTeacher(name, pico_llama(seed), vocab_size=VOCAB_SIZE, fingerprint=name)


def test_batches_and_positions_know_their_domains():
    batch = batch_of("dogs", "cats", "birds")
    positions = predicted_positions(batch)
    assert batch.domain_ids.tolist() == [1, 0, 2]
    length = batch.input_ids.shape[1]
    assert positions.domains.tolist() == [[1, 0, 2][i // length] for i in positions.index.tolist()]


@pytest.mark.parametrize("domains", [("dogs", "cats", "dogs", "birds"), ("cats", "cats"), ("dogs",)])
def test_it_is_the_teacher_in_its_domains(domains):
    batch, teacher = batch_of(*domains), local()
    positions = predicted_positions(batch)
    whole = teacher.score(batch, positions, need=NEED).signal
    part = RestrictedTeacher(teacher, [1]).score(batch, positions, need=NEED).signal
    inside = positions.domains == 1
    assert torch.equal(part.valid, inside)
    everything = slice(None)
    torch.testing.assert_close(part.logits(everything)[inside], whole.logits(everything)[inside])
    assert len(part) == len(positions)


@pytest.mark.parametrize("mode", ["top_k", "sampled", "hidden_states"])
@pytest.mark.parametrize("domains", [("dogs", "cats", "dogs"), ("cats", "birds"), ("dogs", "dogs")])
def test_a_cache_is_read_for_its_domains_only(mode, domains, tmp_path):
    builder_of(tmp_path, plan_of(mode)).build()
    cached = CachedTeacher("pico", tmp_path)
    stored = iter(all_rows())
    strange = iter(packed(24)[i] for i in range(4))  # blocks that no cache holds
    rows = [{**next(stored if d == "dogs" else strange), "domain": d} for d in domains]
    restricted = RestrictedTeacher(cached, [1])
    collate = reading_ahead(BlockCollator(pad_token_id=258, domains=DOMAINS), [restricted])
    batch = Batch.from_inputs(collate(rows))
    assert set(batch.stored) == {"pico"}
    positions = predicted_positions(batch)
    signal = restricted.score(batch, positions, need=NEED).signal
    inside = positions.domains == 1
    assert torch.equal(signal.valid, inside)
    own = [row for row, d in zip(rows, domains, strict=True) if d == "dogs"]
    if not own:
        return
    alone = Batch.from_inputs(BlockCollator(pad_token_id=258, pad_to=batch.input_ids.shape[1])(own))
    expected = cached.score(alone, predicted_positions(alone), need=NEED).signal
    if mode == "hidden_states":
        assert torch.equal(signal.hidden[inside], expected.hidden)
    else:
        assert torch.equal(signal.token_ids[inside], expected.token_ids)
        assert torch.equal(signal.entropy[inside], expected.entropy)


def loss_of(teachers, batch, weighting):
    torch.manual_seed(0)
    names = [teacher.name for teacher in teachers]
    objective = Objective(names, kd_weight=1.0, weighting=weighting)
    model = DistillationModel(pico_llama(0), objective, vocab_size=VOCAB_SIZE)
    positions = predicted_positions(batch)
    outputs = [teacher.score(batch, positions, need=objective.need) for teacher in teachers]
    counts = ItemCounts(torch.tensor(len(positions)), batch.attention_mask.sum())
    result = model(batch, positions, outputs, counts)
    result.loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return result, gradient


@pytest.mark.parametrize("weighting", [Weighting("uniform"), Weighting()], ids=["uniform", "entropy"])
def test_routing_by_domain_is_the_sum_of_single_teachers(weighting):
    """Two teachers, each in its own domain: the loss of each alone on its blocks, over the common count."""
    batch = batch_of("cats", "dogs", "cats", "dogs")
    one, two = local(1, "one"), local(2, "two")
    routed, gradient = loss_of([RestrictedTeacher(one, [0]), RestrictedTeacher(two, [1])], batch, weighting)
    parts = [loss_of([RestrictedTeacher(t, [d])], batch, weighting) for d, t in enumerate((one, two))]
    assert float(routed.loss.detach()) == pytest.approx(sum(float(r.loss.detach()) for r, _ in parts), rel=1e-5)
    torch.testing.assert_close(gradient, parts[0][1] + parts[1][1], rtol=1e-4, atol=1e-6)


def test_absence_is_not_unreliability_but_coverage():
    batch = batch_of("cats", "birds", "birds")
    result, gradient = loss_of([RestrictedTeacher(local(), [0])], batch, Weighting())
    share = float((predicted_positions(batch).domains == 0).float().mean())
    assert result.metrics["kd_coverage"].value == pytest.approx(share)
    assert result.metrics["teacher/one/invalid_fraction"].value == 0
    assert gradient.isfinite().all() and gradient.abs().sum() > 0


def test_a_batch_without_domains_is_refused():
    batch = Batch.from_inputs(BlockCollator(pad_token_id=258)(rows_of("cats")))
    with pytest.raises(DataError, match=r"BlockCollator\(domains"):
        RestrictedTeacher(local(), [0]).score(batch, predicted_positions(batch), need=NEED)


def test_it_gives_no_inner_states():
    assert Capability.HIDDEN_STATES not in RestrictedTeacher(local(), [0]).provides

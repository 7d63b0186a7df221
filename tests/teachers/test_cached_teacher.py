"""A cached teacher stands for the one that runs: same loss, same weights, in any order and any batch."""

import copy

import pytest
import torch

from collegium.base.errors import DataError, TeacherError
from collegium.cache.builder import CacheBuilder
from collegium.cache.folder import Folder
from collegium.cache.manifest import CacheSettings, Manifest, TeacherIdentity
from collegium.data.collate import BlockCollator
from collegium.evaluation.language_modeling import HeldOut
from collegium.fused.chunked import KdTarget
from collegium.losses.divergences import forward_kl
from collegium.losses.fusion import mixture_logprobs
from collegium.losses.weighting import Weighting
from collegium.models.head import ProjectionHead
from collegium.signals.contracts import Batch, Capability, ItemCounts, predicted_positions
from collegium.teachers.cached import CachedTeacher, ReadAhead
from collegium.teachers.collect import reading_ahead
from collegium.teachers.local import LocalTeacher
from collegium.training.model import DistillationModel
from collegium.training.objective import Objective
from collegium.training.terms.features import HiddenStatesTerm
from collegium.training.trainer import DistillationTrainer
from tests.support.pico import VOCAB_SIZE, byte_tokenizer, pico_llama
from tests.support.runs import arguments, packed, weights_of


NEED = frozenset({Capability.SAMPLES})
LISTS = {"max_kept": VOCAB_SIZE, "min_probability": 1e-7}
SETTINGS = {
    "hidden": CacheSettings(mode="hidden_states", rows_per_shard=5),
    "everything": CacheSettings(rows_per_shard=5, **LISTS),
    "top_k": CacheSettings(rows_per_shard=5, min_probability=3e-3, max_kept=64),
    "sampled": CacheSettings(mode="sampled", rows_per_shard=5, num_samples=255),
}


def local(seed, **options):
    name = f"teacher-{seed}"
    return LocalTeacher(name, pico_llama(seed), vocab_size=VOCAB_SIZE, fingerprint=name, **options)


def collator(**options):
    return BlockCollator(pad_token_id=258, **options)


def build(location, seed, settings, **options):
    teacher, rows = local(seed, **options), packed()
    identity = TeacherIdentity(teacher.fingerprint, teacher.name, VOCAB_SIZE, 32, 2)
    plan = Manifest(identity, "pico text", {"train": len(rows)}, settings)
    blocks = [rows[i] for i in range(len(rows))]
    CacheBuilder(Folder.at(location), lambda: teacher, blocks, collator(), plan, batch_size=3).build()
    return teacher


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    folder = tmp_path_factory.mktemp("caches")
    for name, settings in SETTINGS.items():
        for seed in (1, 2):
            build(folder / f"{name}-{seed}", seed, settings)
    return folder


def batch_of(numbers, **options):
    rows = packed()
    return Batch.from_inputs(collator(**options)([rows[i] for i in numbers]))


def loss_of(teachers, batch, *, target=None, weighting=None, feature=None):
    student = pico_llama(0)
    names = [teacher.name for teacher in teachers]
    objective = Objective(
        names,
        kd_weight=1.0,
        target=target,
        weighting=weighting or Weighting("entropy", "window:8", 0.5),
        feature_weight=0.0 if feature is None else 0.3,
        features=[] if feature is None else [copy.deepcopy(feature)],
    )
    model = DistillationModel(student, objective, vocab_size=VOCAB_SIZE)
    positions = predicted_positions(batch)
    counts = ItemCounts(torch.tensor(len(positions)), batch.attention_mask.sum())
    outputs = [teacher.score(batch, positions, need=objective.need) for teacher in teachers]
    result = model(batch, positions, outputs, counts)
    result.loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])
    return result, gradient


def error(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(("kept", "limit"), [("hidden", 1e-3), ("everything", 6e-3), ("top_k", 0.2)])
def test_the_gradient_is_that_of_the_teachers_themselves(caches, kept, limit):
    batch = batch_of([3, 0, 7, 12])
    _, expected = loss_of([local(1), local(2)], batch)
    result, found = loss_of([CachedTeacher(f"teacher-{m}", caches / f"{kept}-{m}") for m in (1, 2)], batch)
    assert 0 < error(found, expected) < limit
    assert result.metrics["kd_coverage"].total == result.metrics["kd_coverage"].count


@pytest.mark.parametrize("kept", ["top_k", "sampled", "hidden"])
def test_weights_come_from_exact_entropies(caches, kept):
    batch = batch_of([1, 2, 5])
    positions = predicted_positions(batch)
    online, _ = loss_of([local(1), local(2)], batch)
    cached, _ = loss_of([CachedTeacher(f"teacher-{m}", caches / f"{kept}-{m}") for m in (1, 2)], batch)
    for name in ("weight", "entropy", "cross_entropy"):
        for m in (1, 2):
            key = f"teacher/teacher-{m}/{name}"
            found, expected = (float(r.metrics[key].total) / len(positions) for r in (cached, online))
            assert found == pytest.approx(expected, abs=2e-3 if kept == "hidden" else 1e-5)


def test_drawn_tokens_are_right_on_average(tmp_path):
    """The mean over seeds of what is drawn comes near the distribution itself."""
    batch = batch_of([4])
    positions = predicted_positions(batch)
    teacher = local(1)
    exact = teacher.score(batch, positions, need=NEED).signal.logits(slice(0, len(positions))).softmax(-1)
    means = []
    for seed in range(12):
        build(tmp_path / f"{seed}", 1, CacheSettings(mode="sampled", num_samples=20, seed=seed))
        signal = CachedTeacher("teacher-1", tmp_path / f"{seed}").score(batch, positions, need=NEED).signal
        probs = signal.logprobs.exp() * (signal.token_ids >= 0)
        torch.testing.assert_close(probs.sum(-1), torch.ones(len(positions)))
        dense = torch.zeros_like(exact).scatter_add_(-1, signal.token_ids.clamp_min(0).long(), probs)
        means.append(dense)
    one, all_ = error(means[0], exact), error(torch.stack(means).mean(0), exact)
    assert all_ < 0.45 * one


@pytest.mark.parametrize("kept", list(SETTINGS))
def test_order_padding_and_batch_size_do_not_matter(caches, kept):
    teacher = CachedTeacher("teacher-1", caches / f"{kept}-1")
    numbers = [9, len(packed()) - 1, 2]

    def figures(batch):
        positions = predicted_positions(batch)
        signal = teacher.score(batch, positions, need=NEED).signal
        if kept == "hidden":
            return {
                i: signal.hidden[positions.index // batch.input_ids.shape[1] == i]
                for i in range(len(batch.labels))
            }
        block = positions.index // batch.input_ids.shape[1]
        return {
            i: (signal.entropy[block == i], signal.label_logprob[block == i]) for i in range(len(batch.labels))
        }

    together = figures(batch_of(numbers, padding_side="left", pad_to=40))
    for place, number in enumerate(numbers):
        alone = figures(batch_of([number]))[0]
        for one, other in zip(together[place], alone, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("kept", ["top_k", "hidden"])
def test_masked_labels_take_their_own_rows(caches, kept):
    teacher = CachedTeacher("teacher-1", caches / f"{kept}-1")
    whole = batch_of([3, 4])
    part = Batch.from_inputs(
        {**vars(whole), "labels": whole.labels.masked_fill(torch.rand(whole.labels.shape) < 0.5, -100)}
    )
    all_positions, positions = predicted_positions(whole), predicted_positions(part)
    assert 0 < len(positions) < len(all_positions)
    keep = torch.isin(all_positions.index, positions.index)
    full, some = (teacher.score(b, p, need=NEED).signal for b, p in ((whole, all_positions), (part, positions)))
    name = "hidden" if kept == "hidden" else "entropy"
    assert torch.equal(getattr(full, name)[keep], getattr(some, name))


def test_what_was_read_ahead_is_what_is_read_now(caches):
    teachers = [CachedTeacher("lists", caches / "top_k-1"), CachedTeacher("states", caches / "hidden-2")]
    rows = packed()
    ahead = Batch.from_inputs(ReadAhead(collator(), teachers)([rows[0], rows[5]]))
    assert set(ahead.stored) == {"lists", "states"}
    now = batch_of([0, 5])
    positions = predicted_positions(now)
    for teacher in teachers:
        one, other = (teacher.score(b, positions, need=NEED).signal for b in (ahead, now))
        for name, value in vars(one).items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, getattr(other, name))
    plain = collator()
    assert reading_ahead(plain, [local(1)]) is plain


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_run_from_caches_and_a_running_teacher(caches, tmp_path, num_workers):
    def run(first):
        trainer = DistillationTrainer(
            pico_llama(0),
            teachers=[first, local(2)],
            args=arguments(tmp_path, dataloader_num_workers=num_workers),
            train_dataset=packed(),
            eval_dataset=packed(),
            processing_class=byte_tokenizer(),
        )
        trainer.train()
        assert trainer.evaluate()["eval_nll"] > 0
        return weights_of(trainer)

    cached = run(CachedTeacher("teacher-1", caches / "hidden-1"))
    online = run(local(1))
    for name, weight in online.items():
        assert torch.allclose(cached[name], weight, atol=2e-3), name


def test_features_are_matched_from_disk(caches):
    torch.manual_seed(3)
    feature = HiddenStatesTerm((32, 2), [(32, 2)], layer_map="last")
    batch = batch_of([0, 1])
    _, expected = loss_of([local(1)], batch, feature=feature)
    _, found = loss_of([CachedTeacher("teacher-1", caches / "hidden-1")], batch, feature=feature)
    assert error(found, expected) < 1e-3


def test_hidden_states_serve_any_temperature(caches):
    target = KdTarget(forward_kl, mixture_logprobs, 2.0)
    options = {"weight_temperature": 1.3, "target_temperature": 0.8}
    batch = batch_of([2, 3])
    _, expected = loss_of([local(1, **options)], batch, target=target)
    teacher = CachedTeacher("teacher-1", caches / "hidden-1", kd_temperature=2.0, **options)
    _, found = loss_of([teacher], batch, target=target)
    assert error(found, expected) < 1e-3


def test_lists_serve_the_temperatures_that_they_were_made_for(tmp_path):
    temperatures = {"kd_temperature": 2.0, "weight_temperature": 1.3, "target_temperature": 0.8}
    own = {"weight_temperature": 1.3, "target_temperature": 0.8}
    build(tmp_path / "cache", 1, CacheSettings(rows_per_shard=5, **LISTS, **temperatures), **own)
    target = KdTarget(forward_kl, mixture_logprobs, 2.0)
    batch = batch_of([2, 3])
    online, expected = loss_of([local(1, **own)], batch, target=target)
    teacher = CachedTeacher("teacher-1", tmp_path / "cache", **temperatures)
    cached, found = loss_of([teacher], batch, target=target)
    assert error(found, expected) < 1e-2
    for name in ("entropy", "cross_entropy"):
        key = f"teacher/teacher-1/{name}"
        assert float(cached.metrics[key].total) == pytest.approx(float(online.metrics[key].total), rel=1e-5)
    with pytest.raises(DataError, match=r"made at kd_temperature 2, now 1 is asked for"):
        CachedTeacher("teacher-1", tmp_path / "cache", **own)
    with pytest.raises(DataError, match=r"made at weight_temperature 1.3, now 1 is asked for"):
        CachedTeacher("teacher-1", tmp_path / "cache", kd_temperature=2.0, target_temperature=0.8)


def test_a_block_that_was_never_scored_is_refused(caches):
    teacher = CachedTeacher("teacher-1", caches / "top_k-1")
    batch = batch_of([0])
    batch.input_ids[0, 0] += 1
    with pytest.raises(DataError, match=r"holds no block with these tokens.*pico text"):
        teacher.score(batch, predicted_positions(batch), need=NEED)


def test_a_teacher_that_is_not_a_number_is_absent(tmp_path):
    def spoiled():
        teacher = local(1)
        with torch.no_grad():
            teacher._base.causal_lm.model.norm.weight[0] = torch.nan
        return teacher

    rows = packed()
    identity = TeacherIdentity("bad", "bad", VOCAB_SIZE, 32, 2)
    plan = Manifest(identity, "pico text", {"train": len(rows)}, CacheSettings())
    CacheBuilder(Folder.at(tmp_path / "bad"), spoiled, rows, collator(), plan).build()
    batch = batch_of([0, 1])
    result, _ = loss_of([CachedTeacher("bad", tmp_path / "bad")], batch)
    assert float(result.metrics["kd_coverage"].total) == 0
    assert float(result.metrics["teacher/bad/invalid_fraction"].total) == len(predicted_positions(batch))


def test_hidden_states_need_a_head_that_is_a_linear_map(tmp_path):
    teacher, rows = local(1), packed()
    teacher._base.causal_lm.lm_head.register_forward_hook(lambda *_: None)
    identity = TeacherIdentity("x", "x", VOCAB_SIZE, 32, 2)
    plan = Manifest(identity, "pico text", {"train": len(rows)}, SETTINGS["hidden"])
    with pytest.raises(TeacherError, match="use mode: top_k"):
        CacheBuilder(Folder.at(tmp_path / "x"), lambda: teacher, rows, collator(), plan).build()


def test_drawn_teachers_are_measured_on_average(caches):
    """KL to each from its exact entropy; none to a mixture of draws."""

    def measured(kept):
        teachers = [CachedTeacher(f"teacher-{m}", caches / f"{kept}-{m}") for m in (1, 2)]
        held_out = HeldOut({"text": packed()}, collator(), teachers=teachers)
        student = pico_llama(0)
        trunk = student.model
        return held_out.measure_student(
            lambda b: trunk(input_ids=b.input_ids, position_ids=b.position_ids, use_cache=False).last_hidden_state,
            ProjectionHead.from_model(student, VOCAB_SIZE),
        )["text"]

    exact, drawn = measured("hidden"), measured("sampled")
    for m in (1, 2):
        key = f"teacher/teacher-{m}/kl"
        assert drawn.mean(key) == pytest.approx(exact.mean(key), rel=0.02)
    assert "kl/common" in exact.sums
    assert not {"kl/common", "agreement"} & set(drawn.sums)


@pytest.mark.parametrize("mode", ["top_k", "hidden_states"])
def test_prompts_are_stored_too_and_have_no_say(tmp_path, mode):
    rows = [{**row, "segment_prompts": [n // 2 for n in row["segment_lengths"]]} for row in packed()]
    settings = CacheSettings(mode=mode, rows_per_shard=5, **(LISTS if mode == "top_k" else {}))
    teacher = local(1)
    identity = TeacherIdentity(teacher.fingerprint, teacher.name, VOCAB_SIZE, 32, 2)
    plan = Manifest(identity, "pico text", {"train": len(rows)}, settings)
    CacheBuilder(Folder.at(tmp_path), lambda: teacher, rows, collator(), plan, batch_size=3).build()
    cached = CachedTeacher("teacher-1", tmp_path)
    for given in (rows[2:5], [packed()[i] for i in (2, 3, 4)]):  # with prompts, and the same text without
        batch = Batch.from_inputs(collator()(given))
        positions = predicted_positions(batch)
        assert len(positions) > 0
        found, expected = (t.score(batch, positions, need=NEED).signal for t in (cached, teacher))
        if mode == "top_k":
            logprobs = expected.logits(slice(None)).log_softmax(-1).gather(-1, positions.labels[:, None])[:, 0]
            torch.testing.assert_close(found.label_logprob, logprobs, atol=2e-3, rtol=0)
        else:
            torch.testing.assert_close(found.hidden, expected.hidden, atol=2e-2, rtol=0)

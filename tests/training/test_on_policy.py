"""On-policy steps: fixed points, references for whole steps, any cut of a step, resuming, and what is refused."""

import functools
import math

import pytest
import torch

from collegium.base.errors import TeacherError
from collegium.data.collate import BlockCollator
from collegium.fused.chunked import KdTarget
from collegium.losses.divergences import forward_kl, generalized_jsd, reverse_kl
from collegium.losses.fusion import geometric_logprobs, mixture_logprobs
from collegium.losses.weighting import Weighting
from collegium.signals.contracts import Batch, Capability, predicted_positions
from collegium.teachers.defaults import TeacherDefaults
from collegium.teachers.local import LocalTeacher
from collegium.training.model import DistillationModel
from collegium.training.objective import Objective
from collegium.training.on_policy import OnPolicy, PolicyGradient
from collegium.training.rollout import Sampling
from collegium.training.trainer import DistillationTrainer
from tests.support.pico import byte_tokenizer, pico_llama
from tests.support.runs import arguments, packed, same, stop_after, weights_of


JSD = functools.partial(generalized_jsd, beta=0.5)


def sampling(**changes) -> Sampling:
    defaults = {
        "fraction": 0.5,
        "prompt_length": 8,
        "max_new_tokens": 12,
        "stop_token_id": 257,
        "pad_token_id": 258,
        "seed": 5,
    }
    return Sampling(**{**defaults, **changes})


def objective_of(divergence=reverse_kl, *, fusion=mixture_logprobs, **changes) -> Objective:
    options = {"kd_weight": 0.5, "weighting": Weighting("entropy", "sequence", 0.5), "chunk_size": 13, **changes}
    return Objective(target=KdTarget(divergence, fusion), **options)


def trainer_of(folder, on_policy, *, objective=None, teachers=(1, 2), student=None, **changes):
    return DistillationTrainer(
        student if student is not None else pico_llama(0),
        teachers=[pico_llama(seed) for seed in teachers],
        objective=objective or objective_of(),
        args=arguments(folder, **{"per_device_train_batch_size": 8, "learning_rate": 1e-3, **changes}),
        train_dataset=packed(),
        processing_class=byte_tokenizer(),
        on_policy=on_policy,
    )


MINILLM = OnPolicy(sampling(teacher_share=0.2), PolicyGradient())
GKD = OnPolicy(sampling(temperature=0.9))


class TestOneStep:
    """`OnPolicy.prepare` in float64, against loops over the rollouts."""

    def model(self, **changes) -> DistillationModel:
        model = DistillationModel(pico_llama(0, dtype=torch.float64), objective_of(**changes), vocab_size=260)
        model.objective.teacher_names = ("a", "b")
        return model

    def teachers(self) -> list[LocalTeacher]:
        models = {name: pico_llama(seed, dtype=torch.float64) for name, seed in (("a", 1), ("b", 2))}
        return [LocalTeacher(name, model, vocab_size=260, fingerprint=name) for name, model in models.items()]

    def inputs(self, indices) -> dict[str, torch.Tensor]:
        blocks = packed()
        return BlockCollator(pad_token_id=258)([blocks[i] for i in indices])

    def prepare(self, on_policy, cuts, *, model=None, add_up=lambda own: own):
        inputs = [self.inputs(cut) for cut in cuts]
        model = model or self.model()
        return on_policy.prepare(inputs, model, self.teachers(), step=2, add_up=add_up)

    def by_sample(self, prepared):
        """Label weights of each block, whatever micro-batch it is in."""
        rows = {}
        for inputs in prepared:
            batch = Batch.from_inputs(inputs)
            positions = predicted_positions(batch)
            row_of = positions.index // batch.input_ids.shape[1]
            for row, sample in enumerate(batch.sample_ids.tolist()):
                own = row_of == row
                weights = batch.weights.kd[own].tolist() + batch.weights.ce[own].tolist()
                rows[sample] = (positions.labels[own].tolist(), weights)
        return rows

    def require_same(self, one, other):
        one, other = self.by_sample(one), self.by_sample(other)
        assert one.keys() == other.keys()
        for sample, (labels, weights) in one.items():
            assert other[sample][0] == labels
            assert other[sample][1] == pytest.approx(weights, rel=1e-6, abs=1e-9)

    @pytest.mark.parametrize("on_policy", [GKD, MINILLM], ids=["gkd", "minillm"])
    def test_weights_do_not_depend_on_the_cut(self, on_policy):
        whole, _ = self.prepare(on_policy, [range(8)])
        cut, _ = self.prepare(on_policy, [[0, 4, 2, 3, 1], [6, 5], [7]])
        self.require_same(whole, cut)

    @pytest.mark.parametrize("on_policy", [GKD, MINILLM], ids=["gkd", "minillm"])
    def test_two_ranks_are_one(self, on_policy):
        shares, sums = (range(0, 3), range(3, 8)), []

        def remember(own):
            sums.append(own.clone())
            return own

        for share in shares:
            self.prepare(on_policy, [share], add_up=remember)
        both = [self.prepare(on_policy, [share], add_up=lambda own: own * 0 + sum(sums))[0] for share in shares]
        whole, _ = self.prepare(on_policy, [range(8)])
        self.require_same(whole, [*both[0], *both[1]])

    @pytest.mark.parametrize("judge", ["mixture", "route", "consensus"])
    @pytest.mark.parametrize("fusion", [mixture_logprobs, geometric_logprobs])
    def test_policy_weights_are_those_of_a_plain_loop(self, judge, fusion):
        policy = PolicyGradient(judge=judge, gamma=0.9, reward_scale=0.5, reward_clip=3.0, ratio_clip=0.2)
        on_policy = OnPolicy(sampling(fraction=1.0, teacher_share=0.2), policy)
        model, teachers = self.model(fusion=fusion), self.teachers()
        prepared, metrics = self.prepare(on_policy, [[0, 1], [2, 3, 4]], model=model)
        advantages, importance, found = [], [], []
        for inputs in prepared:
            batch = Batch.from_inputs(inputs)
            assert batch.weights.kd.tolist() == [1.0] * len(batch.weights.kd)
            found += batch.weights.ce.tolist()
            for ids, mask, labels in zip(batch.input_ids, batch.attention_mask, batch.labels, strict=True):
                ids, length = ids[mask], int((labels >= 0).sum())
                steps, tokens = slice(len(ids) - length - 1, len(ids) - 1), ids[-length:].unsqueeze(-1)
                with torch.no_grad():
                    models = [model.student, *(t._base.model for t in teachers)]
                    q, *ps = (m(ids[None]).logits[0, steps, :260].log_softmax(-1) for m in models)
                entropies = torch.stack([-(p.exp() * p).sum(-1) for p in ps], -1)  # [n 2]
                weights = (-entropies.mean(0) / 0.5).softmax(-1).tolist()  # of the sequence
                at_token = [p.gather(-1, tokens)[:, 0].tolist() for p in (q, *ps)]
                rewards = []
                for own, *theirs in zip(*at_token, strict=True):
                    if judge == "route":
                        verdict = theirs[weights.index(max(weights))]
                    elif fusion is mixture_logprobs:
                        verdict = math.log(sum(w * math.exp(p) for w, p in zip(weights, theirs, strict=True)))
                    else:
                        verdict = sum(w * p for w, p in zip(weights, theirs, strict=True))
                    reward = max(-3.0, min(3.0, (verdict - own) / 0.5))
                    agreed = len({p > own for p in theirs}) == 1
                    rewards.append(reward if agreed or judge != "consensus" else 0.0)
                for t in range(length):
                    future = sum(0.9 ** (u - t) * rewards[u] for u in range(t, length))
                    advantages.append(future / (length - t))
                per_token = (-entropies / 0.5).softmax(-1)
                if fusion is mixture_logprobs:
                    fused = sum(per_token[:, m, None] * p.exp() for m, p in enumerate(ps)).log()
                else:
                    fused = sum(per_token[:, m, None] * p for m, p in enumerate(ps)).log_softmax(-1)
                sampled = 0.2 * _at(fused, 0.9, tokens) + 0.8 * _at(q, 0.9, tokens)
                importance += (q.gather(-1, tokens)[:, 0].exp() / sampled).tolist()
        values = torch.tensor(advantages, dtype=torch.float64)
        whitened = (values - values.mean()) / (values.var(unbiased=False) + 1e-8).sqrt()
        expected = [
            0.0 if (a > 0 and w > 1.2) or (a < 0 and w < 0.8) else a * w
            for a, w in zip(whitened.tolist(), importance, strict=True)
        ]
        assert found == pytest.approx(expected, abs=1e-9)
        assert float(metrics["importance_weight"].count) == len(found)

    def test_the_students_text_and_the_corpus_are_means_of_their_own(self):
        prepared, metrics = self.prepare(GKD, [range(0, 4), range(4, 8)])
        totals = {True: 0.0, False: 0.0}
        for inputs in prepared:
            batch = Batch.from_inputs(inputs)
            positions = predicted_positions(batch)
            own = batch.on_policy[positions.index // batch.input_ids.shape[1]]
            for kind in totals:
                totals[kind] += float((batch.weights.kd + batch.weights.ce)[own == kind].sum())
        assert totals[True] == pytest.approx(totals[False]), "fraction 0.5"
        assert 0 < metrics["on_policy_blocks"].value < 1


def _at(logprobs, temperature, tokens):
    return (logprobs / temperature).softmax(-1).gather(-1, tokens)[:, 0]


@pytest.mark.parametrize("divergence", [forward_kl, reverse_kl, JSD], ids=["forward", "reverse", "jsd"])
def test_a_student_that_equals_its_teachers_has_nothing_to_learn(tmp_path, divergence):
    """Zero loss and gradient on its own text: labels, positions and prompts are those of the teachers."""
    on_policy = OnPolicy(sampling(fraction=1.0))
    objective = objective_of(divergence, kd_weight=1.0)
    trainer = trainer_of(tmp_path, on_policy, objective=objective, teachers=(0, 0), max_steps=2)
    trainer.train()
    line = trainer.state.log_history[0]
    assert line["loss"] == pytest.approx(0.0, abs=1e-6)
    assert line["grad_norm"] < 1e-5
    assert line["cross_entropy"] > 1.0, "there was something to predict"


def test_rewards_of_a_student_that_equals_its_teachers_are_0(tmp_path):
    trainer = trainer_of(tmp_path, MINILLM, teachers=(0, 0), max_steps=1)
    trainer.train()
    line = trainer.state.log_history[0]
    assert line["reward"] == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("on_policy", [GKD, MINILLM], ids=["gkd", "minillm"])
def test_accumulation_is_one_batch(tmp_path, on_policy):
    results = []
    for batch_size, accumulation in ((8, 1), (2, 4)):
        trainer = trainer_of(
            tmp_path,
            on_policy,
            max_steps=2,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
        )
        trainer.train()
        logs = [line for line in trainer.state.log_history if "loss" in line]
        results.append(
            (weights_of(trainer), [line["loss"] for line in logs], [line["on_policy_blocks"] for line in logs])
        )
    for weights, losses, shares in results[1:]:
        assert shares == results[0][2]
        assert losses == pytest.approx(results[0][1], rel=1e-4)
        for name, weight in weights.items():
            assert torch.allclose(weight, results[0][0][name], atol=5e-5), name


@pytest.mark.parametrize("on_policy", [GKD, MINILLM], ids=["gkd", "minillm"])
def test_resumed_is_uninterrupted_bit_for_bit(tmp_path, on_policy):
    """With dropout in the student while it learns, and none while it writes."""

    def trainer(folder):
        options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "gradient_accumulation_steps": 2}
        student = pico_llama(0, dropout=0.3)
        return trainer_of(folder, on_policy, student=student, per_device_train_batch_size=2, **options)

    whole = trainer(tmp_path / "whole")
    whole.train()
    first = trainer(tmp_path / "stopped")
    stop_after(first, 3)
    first.train()
    second = trainer(tmp_path / "stopped")
    second.train(resume_from_checkpoint=True)
    assert same(weights_of(whole), weights_of(second))


def test_mixed_precision_and_gradient_checkpointing(tmp_path):
    """The student writes in the type it learns in; checkpointing is for backward alone and changes nothing."""
    logs = {}
    for options in ({}, {"gradient_checkpointing": True}, {"bf16": True}):
        trainer = trainer_of(tmp_path, MINILLM, max_steps=1, **options)
        trainer.train()
        logs[tuple(options)] = trainer.state.log_history[0]
    assert logs["gradient_checkpointing",]["loss"] == pytest.approx(logs[()]["loss"], rel=1e-5)
    assert logs["bf16",]["loss"] == pytest.approx(logs[()]["loss"], rel=0.3)
    assert logs["bf16",]["importance_weight"] == pytest.approx(1.0, abs=0.3)


def test_each_step_writes_anew(tmp_path):
    trainer = trainer_of(tmp_path, OnPolicy(sampling(fraction=1.0)))
    inputs = BlockCollator(pad_token_id=258)([packed()[0]])
    prepare = functools.partial(trainer.on_policy.prepare, add_up=lambda own: own)
    texts = [
        prepare([inputs], trainer.distillation_model, trainer.teachers, step=step)[0][0]["input_ids"].tolist()
        for step in (0, 1, 1)
    ]
    assert texts[0] != texts[1] == texts[2]


def test_learning_from_its_own_text_reduces_the_reverse_kl(tmp_path):
    """Twenty steps of the policy gradient alone: no divergence beside it, no corpus."""
    policy = PolicyGradient(gamma=0.0, single_step_weight=0.0)
    on_policy = OnPolicy(sampling(fraction=1.0, stop_token_id=None), policy)
    trainer = trainer_of(tmp_path, on_policy, max_steps=20, learning_rate=1e-2, lr_scheduler_type="constant")
    trainer.train()
    rewards = [line["reward"] for line in trainer.state.log_history if "reward" in line]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.3


class StoredOnly(TeacherDefaults):
    name, fingerprint, provides = "stored", "", frozenset({Capability.TOP_K, Capability.SAMPLES})

    def score(self, batch, positions, *, need):
        raise AssertionError("refused before")


def test_what_cannot_judge_is_refused(tmp_path):
    with pytest.raises(TeacherError, match=r"teacher 'stored' knows stored text only.*run the teacher"):
        GKD.check([StoredOnly()], objective_of())
    with pytest.raises(ValueError, match="set kd_weight above 0"):
        GKD.check([], objective_of(kd_weight=0.0))
    with pytest.raises(ValueError, match="label_smoothing"):
        MINILLM.check([], objective_of(label_smoothing=0.1))

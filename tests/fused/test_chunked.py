"""Both drivers of the loss against one that holds every [N V] tensor, and what must not change it."""

import math
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy, linear

from collegium.fused import chunked, fused
from collegium.fused.chunked import KdTarget
from collegium.fused.teacher_stats import teacher_stats
from collegium.losses.chunks import chunks
from collegium.losses.divergences import forward_kl, generalized_jsd, reverse_kl, total_variation
from collegium.losses.fusion import geometric_logprobs, mixture_logprobs
from collegium.losses.teacher_weights import entropy_weights
from collegium.losses.weighting import GivenWeights, Weighting
from collegium.models.head import ProjectionHead
from collegium.signals.contracts import Positions
from collegium.signals.signals import DenseSignal, ProjectedSignal
from tests.support.heads import WeightHead


N, V, D, E = 7, 11, 5, 4

DIVERGENCES = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jsd": partial(generalized_jsd, beta=0.3),
    "total_variation": total_variation,
}
FUSIONS = {"mixture": mixture_logprobs, "geometric": geometric_logprobs}
divergence_names = st.sampled_from(sorted(DIVERGENCES))
fusion_names = st.sampled_from(sorted(FUSIONS))
each_divergence = pytest.mark.parametrize("divergence", DIVERGENCES)
each_fusion = pytest.mark.parametrize("fusion", FUSIONS)
seeds = st.integers(0, 2**32 - 1)
chunk_sizes = st.integers(1, N + 2)
temperatures = st.sampled_from([0.6, 1.0, 1.7, 4.0])

DRIVERS = {"plain": chunked.distillation_loss, "fused": fused.distillation_loss}
SUMS = ("kd", "cross_entropy", "covered", "target_entropy", "conflict", "teacher_kl")
current = {}


@pytest.fixture(params=DRIVERS, scope="module", autouse=True)
def driver(request):
    current["driver"] = DRIVERS[request.param]
    return request.param


def loss_of(hidden, head, labels, signals, weighting, valid=None, *, target, chunk_size, kd_weight=0.7):
    """By the driver under test. A tensor as the head is its weight, one as the weighting the weights."""
    index = torch.arange(len(labels))
    return current["driver"](
        hidden,
        WeightHead(head) if isinstance(head, torch.Tensor) else head,
        Positions(index, labels, torch.zeros_like(index), index),
        signals,
        GivenWeights(weighting, valid) if isinstance(weighting, torch.Tensor) else weighting,
        target=target,
        kd_weight=kd_weight,
        chunk_size=chunk_size,
    )


@dataclass
class Problem:
    """A student, its labels, and teachers whose logits are at hand."""

    hidden: torch.Tensor  # [N D]
    head_weight: torch.Tensor  # [V D]
    labels: torch.Tensor  # [N]
    teacher_logits: list[torch.Tensor]  # M x [N V]
    signals: list[ProjectedSignal | DenseSignal]

    @property
    def valid(self):
        return torch.ones(N, len(self.signals), dtype=torch.bool)

    def stats(self, chunk_size=N):
        return teacher_stats(self.signals, self.labels, chunk_size=chunk_size)

    def run(self, weights, target, *, chunk_size=N, valid=None):
        """Sums, and the gradient of a loss of kd and cross-entropy for hidden states and head."""
        hidden = self.hidden.clone().requires_grad_()
        head_weight = self.head_weight.clone().requires_grad_()
        sums = loss_of(
            hidden,
            head_weight,
            self.labels,
            self.signals,
            weights,
            self.valid if valid is None else valid,
            target=target,
            chunk_size=chunk_size,
        )
        return sums, sums.loss, torch.autograd.grad(sums.loss, (hidden, head_weight))


def draw_problem(seed, num_teachers, *, temperature_pairs=((1.0, 1.0),)):
    """Teachers are projected and dense in turn; temperatures are (weight, target) pairs."""
    generator = torch.Generator().manual_seed(seed)
    randn = partial(torch.randn, generator=generator, dtype=torch.float64)
    logits, signals = [], []
    for m in range(num_teachers):
        kind = dict(
            zip(
                ("weight_temperature", "target_temperature"),
                temperature_pairs[m % len(temperature_pairs)],
                strict=True,
            )
        )
        states, projection = randn(N, E), randn(V, E)
        logits.append(states @ projection.T)
        if m % 2 == 0:
            head = partial(linear, weight=projection)
            signals.append(ProjectedSignal(states, head, **kind))
        else:
            signals.append(DenseSignal(logits[m].log_softmax(-1), **kind))
    return Problem(
        hidden=randn(N, D),
        head_weight=randn(V, D),
        labels=torch.randint(V, (N,), generator=generator),
        teacher_logits=logits,
        signals=signals,
    )


def draw_weights(seed, num_teachers):
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(N, num_teachers, generator=generator, dtype=torch.float64)
    return weights / weights.sum(-1, keepdim=True)


def kl(p, q):
    return (p * (p / q).log()).sum(-1)


def divergence_of_probs(name, q, p):
    if name == "forward_kl":
        return kl(p, q)
    if name == "reverse_kl":
        return kl(q, p)
    if name == "total_variation":
        return (p - q).abs().sum(-1) / 2
    m = 0.3 * p + 0.7 * q
    return 0.3 * kl(p, m) + 0.7 * kl(q, m)


def fuse_probs(name, teachers, weights):
    if name == "mixture":
        return sum(w[:, None] * p for p, w in zip(teachers, weights.T, strict=True))
    product = math.prod(p ** w[:, None] for p, w in zip(teachers, weights.T, strict=True))
    return product / product.sum(-1, keepdim=True)


def dense_run(problem, weights, divergence, fusion, temperature):
    """The same sums and gradients in probabilities, all positions and teachers at once."""
    hidden = problem.hidden.clone().requires_grad_()
    head_weight = problem.head_weight.clone().requires_grad_()
    logits = hidden @ head_weight.T
    student = (logits / temperature).softmax(-1)
    teachers = [
        (z / (signal.target_temperature * temperature)).softmax(-1)
        for z, signal in zip(problem.teacher_logits, problem.signals, strict=True)
    ]
    fused = fuse_probs(fusion, teachers, weights)
    kd = temperature**2 * divergence_of_probs(divergence, student, fused).sum()
    gold = logits.softmax(-1)[torch.arange(N), problem.labels]
    # The direction that the fusion minimises.
    conflicts = [kl(p, fused) if fusion == "mixture" else kl(fused, p) for p in teachers]
    sums = SimpleNamespace(
        kd=kd,
        cross_entropy=-gold.log().sum(),
        covered=torch.tensor(float(N), dtype=torch.float64),
        target_entropy=-(fused * fused.log()).sum(),
        conflict=sum((w * c).sum() for c, w in zip(conflicts, weights.T, strict=True)),
        teacher_kl=torch.stack([kl(p, student).sum() for p in teachers]),
    )
    loss = 0.7 * sums.kd + 0.3 * sums.cross_entropy
    return sums, loss, torch.autograd.grad(loss, (hidden, head_weight))


def assert_same(found, expected, *, tolerance):
    for name in SUMS:
        torch.testing.assert_close(
            getattr(found[0], name),
            getattr(expected[0], name),
            rtol=tolerance,
            atol=tolerance,
            msg=lambda message, name=name: f"{name}: {message}",
        )
    torch.testing.assert_close(found[1], expected[1], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(found[2], expected[2], rtol=tolerance, atol=tolerance)


def assert_same_bits(found, expected):
    for name in SUMS:
        assert torch.equal(getattr(found[0], name), getattr(expected[0], name)), name
    assert torch.equal(found[1], expected[1]), "loss"
    for gradient, other in zip(found[2], expected[2], strict=True):
        assert torch.equal(gradient, other), "gradient"


# Against everything at once


@given(
    seed=seeds,
    num_teachers=st.integers(1, 4),
    pairs=st.lists(st.tuples(temperatures, temperatures), min_size=2, max_size=3),
    chunk_size=chunk_sizes,
)
def test_stats_equal_the_dense_formula(seed, num_teachers, pairs, chunk_size):
    problem = draw_problem(seed, num_teachers, temperature_pairs=pairs)
    stats = problem.stats(chunk_size)
    for m, (logits, signal) in enumerate(zip(problem.teacher_logits, problem.signals, strict=True)):
        weighed = (logits / signal.weight_temperature).softmax(-1)
        mixed = (logits / signal.target_temperature).softmax(-1)
        gold = mixed[torch.arange(N), problem.labels]
        torch.testing.assert_close(stats.entropy[:, m], -(weighed * weighed.log()).sum(-1))
        torch.testing.assert_close(stats.cross_entropy[:, m], -gold.log())
    assert stats.valid.all() and stats.valid.shape == (N, num_teachers)
    assert not stats.entropy.requires_grad and not stats.cross_entropy.requires_grad


@each_divergence
@each_fusion
@given(
    seed=seeds,
    num_teachers=st.integers(1, 4),
    temperature=temperatures,
    pairs=st.lists(st.tuples(temperatures, temperatures), min_size=2, max_size=3),
    chunk_size=chunk_sizes,
)
def test_sums_and_gradients_equal_the_dense_formula(
    divergence, fusion, seed, num_teachers, temperature, pairs, chunk_size
):
    problem = draw_problem(seed, num_teachers, temperature_pairs=pairs)
    weights = draw_weights(seed, num_teachers)
    target = KdTarget(DIVERGENCES[divergence], FUSIONS[fusion], temperature)
    found = problem.run(weights, target, chunk_size=chunk_size)
    expected = dense_run(problem, weights, divergence, fusion, temperature)
    assert_same(found, expected, tolerance=1e-9)


@each_divergence
@each_fusion
def test_any_chunk_size_gives_the_same(divergence, fusion):
    problem = draw_problem(3, 3, temperature_pairs=((0.7, 1.3), (1.0, 1.0)))
    stats = problem.stats()
    weights = entropy_weights(stats.entropy, tau=0.5, valid=stats.valid)
    target = KdTarget(DIVERGENCES[divergence], FUSIONS[fusion], 1.7)
    whole = problem.run(weights, target)
    for chunk_size in range(1, N + 2):
        chunked = problem.stats(chunk_size)
        torch.testing.assert_close(chunked.entropy, stats.entropy, rtol=1e-13, atol=1e-14)
        assert_same(problem.run(weights, target, chunk_size=chunk_size), whole, tolerance=1e-12)


@given(
    seed=seeds,
    divergence=divergence_names,
    fusion=fusion_names,
    temperature=temperatures,
    sizes=st.tuples(chunk_sizes, chunk_sizes),
)
def test_any_two_chunk_sizes_agree(seed, divergence, fusion, temperature, sizes):
    problem = draw_problem(seed, 3)
    weights = draw_weights(seed, 3)
    target = KdTarget(DIVERGENCES[divergence], FUSIONS[fusion], temperature)
    one, other = (problem.run(weights, target, chunk_size=size) for size in sizes)
    assert_same(one, other, tolerance=1e-12)


@given(num_positions=st.integers(0, 40), chunk_size=st.integers(1, 50))
def test_chunks_cover_every_position_once(num_positions, chunk_size):
    parts = list(chunks(num_positions, chunk_size))
    positions = list(range(num_positions))
    assert [i for rows in parts for i in positions[rows]] == positions
    assert parts and all(rows.stop - rows.start <= chunk_size for rows in parts)


@given(seed=seeds, fusion=fusion_names, num_copies=st.integers(2, 5))
def test_copies_of_a_teacher_teach_what_it_teaches_alone(seed, fusion, num_copies):
    problem = draw_problem(seed, 1)
    target = KdTarget(forward_kl, FUSIONS[fusion])
    alone = problem.run(torch.ones(N, 1, dtype=torch.float64), target)
    copies = replace(problem, signals=problem.signals * num_copies)
    together = copies.run(draw_weights(seed, num_copies), target)
    for found, expected in zip(together[1:], alone[1:], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert together[0].conflict.abs() < 1e-12


@given(seed=seeds, fusion=fusion_names, order=st.permutations(range(4)))
def test_the_order_of_teachers_is_of_no_matter(seed, fusion, order):
    problem = draw_problem(seed, 4, temperature_pairs=((0.7, 1.3), (1.0, 1.0), (2.0, 0.8)))
    weights = draw_weights(seed, 4)
    target = KdTarget(reverse_kl, FUSIONS[fusion])
    plain = problem.run(weights, target)
    moved = replace(problem, signals=[problem.signals[m] for m in order]).run(weights[:, order], target)
    expected = replace(plain[0], teacher_kl=plain[0].teacher_kl[list(order)]), *plain[1:]
    assert_same(moved, expected, tolerance=1e-12)


def test_gradcheck_through_chunks(driver):
    if driver == "fused":
        pytest.skip("gradcheck runs backward several times over one graph")
    problem = draw_problem(0, 2)
    weights, target = draw_weights(0, 2), KdTarget(generalized_jsd_half, mixture_logprobs, 2.0)

    def loss(hidden, head_weight):
        sums = loss_of(
            hidden,
            head_weight,
            problem.labels,
            problem.signals,
            weights,
            problem.valid,
            target=target,
            chunk_size=3,
        )
        return sums.loss

    inputs = problem.hidden.clone().requires_grad_(), problem.head_weight.clone().requires_grad_()
    assert torch.autograd.gradcheck(loss, inputs)


def generalized_jsd_half(student_logprobs, teacher_logprobs):
    return generalized_jsd(student_logprobs, teacher_logprobs, 0.5)


# Temperature


@given(seed=seeds)
def test_squared_temperature_keeps_the_size_of_the_gradient(seed):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 64, 97, generator=generator, dtype=torch.float64)
    everywhere = torch.ones(64, 1, dtype=torch.bool)

    def gradient(temperature, *, scaled=True):
        target = KdTarget(forward_kl, mixture_logprobs, temperature, scale_by_squared_temperature=scaled)
        logits = student.clone().requires_grad_()
        sums = loss_of(
            logits,
            torch.eye(97, dtype=torch.float64),
            torch.zeros(64, dtype=torch.long),
            [DenseSignal(teacher.log_softmax(-1))],
            everywhere.double(),
            everywhere,
            target=target,
            chunk_size=16,
            kd_weight=1.0,
        )
        return torch.autograd.grad(sums.loss, logits)[0]

    norms = torch.stack([gradient(t).norm() for t in (1.0, 2.0, 5.0, 20.0)])
    assert norms.max() / norms.min() < 1.6
    difference = student - teacher
    limit = (difference - difference.mean(-1, keepdim=True)) / 97
    torch.testing.assert_close(gradient(1e5), limit, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(gradient(5.0, scaled=False) * 25, gradient(5.0))


# Conflict


@given(seed=seeds, num_teachers=st.integers(1, 4), temperature=temperatures)
def test_conflict_is_the_jensen_shannon_divergence_of_the_mixture(seed, num_teachers, temperature):
    problem = draw_problem(seed, num_teachers)
    weights = draw_weights(seed, num_teachers)
    weights[2] = torch.eye(num_teachers, dtype=torch.float64)[0]
    target = KdTarget(forward_kl, mixture_logprobs, temperature)
    conflict = problem.run(weights, target)[0].conflict
    expected = 0.0
    for i in range(N):
        teachers = [(z[i] / temperature).softmax(-1) for z in problem.teacher_logits]
        mixture = sum(w * p for p, w in zip(teachers, weights[i], strict=True))
        expected += sum(w * kl(p, mixture) for p, w in zip(teachers, weights[i], strict=True))
    torch.testing.assert_close(conflict, expected, rtol=1e-10, atol=1e-12)
    assert -1e-12 <= conflict <= -torch.special.xlogy(weights, weights).sum() + 1e-12


def test_conflict_of_teachers_that_exclude_each_other_is_the_entropy_of_their_weights():
    problem = draw_problem(0, 2)
    first, second = torch.full((2, N, V), -math.inf, dtype=torch.float64)
    first[:, 0] = second[:, 1] = 0.0
    problem = replace(problem, signals=[DenseSignal(first), DenseSignal(second)])
    weights = draw_weights(1, 2)
    for fusion in FUSIONS.values():
        sums, _, gradients = problem.run(weights, KdTarget(forward_kl, fusion))
        if fusion is mixture_logprobs:
            expected = -torch.special.xlogy(weights, weights).sum()
            torch.testing.assert_close(sums.conflict, expected, rtol=1e-12, atol=0)
        assert sums.kd.isfinite() and all(g.isfinite().all() for g in gradients)


# Absent teachers


def pipeline(problem, target, *, tau=0.5):
    """Statistics, weights, loss, as a step does it."""
    found = problem.run(Weighting("entropy", "token", tau), target, chunk_size=3)
    assert not found[0].weights.requires_grad
    return found[0].stats, found


def with_logits(problem, m, logits, *, valid=None, projected=True):
    signal = (
        ProjectedSignal(logits, lambda states: states, 0.8, 1.2, valid)
        if projected
        else DenseSignal(logits, 0.8, 1.2, valid)
    )
    return replace(problem, signals=[*problem.signals[:m], signal, *problem.signals[m + 1 :]])


def spoil(logits, bad, kind):
    spoilt = logits.clone()
    if kind == "nan":
        spoilt[bad, 3] = math.nan
    elif kind == "+inf":
        spoilt[bad, 3] = math.inf
    elif kind == "all -inf":
        spoilt[bad] = -math.inf
    else:
        spoilt[bad] = torch.tensor([math.nan, math.inf, -math.inf] * 4, dtype=torch.float64)[:V]
    return spoilt


@pytest.mark.parametrize("kind", ["nan", "+inf", "all -inf", "everything"])
@given(
    seed=seeds,
    divergence=divergence_names,
    fusion=fusion_names,
    projected=st.booleans(),
    place=st.integers(0, 2),
    bad=st.lists(st.booleans(), min_size=N, max_size=N).map(torch.tensor),
)
def test_bad_logits_are_an_absent_teacher_bit_for_bit(kind, seed, divergence, fusion, projected, place, bad):
    problem = draw_problem(seed, 3, temperature_pairs=((0.8, 1.2),))
    target = KdTarget(DIVERGENCES[divergence], FUSIONS[fusion], 1.7)
    logits = problem.teacher_logits[place]
    garbage = torch.where(bad[:, None], 50 * logits.roll(1, 0) - 7, logits)
    replaced = partial(with_logits, problem, place, projected=projected)
    stats, found = pipeline(replaced(spoil(logits, bad, kind)), target)
    assert torch.equal(stats.valid[:, place], ~bad)
    assert stats.entropy.isfinite().all() and stats.cross_entropy.isfinite().all()
    for other in (logits, garbage, spoil(logits, bad, kind)):
        _, expected = pipeline(replaced(other, valid=~bad), target)
        assert_same_bits(found, expected)


@each_fusion
@given(
    seed=seeds,
    divergence=divergence_names,
    place=st.integers(0, 3),
    num_teachers=st.integers(2, 4),
)
def test_a_teacher_that_is_bad_everywhere_might_as_well_not_exist(fusion, seed, divergence, place, num_teachers):
    place %= num_teachers
    problem = draw_problem(seed, num_teachers)
    target = KdTarget(DIVERGENCES[divergence], FUSIONS[fusion])
    nan = torch.full((N, V), math.nan, dtype=torch.float64)
    _, found = pipeline(with_logits(problem, place, nan), target)
    fewer = replace(problem, signals=problem.signals[:place] + problem.signals[place + 1 :])
    _, expected = pipeline(fewer, target)
    assert torch.equal(found[1], expected[1])
    assert all(torch.equal(a, b) for a, b in zip(found[2], expected[2], strict=True))
    assert found[0].teacher_kl[place] == 0
    torch.testing.assert_close(found[0].conflict, expected[0].conflict, rtol=1e-12, atol=1e-12)


@each_fusion
@given(
    seed=seeds,
    divergence=divergence_names,
    bad=st.lists(st.booleans(), min_size=N, max_size=N).map(torch.tensor),
)
def test_where_all_teachers_are_bad_only_cross_entropy_teaches(fusion, seed, divergence, bad):
    problem = draw_problem(seed, 2)
    target = KdTarget(DIVERGENCES[divergence], FUSIONS[fusion])
    spoilt = problem
    for m, logits in enumerate(problem.teacher_logits):
        spoilt = with_logits(spoilt, m, spoil(logits, bad, ["nan", "all -inf"][m]))
    stats, (sums, _, gradients) = pipeline(spoilt, target)
    assert sums.covered == (~bad).sum()
    weights = entropy_weights(stats.entropy, tau=0.5, valid=stats.valid)
    assert torch.equal(weights[bad], torch.zeros_like(weights[bad]))

    good = torch.arange(N)[~bad]
    hidden, head_weight = problem.hidden, problem.head_weight.clone().requires_grad_()
    kept = hidden.clone().requires_grad_()
    logits = kept @ head_weight.T
    sliced = loss_of(
        kept[good],
        head_weight,
        problem.labels[good],
        [DenseSignal(z[good], 0.8, 1.2) for z in problem.teacher_logits],
        weights[good],
        stats.valid[good],
        target=target,
        chunk_size=N,
    )
    ce = cross_entropy(logits, problem.labels, reduction="sum")
    ce_of_bad = cross_entropy(logits[bad], problem.labels[bad], reduction="sum")
    expected = torch.autograd.grad(sliced.loss + 0.3 * ce_of_bad, (kept, head_weight))
    torch.testing.assert_close(sums.kd, sliced.kd, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(sums.cross_entropy, ce.detach(), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(gradients, expected, rtol=1e-11, atol=1e-12)
    if bad.all():
        assert sums.kd == 0 and sums.target_entropy == 0 and sums.conflict == 0


@each_fusion
def test_absent_everywhere_leaves_a_kd_gradient_of_exactly_0(fusion):
    problem = draw_problem(0, 2)
    hidden = problem.hidden.clone().requires_grad_()
    sums = loss_of(
        hidden,
        problem.head_weight,
        problem.labels,
        [ProjectedSignal(problem.hidden, lambda h: h.new_full((len(h), V), math.nan))] * 2,
        torch.zeros(N, 2, dtype=torch.float64),
        torch.zeros(N, 2, dtype=torch.bool),
        target=KdTarget(reverse_kl, FUSIONS[fusion]),
        chunk_size=2,
        kd_weight=1.0,
    )
    assert sums.kd == 0
    assert torch.equal(torch.autograd.grad(sums.loss, hidden)[0], torch.zeros_like(hidden))


@each_fusion
def test_a_divergence_meets_finite_targets_only(fusion):
    problem = draw_problem(0, 3)
    first, second = (torch.full((N, V), -math.inf, dtype=torch.float64) for _ in range(2))
    first[:, 0] = second[:, 1] = 0.0
    problem = replace(problem, signals=[DenseSignal(first), DenseSignal(second), problem.signals[0]])
    valid = torch.tensor([[i & 1, i & 2, i & 4] for i in range(N)]).bool()  # at 0, no teacher at all
    weights = valid / valid.sum(-1, keepdim=True).clamp_min(1).double()
    targets = []

    def naive_reverse_kl(student_logprobs, teacher_logprobs):
        targets.append(teacher_logprobs)
        return (student_logprobs.exp() * (student_logprobs - teacher_logprobs)).sum(-1)

    target = KdTarget(naive_reverse_kl, FUSIONS[fusion])
    found = problem.run(weights, target, valid=valid)
    assert all(logprobs.isfinite().all() for logprobs in targets)
    assert_same(found, problem.run(weights, KdTarget(reverse_kl, FUSIONS[fusion]), valid=valid), tolerance=1e-6)


@each_divergence
@each_fusion
def test_tokens_that_student_and_teachers_rule_out_might_as_well_not_exist(divergence, fusion):
    problem = draw_problem(0, 2)
    target = KdTarget(DIVERGENCES[divergence], FUSIONS[fusion])
    weights = draw_weights(0, 2)

    def run(mask):
        hidden = problem.hidden.clone().requires_grad_()
        sums = loss_of(
            hidden,
            lambda states: mask(linear(states, problem.head_weight)),
            problem.labels,
            [DenseSignal(mask(logits)) for logits in problem.teacher_logits],
            weights,
            problem.valid,
            target=target,
            chunk_size=3,
        )
        return sums, sums.loss, torch.autograd.grad(sums.loss, (hidden,))

    wide = run(lambda logits: nn.functional.pad(logits, (0, 2), value=-math.inf))
    assert_same(wide, run(lambda logits: logits), tolerance=1e-11)


@each_divergence
@given(
    fusion=fusion_names,
    dtype=st.sampled_from([torch.float32, torch.float64]),
    values=st.lists(st.sampled_from([0.0, 1e4, -1e4, -math.inf]), min_size=4 * N, max_size=4 * N),
    temperature=temperatures,
)
def test_extreme_logits_give_a_finite_loss_and_gradient(divergence, fusion, dtype, values, temperature):
    logits = torch.tensor(values, dtype=dtype).reshape(2, N, 2)
    logits = torch.cat([logits, torch.ones(2, N, 1, dtype=dtype)], -1)  # never -inf alone
    hidden = (1e4 * torch.tensor([1.0, -1.0, 0.0], dtype=dtype)).repeat(N, 1).requires_grad_()
    signals = [DenseSignal(z) for z in logits]
    labels = torch.zeros(N, dtype=torch.long)
    stats = teacher_stats(signals, labels, chunk_size=3)
    assert stats.valid.all()
    weights = entropy_weights(stats.entropy, tau=0.25, valid=stats.valid)
    sums = loss_of(
        hidden,
        torch.eye(3, dtype=dtype),
        labels,
        signals,
        weights,
        stats.valid,
        target=KdTarget(DIVERGENCES[divergence], FUSIONS[fusion], temperature),
        chunk_size=3,
    )
    (gradient,) = torch.autograd.grad(sums.loss, hidden)
    assert all(getattr(sums, name).isfinite().all() for name in SUMS)
    assert gradient.isfinite().all()


# Fewer things


@given(seed=seeds, chunk_size=chunk_sizes, temperature=temperatures)
def test_without_teachers_it_is_the_cross_entropy(seed, chunk_size, temperature):
    problem = draw_problem(seed, 0)
    empty = torch.zeros(N, 0, dtype=torch.float64)
    target = KdTarget(forward_kl, mixture_logprobs, temperature)
    sums, _, gradients = problem.run(empty, target, chunk_size=chunk_size, valid=empty.bool())
    hidden = problem.hidden.clone().requires_grad_()
    head_weight = problem.head_weight.clone().requires_grad_()
    expected = cross_entropy(hidden @ head_weight.T, problem.labels, reduction="sum")
    torch.testing.assert_close(sums.cross_entropy, expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(
        gradients,
        torch.autograd.grad(0.3 * expected, (hidden, head_weight)),
        rtol=1e-12,
        atol=1e-13,
    )
    assert sums.kd == 0 and sums.covered == 0 and sums.teacher_kl.shape == (0,)


@pytest.mark.parametrize("num_teachers", [0, 1, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_no_predicted_position_gives_a_loss_of_0_with_a_gradient_of_0(num_teachers, dtype):
    hidden = torch.zeros(0, D, dtype=dtype, requires_grad=True)
    head = nn.Linear(D, V, dtype=dtype)
    teacher_head = nn.Linear(E, V, dtype=dtype)
    signals = [ProjectedSignal(torch.zeros(0, E, dtype=dtype), teacher_head)] * num_teachers
    labels = torch.zeros(0, dtype=torch.long)
    weights = torch.zeros(0, num_teachers)
    if num_teachers:
        stats = teacher_stats(signals, labels, chunk_size=4)
        assert stats.entropy.shape == stats.valid.shape == (0, num_teachers)
        weights = entropy_weights(stats.entropy, valid=stats.valid)
    sums = loss_of(
        hidden,
        ProjectionHead(head, V),
        labels,
        signals,
        weights,
        weights.bool(),
        target=KdTarget(forward_kl, mixture_logprobs),
        chunk_size=4,
    )
    sums.loss.backward()
    assert sums.kd == 0 and sums.cross_entropy == 0 and sums.covered == 0
    assert torch.equal(hidden.grad, torch.zeros_like(hidden))
    # None would be an unused parameter, for which DDP waits.
    assert torch.equal(head.weight.grad, torch.zeros_like(head.weight))


# Precision and autograd


@each_fusion
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
def test_bfloat16_is_near_to_float64(divergence, fusion):
    torch.manual_seed(0)
    n, vocab_size, width = 64, 500, 32
    hidden, teacher_hidden = torch.randn(2, n, width).bfloat16()
    heads = [torch.randn(vocab_size, width).div(width**0.5).bfloat16() for _ in range(3)]
    labels = torch.randint(vocab_size, (n,))
    target = KdTarget(DIVERGENCES[divergence], FUSIONS[fusion], 1.5)

    def run(dtype):
        student = hidden.to(dtype, copy=True).requires_grad_()
        weight = heads[0].to(dtype, copy=True).requires_grad_()
        signals = [
            ProjectedSignal(teacher_hidden.to(dtype), partial(linear, weight=head.to(dtype))) for head in heads[1:]
        ]
        stats = teacher_stats(signals, labels, chunk_size=16)
        weights = entropy_weights(stats.entropy, valid=stats.valid)
        sums = loss_of(
            student,
            weight,
            labels,
            signals,
            weights,
            stats.valid,
            target=target,
            chunk_size=16,
        )
        gradients = torch.autograd.grad(sums.loss, (student, weight))
        return stats, sums, gradients

    half, full = run(torch.bfloat16), run(torch.float64)
    assert half[0].entropy.dtype == half[1].kd.dtype == torch.float32
    torch.testing.assert_close(half[0].entropy.double(), full[0].entropy, rtol=1e-2, atol=0)
    for name in ("kd", "cross_entropy", "target_entropy", "teacher_kl", "covered"):
        found, expected = getattr(half[1], name).double(), getattr(full[1], name)
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=0)
    for gradient, expected in zip(half[2], full[2], strict=True):
        assert (gradient.double() - expected).norm() < 1e-2 * expected.norm()


def test_hidden_states_whose_sum_overflows_half_precision_give_a_finite_loss():
    hidden = torch.full((64, 32), 50.0, dtype=torch.float16, requires_grad=True)
    assert hidden.sum().isinf()
    sums = loss_of(
        hidden,
        lambda states: states[:, :5],
        torch.zeros(64, dtype=torch.long),
        [],
        torch.zeros(64, 0),
        torch.zeros(64, 0, dtype=torch.bool),
        target=KdTarget(forward_kl, mixture_logprobs),
        chunk_size=16,
    )
    assert sums.cross_entropy.isfinite() and sums.kd.isfinite()


class AdaptedHead(nn.Module):
    """A projection with bias, low-rank adapter, dropout and soft-cap."""

    def __init__(self):
        super().__init__()
        self.base = nn.Linear(D, V, dtype=torch.float64)
        self.down = nn.Linear(D, 2, bias=False, dtype=torch.float64)
        self.up = nn.Linear(2, V, bias=False, dtype=torch.float64)
        self.dropout = nn.Dropout(0.5)

    def forward(self, states):
        logits = self.base(states) + self.up(self.dropout(self.down(states)))
        return 5.0 * torch.tanh(logits / 5.0)


def test_the_head_may_be_a_module_with_an_adapter():
    torch.manual_seed(0)
    problem, head = draw_problem(0, 2), AdaptedHead()
    weights, target = draw_weights(0, 2), KdTarget(forward_kl, mixture_logprobs)

    def gradients(chunk_size):
        sums = loss_of(
            problem.hidden,
            head,
            problem.labels,
            problem.signals,
            weights,
            problem.valid,
            target=target,
            chunk_size=chunk_size,
        )
        return torch.autograd.grad(sums.loss, list(head.parameters()))

    # Recomputed under the same random numbers: one chunk with dropout equals plain autograd.
    torch.manual_seed(1)
    found = gradients(N)
    torch.manual_seed(1)
    logprobs = head(problem.hidden).log_softmax(-1)
    mixed = mixture_logprobs([z.log_softmax(-1) for z in problem.teacher_logits], weights)
    gold = logprobs[torch.arange(N), problem.labels]
    loss = 0.7 * forward_kl(logprobs, mixed).sum() - 0.3 * gold.sum()
    expected = torch.autograd.grad(loss, list(head.parameters()))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)

    head.eval()
    torch.testing.assert_close(gradients(2), gradients(N), rtol=1e-12, atol=1e-13)


@each_fusion
def test_learned_weights_get_their_gradient_through_chunks(fusion):
    problem = draw_problem(0, 3)
    scores = draw_weights(0, 3).log().requires_grad_()
    valid = problem.valid
    valid[1, 0] = valid[2, 1] = valid[4] = False  # at 4, no teacher at all
    target = KdTarget(forward_kl, FUSIONS[fusion])

    def run(scores, chunk_size=3):
        shares = scores.exp().masked_fill(~valid, 0.0)
        total = shares.sum(-1, keepdim=True)
        weights = shares / total.masked_fill(total == 0, 1.0)
        return loss_of(
            problem.hidden,
            problem.head_weight,
            problem.labels,
            problem.signals,
            weights,
            valid,
            target=target,
            chunk_size=chunk_size,
            kd_weight=1.0,
        )

    (gradient,) = torch.autograd.grad(run(scores).loss, scores)
    assert gradient.isfinite().all() and (gradient[valid] != 0).any()
    assert (gradient[~valid] == 0).all()
    assert torch.autograd.gradcheck(lambda s: run(s).loss, (scores,))


def test_teachers_and_what_is_logged_carry_no_gradient():
    problem = draw_problem(0, 1)
    states = torch.randn(N, E, dtype=torch.float64, requires_grad=True)
    head = nn.Linear(E, V, dtype=torch.float64)
    problem = replace(problem, signals=[ProjectedSignal(states, head)])
    hidden = problem.hidden.requires_grad_()
    stats = problem.stats()
    sums = loss_of(
        hidden,
        problem.head_weight,
        problem.labels,
        problem.signals,
        entropy_weights(stats.entropy, valid=stats.valid),
        stats.valid,
        target=KdTarget(forward_kl, geometric_logprobs),
        chunk_size=3,
    )
    sums.loss.backward()
    assert hidden.grad is not None
    assert states.grad is None and head.weight.grad is None
    assert sums.loss.requires_grad
    assert not any(getattr(sums, name).requires_grad for name in (*SUMS, "weights"))


@each_fusion
def test_evaluation_without_gradient_gives_the_same_sums(fusion):
    problem = draw_problem(0, 3)
    weights, target = draw_weights(0, 3), KdTarget(reverse_kl, FUSIONS[fusion], 2.0)
    expected, _, _ = problem.run(weights, target, chunk_size=2)
    with torch.no_grad():
        found = loss_of(
            problem.hidden,
            problem.head_weight,
            problem.labels,
            problem.signals,
            weights,
            problem.valid,
            target=target,
            chunk_size=2,
        )
    for name in SUMS:
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
        assert not getattr(found, name).requires_grad


# Weights made on the way


@given(
    seed=seeds,
    fusion=fusion_names,
    divergence=divergence_names,
    temperature=temperatures,
    kind=st.sampled_from(["uniform", "static", "entropy"]),
    granularity=st.sampled_from(["token", "window:2", "window:3", "sequence"]),
    tau=st.sampled_from([0.05, 0.25, 2.0]),
    starts=st.lists(st.booleans(), min_size=N, max_size=N),
    bad=st.lists(st.booleans(), min_size=N, max_size=N).map(torch.tensor),
    chunk_size=chunk_sizes,
    smoothing=st.sampled_from([0.0, 0.2]),
)
def test_every_weighting_equals_the_plain_driver_in_one_chunk(
    seed, fusion, divergence, temperature, kind, granularity, tau, starts, bad, chunk_size, smoothing
):
    problem = draw_problem(seed, 3, temperature_pairs=((0.8, 1.2), (1.0, 1.0)))
    problem = with_logits(problem, 1, spoil(problem.teacher_logits[1], bad, "nan"))
    segments = torch.tensor(starts).cumsum(0)
    first = torch.tensor([starts[: i + 1][::-1].index(True) if any(starts[: i + 1]) else i for i in range(N)])
    positions = Positions(torch.arange(N), problem.labels, segments, first)
    weighting = Weighting(kind, granularity, tau, (0.5, 0.0, 0.2) if kind == "static" else None)
    target = KdTarget(DIVERGENCES[divergence], FUSIONS[fusion], temperature)

    def run(driver, size):
        hidden, weight = problem.hidden.clone().requires_grad_(), problem.head_weight.clone().requires_grad_()
        options = {"target": target, "kd_weight": 0.6, "label_smoothing": smoothing, "chunk_size": size}
        sums = driver(hidden, WeightHead(weight), positions, problem.signals, weighting, **options)
        return sums, sums.loss, torch.autograd.grad(sums.loss, (hidden, weight))

    found, expected = run(current["driver"], chunk_size), run(chunked.distillation_loss, N)
    assert_same(found, expected, tolerance=1e-11)
    torch.testing.assert_close(found[0].weights, expected[0].weights, rtol=1e-11, atol=1e-13)
    assert torch.equal(found[0].stats.valid, expected[0].stats.valid)
    for name in ("entropy", "cross_entropy", "weight_cross_entropy"):
        pair = getattr(found[0].stats, name), getattr(expected[0].stats, name)
        torch.testing.assert_close(*pair, rtol=1e-12, atol=1e-12)

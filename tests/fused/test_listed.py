"""Teachers that are lists: what a bucket means, and that no [n V] tensor of theirs is needed for it."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from collegium.fused import chunked, fused
from collegium.fused import listed as listed_module
from collegium.fused.chunked import KdTarget
from collegium.fused.completion import dense_logprobs
from collegium.losses.divergences import forward_kl, generalized_jsd, reverse_kl, total_variation
from collegium.losses.fusion import geometric_logprobs, mixture_logprobs
from collegium.losses.weighting import GivenWeights, Weighting
from collegium.models.head import ProjectionHead
from collegium.signals.contracts import Positions
from collegium.signals.signals import DenseSignal, TopKSignal


N, D, V = 24, 6, 40
DRIVERS = {"plain": chunked.distillation_loss, "fused": fused.distillation_loss}
FORWARD = KdTarget(forward_kl, mixture_logprobs)


def positions_of(labels, window=8):
    index = torch.arange(len(labels))
    return Positions(index, labels, index // window, index % window)


def problem(seed, num_teachers=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    head = torch.nn.Linear(D, V, dtype=dtype)
    with torch.no_grad():
        head.weight.copy_(torch.randn(V, D, generator=generator))
        head.bias.copy_(torch.randn(V, generator=generator))
    hidden = torch.randn(N, D, generator=generator, dtype=dtype)
    teachers = [
        (torch.randn(N, V, generator=generator, dtype=dtype) * 2).log_softmax(-1) for _ in range(num_teachers)
    ]
    return hidden, head, teachers, positions_of(torch.randint(V, (N,), generator=generator))


def listed(logprobs, k, labels, *, lengths=None, temperature=1.0, **options):
    """The k most probable tokens, ids ascending, row i cut to `lengths[i]` of them."""
    softened = (logprobs / temperature).log_softmax(-1)
    ids = softened.topk(k).indices
    if lengths is not None:
        ids = ids.masked_fill(torch.arange(k) >= lengths[:, None], V)
    ids = ids.sort(-1).values
    kept = torch.where(ids < V, softened.gather(-1, ids.clamp_max(V - 1)), torch.nan)
    return TopKSignal(
        ids.masked_fill(ids == V, -1),
        kept,
        -(logprobs.exp() * logprobs).sum(-1),
        logprobs.gather(-1, labels[:, None]).squeeze(-1),
        V,
        kd_temperature=temperature,
        **options,
    )


def run(driver, hidden, head, signals, positions, *, target=FORWARD, weighting=None, chunk_size=16, **options):
    hidden = hidden.clone().requires_grad_()
    head.zero_grad()
    sums = DRIVERS[driver](
        hidden,
        options.pop("projection", None) or ProjectionHead(head, V),
        positions,
        signals,
        weighting or Weighting("entropy", "window:8", 0.5),
        target=target,
        kd_weight=options.pop("kd_weight", 0.7),
        chunk_size=chunk_size,
        **options,
    )
    sums.loss.backward()
    return sums, (hidden.grad, head.weight.grad.clone(), head.bias.grad.clone())


def close(found, expected, rtol=1e-11, atol=1e-13):
    for one, other in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol)
    for name in ("loss", "kd", "cross_entropy", "covered", "target_entropy", "conflict", "teacher_kl", "weights"):
        torch.testing.assert_close(
            getattr(found[0], name), getattr(expected[0], name), rtol=rtol, atol=1e-11, msg=lambda m, n=name: n + m
        )


def bucketed(signal, student):
    """A row at a time, by bisection: what is not listed takes the student's shape, but for the cap."""
    rows = []
    for i in range(N):
        ids = signal.token_ids[i][signal.token_ids[i] >= 0]
        probs = signal.logprobs[i][signal.token_ids[i] >= 0].exp()
        if signal.tail == "renormalize":
            probs = probs / probs.sum()
        row = student[i].clone()
        row[ids] = 0.0
        mass = max(1.0 - float(probs.sum()), 0.0)
        cap = max(float(probs.min()), mass / max(1, V - len(ids)))
        low, high = 0.0, 1e9
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if float((row * middle).clamp_max(cap).sum()) < mass else (low, middle)
        row = (row * high).clamp_max(cap) if mass > 0 else row * 0.0
        row[ids] = probs
        rows.append(row)
    return torch.stack(rows)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("tail", ["bucket", "renormalize"])
@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("num_teachers", [1, 3])
def test_a_mixture_of_lists_is_that_of_the_distributions_they_stand_for(num_teachers, driver, tail, temperature):
    hidden, head, teachers, positions = problem(0, num_teachers)
    lengths = torch.randint(1, 6, (N,), generator=torch.Generator().manual_seed(1))
    signals = [
        listed(p, 5, positions.labels, lengths=lengths, tail=tail, temperature=temperature) for p in teachers
    ]
    weights = torch.rand(N, num_teachers, dtype=torch.float64).softmax(-1)
    target = KdTarget(forward_kl, mixture_logprobs, temperature)
    weighting = GivenWeights(weights, torch.ones(N, num_teachers, dtype=torch.bool))
    found = run(driver, hidden, head, signals, positions, target=target, weighting=weighting)

    leaf = hidden.clone().requires_grad_()
    head.zero_grad()
    logits = head(leaf)
    student = (logits / temperature).softmax(-1)
    dense = [bucketed(signal, student.detach()) for signal in signals]
    mixture = sum(w[:, None] * p for w, p in zip(weights.unbind(-1), dense, strict=True))
    kd = (torch.xlogy(mixture, mixture) - mixture * student.log()).sum() * temperature**2
    ce = torch.nn.functional.cross_entropy(logits, positions.labels, reduction="sum")
    (0.7 * kd + 0.3 * ce).backward()
    torch.testing.assert_close(found[0].kd, kd.detach(), rtol=1e-11, atol=0)
    for one, other in zip(found[1], (leaf.grad, head.weight.grad, head.bias.grad), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@given(seed=st.integers(0, 10**6), k=st.integers(1, V), num_teachers=st.integers(1, 3), smooth=st.booleans())
def test_both_drivers_agree(seed, k, num_teachers, smooth):
    hidden, head, teachers, positions = problem(seed, num_teachers)
    signals = [listed(p, k, positions.labels) for p in teachers]
    smoothing = 0.1 if smooth else 0.0
    projection = ProjectionHead(head, V, 0.7, 5.0)
    found, expected = (
        run(driver, hidden, head, signals, positions, label_smoothing=smoothing, projection=projection)
        for driver in ("fused", "plain")
    )
    close(found, expected, rtol=1e-9, atol=1e-11)


@given(seed=st.integers(0, 10**6), tail=st.sampled_from(["bucket", "uniform", "renormalize"]))
def test_a_list_of_everything_is_the_dense_loss(seed, tail):
    hidden, head, teachers, positions = problem(seed)
    signals = [listed(p, V, positions.labels, tail=tail) for p in teachers]
    for driver in DRIVERS:
        found = run(driver, hidden, head, signals, positions)
        expected = run(driver, hidden, head, [DenseSignal(p) for p in teachers], positions)
        close(found, expected, rtol=1e-10, atol=1e-12)


@given(seed=st.integers(0, 10**6), k=st.integers(1, V))
def test_a_bucket_never_exceeds_the_dense_loss(seed, k):
    hidden, head, (teacher,), positions = problem(seed, 1)
    found, _ = run("fused", hidden, head, [listed(teacher, k, positions.labels)], positions)
    dense, _ = run("fused", hidden, head, [DenseSignal(teacher)], positions)
    assert -1e-12 <= found.kd <= dense.kd + 1e-12
    assert found.teacher_kl[0] <= dense.teacher_kl[0] + 1e-12


@given(seed=st.integers(0, 10**6), k=st.integers(1, V), num_teachers=st.integers(2, 4))
def test_several_buckets_exceed_it_at_most_by_the_conflict(seed, k, num_teachers):
    hidden, head, teachers, positions = problem(seed, num_teachers)
    found, _ = run("fused", hidden, head, [listed(p, k, positions.labels) for p in teachers], positions)
    dense, _ = run("fused", hidden, head, [DenseSignal(p) for p in teachers], positions)
    assert -1e-12 <= found.kd <= dense.kd + dense.conflict + 1e-12


@pytest.mark.parametrize("fusion", [mixture_logprobs, geometric_logprobs])
@pytest.mark.parametrize(
    "divergence", [forward_kl, reverse_kl, partial(generalized_jsd, beta=0.3), total_variation]
)
def test_every_divergence_and_fusion_takes_lists(divergence, fusion):
    hidden, head, teachers, positions = problem(3)
    signals = [listed(teachers[0], 4, positions.labels), listed(teachers[1], 6, positions.labels, tail="uniform")]
    found, expected = (
        run(driver, hidden, head, signals, positions, target=KdTarget(divergence, fusion))
        for driver in ("fused", "plain")
    )
    close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("divergence", [forward_kl, reverse_kl, partial(generalized_jsd, beta=0.3)])
def test_a_bucket_is_the_least_divergence_and_has_its_gradient(divergence):
    """By differences of the value, in which the tail moves with the student: the envelope theorem."""
    hidden, head, (teacher,), positions = problem(4, 1)
    signal = listed(teacher, 5, positions.labels)
    target = KdTarget(divergence, mixture_logprobs)
    found = run("fused", hidden, head, [signal], positions, target=target, kd_weight=1.0)

    def value(states):
        with torch.no_grad():
            logprobs = head(states).log_softmax(-1)
            return float(divergence(logprobs, bucketed(signal, logprobs.exp()).log()).sum())

    for row, column in ((0, 0), (3, 2), (17, 5)):
        step = torch.zeros_like(hidden)
        step[row, column] = 1e-5
        slope = (value(hidden + step) - value(hidden - step)) / 2e-5
        torch.testing.assert_close(float(found[1][0][row, column]), slope, rtol=1e-5, atol=1e-7)


@given(seed=st.integers(0, 10**6))
def test_no_other_tail_is_nearer_to_the_student(seed):
    hidden, head, (teacher,), positions = problem(seed, 1)
    signal = listed(teacher, 6, positions.labels)
    student = head(hidden).detach().log_softmax(-1)
    least = bucketed(signal, student.exp())
    other = bucketed(signal, torch.rand(N, V, dtype=torch.float64) + 0.01)
    for divergence in (forward_kl, reverse_kl, partial(generalized_jsd, beta=0.5)):
        assert (divergence(student, least.log()) <= divergence(student, other.log()) + 1e-9).all()


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("spoiled", ["list", "entropy", "label", "valid"])
def test_a_bad_list_is_an_absent_teacher_bit_for_bit(driver, spoiled):
    hidden, head, teachers, positions = problem(5)
    good, other = (listed(p, 4, positions.labels) for p in teachers)
    if spoiled == "list":
        other.logprobs[:] = torch.nan
    elif spoiled == "entropy":
        other.entropy[:] = torch.inf
    elif spoiled == "label":
        other.label_logprob[:] = torch.nan
    else:
        other = TopKSignal(
            other.token_ids, other.logprobs, other.entropy, other.label_logprob, V, valid=torch.zeros(N).bool()
        )
    found = run(driver, hidden, head, [good, other], positions)
    expected = run(driver, hidden, head, [good], positions)
    for one, two in zip(found[1], expected[1], strict=True):
        assert torch.equal(one, two)
    torch.testing.assert_close(found[0].kd, expected[0].kd, rtol=1e-14, atol=0)  # a sum of more zeros
    assert (found[0].weights[:, 1] == 0).all()


def test_copies_of_a_list_are_one_list():
    hidden, head, (teacher,), positions = problem(6, 1)
    signal = listed(teacher, 5, positions.labels)
    found = run("fused", hidden, head, [signal] * 3, positions)
    expected = run("fused", hidden, head, [signal], positions)
    for one, two in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found[0].conflict, torch.zeros_like(found[0].conflict), atol=1e-10, rtol=0)


@pytest.mark.parametrize("driver", DRIVERS)
def test_exact_figures_decide_the_weights(driver):
    hidden, head, teachers, positions = problem(7)
    signals = [listed(p, 2, positions.labels) for p in teachers]
    found, _ = run(driver, hidden, head, signals, positions)
    dense, _ = run(driver, hidden, head, [DenseSignal(p) for p in teachers], positions)
    torch.testing.assert_close(found.weights, dense.weights, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.stats.cross_entropy, dense.stats.cross_entropy, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_list_made_at_another_temperature_is_refused(driver):
    hidden, head, (teacher,), positions = problem(8, 1)
    signal = listed(teacher, 5, positions.labels, temperature=2.0)
    with pytest.raises(ValueError, match=r"at kd_temperature 2, the loss is at 1"):
        run(driver, hidden, head, [signal], positions)


def test_a_student_that_rules_the_rest_out_gets_finite_gradients():
    hidden, head, (teacher,), positions = problem(9, 1)
    signal = listed(teacher, 3, positions.labels)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.fill_(-200.0)
        head.bias[0] = 50.0
    for dtype in (torch.float32, torch.float64):
        small = signal.map(lambda t, d=dtype: t.to(d) if t.is_floating_point() else t)
        sums, gradients = run("fused", hidden.to(dtype), head.to(dtype), [small], positions)
        assert sums.loss.isfinite() and all(gradient.isfinite().all() for gradient in gradients)


def test_float32_is_near_to_float64():
    hidden, head, teachers, positions = problem(10, 3)
    signals = [listed(p, 6, positions.labels) for p in teachers]
    expected = run("fused", hidden, head, signals, positions)
    small = [s.map(lambda t: t.float() if t.is_floating_point() else t) for s in signals]
    found = run("fused", hidden.float(), head.float(), small, positions)
    for one, two in zip(found[1], expected[1], strict=True):
        assert float((one.double() - two).norm() / two.norm()) < 1e-5


@pytest.mark.parametrize("temperature", [1.0, 1.5])
@pytest.mark.parametrize("vocab_size", [520, 523])
def test_the_cap_is_looked_for_where_the_student_is_high(vocab_size, temperature, monkeypatch):
    """With a quarter of the vocabulary looked at, what is found is what a look at all of it finds."""
    generator = torch.Generator().manual_seed(12)
    head = torch.nn.Linear(D, vocab_size, dtype=torch.float64)
    with torch.no_grad():
        head.weight.copy_(2.0 * torch.randn(vocab_size, D, generator=generator))
    hidden = torch.randn(N, D, generator=generator, dtype=torch.float64)
    positions = positions_of(torch.randint(vocab_size, (N,), generator=generator))
    signals = []
    for _ in range(2):
        teacher = (3 * torch.randn(N, vocab_size, generator=generator, dtype=torch.float64)).log_softmax(-1)
        softened = (teacher / temperature).log_softmax(-1)
        kept, ids = softened.topk(40)
        entropy = -(teacher.exp() * teacher).sum(-1)
        at_label = teacher.gather(-1, positions.labels[:, None]).squeeze(-1)
        signals.append(TopKSignal(ids, kept, entropy, at_label, vocab_size, kd_temperature=temperature))
    options = {
        "target": KdTarget(forward_kl, mixture_logprobs, temperature),
        "projection": ProjectionHead(head, vocab_size),
        "label_smoothing": 0.1,
    }
    expected = run("plain", hidden, head, signals, positions, **options)
    monkeypatch.setattr(listed_module, "BLOCK", 4)
    monkeypatch.setattr(listed_module, "ROUNDS", 12)
    monkeypatch.setattr(listed_module, "MAX_BLOCKS", 64)
    found = run("fused", hidden, head, signals, positions, **options)
    close(found, expected, rtol=1e-8, atol=1e-10)
    monkeypatch.setattr(listed_module, "MAX_BLOCKS", 1)
    few = run("fused", hidden, head, signals, positions, **options)
    assert float((few[1][0] - expected[1][0]).norm()) > 1e-4  # the test above can fail


def test_a_uniform_tail_shares_the_rest_evenly():
    _, _, (teacher,), positions = problem(11, 1)
    signal = listed(teacher, 4, positions.labels, tail="uniform")
    dense = dense_logprobs(signal, slice(0, N)).exp()
    torch.testing.assert_close(dense.sum(-1), torch.ones(N, dtype=torch.float64))
    rest = dense.scatter(-1, signal.token_ids, torch.nan)
    assert ((rest == rest.nanmedian(-1, keepdim=True).values) | rest.isnan()).all()

"""Every weighting against its formula, and through both drivers of the loss."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from collegium.fused import chunked, fused
from collegium.fused.chunked import KdTarget
from collegium.fused.products import project
from collegium.fused.teacher_stats import teacher_stats
from collegium.losses.divergences import forward_kl
from collegium.losses.fusion import geometric_logprobs, mixture_logprobs
from collegium.losses.joint_weighting import JointWeighting
from collegium.losses.min_norm import MinNormWeighting
from collegium.losses.weighting import GivenScores, Weighting
from collegium.models.head import ProjectionHead
from collegium.signals.contracts import Positions
from collegium.signals.signals import ProjectedSignal, TopKSignal


N, D, V = 40, 6, 23
SEGMENTS = torch.tensor([0] * 3 + [2] * 17 + [3] * 20)
OFFSETS = torch.cat((torch.arange(3), torch.arange(1, 18), torch.arange(20)))
DOMAINS = torch.tensor([1] * 20 + [0] * 20)
GRANULARITIES = ["token", "window:4", "sequence", "causal:5"]
AVERAGED = ["entropy", "inverse_entropy", "most_certain", "mt_bert", "min_ce", "avg_ce"]
JOINT = ["ebkd", "ca_mkd"]
LEAKING = {"mt_bert", "min_ce", "avg_ce", "ca_mkd"}

WEIGHTINGS = {
    **{f"{kind}, {g}": Weighting(kind, g, 0.3) for kind in AVERAGED for g in GRANULARITIES},
    **{f"{kind}, {g}": JointWeighting(kind, g) for kind in JOINT for g in GRANULARITIES},
    **{f"min_norm, {g}": MinNormWeighting(g) for g in GRANULARITIES},
    "uniform": Weighting("uniform"),
    "static": Weighting("static", values=(0.5, 0.2, 0.3)),
    "domain": Weighting("domain", routes=(2, 0)),
    "bayes": Weighting("bayes"),
    "bayes, 1": Weighting("bayes", decay=1.0),
    "given scores": GivenScores(torch.linspace(-2, 3, N * 3, dtype=torch.float64).reshape(N, 3).sin(), 0.4),
    "given scores, 0": GivenScores(torch.linspace(-2, 3, N * 3, dtype=torch.float64).reshape(N, 3).sin(), 0.0),
}


def positions_of(labels):
    return Positions(torch.arange(N), labels, SEGMENTS, OFFSETS, DOMAINS)


def problem(seed=0, num_teachers=3, spoil=True):
    torch.manual_seed(seed)
    hidden, head = torch.randn(N, D, dtype=torch.float64), nn.Linear(D, V, dtype=torch.float64)
    signals = []
    for m in range(num_teachers):
        teacher = nn.Linear(D, V, bias=False, dtype=torch.float64).requires_grad_(False)
        states, valid = 3 * torch.randn(N, D, dtype=torch.float64), torch.rand(N) < 0.8
        valid[:4] = m == 1  # nobody but teacher 1; then nobody at all
        valid[2] = False
        signals.append(ProjectedSignal(states, ProjectionHead(teacher, V), 1.0, 1.2, valid if spoil else None))
    return hidden, head, signals, positions_of(torch.randint(V, (N,)))


def run(driver, weighting, parts, *, chunk_size=16, fusion=mixture_logprobs):
    hidden, head, signals, positions = parts
    hidden = hidden.clone().requires_grad_()
    head.zero_grad()
    target = KdTarget(forward_kl, fusion, 1.5)
    options = {"target": target, "kd_weight": 0.6, "chunk_size": chunk_size}
    sums = driver(hidden, ProjectionHead(head, V), positions, signals, weighting, **options)
    sums.loss.backward()
    assert not sums.weights.requires_grad
    return sums, [hidden.grad, *(p.grad.clone() for p in head.parameters())]


def weigh(weighting, parts, chunk_size=16):
    return run(fused.distillation_loss, weighting, parts, chunk_size=chunk_size)[0].weights


# ---- formulas, written again position by position


def figure_at(x, said, granularity, t, past_only):
    """Mean of one teacher's figure over the stretch of t."""
    kind, _, size = granularity.partition(":")
    total = count = 0.0
    age = 0
    for s in range(N - 1, -1, -1):
        if SEGMENTS[s] != SEGMENTS[t] or (kind == "causal" and s > t):
            continue
        if kind == "causal":
            if past_only and s == t:
                continue
            share, age = (1 - 1 / int(size)) ** age, age + 1
        elif kind == "window":
            share = float(OFFSETS[s] // int(size) == OFFSETS[t] // int(size))
        else:
            share = float(kind == "sequence" or s == t)
        if said[s]:
            total, count = total + share * x[s].item(), count + share
    return total / count if count else 0.0


def softmax(scores):
    top = max(scores)
    shares = [math.exp(score - top) for score in scores]
    return [share / sum(shares) for share in shares]


def lowest(values):
    best = min(values)
    return [float(value == best) / values.count(best) for value in values]


def normalised(values):
    return [value / sum(values) for value in values]


def complement(shares):
    return [1.0] if len(shares) == 1 else [(1 - share) / (len(shares) - 1) for share in shares]


FORMULAS = {
    "entropy": lambda x: softmax([-h / 0.3 for h in x]),
    "inverse_entropy": lambda x: normalised([1 / (h + 1e-8) for h in x]),
    "most_certain": lowest,
    "mt_bert": lambda x: normalised([1 / (1 + ce) for ce in x]),
    "min_ce": lowest,
    "avg_ce": lambda x: softmax([math.exp(-ce) for ce in x]),
    "ebkd": lambda x: complement(normalised(x)),
    "ca_mkd": lambda x: complement(softmax(x)),
}


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("kind", list(FORMULAS))
def test_weights_equal_the_formula(kind, granularity):
    parts = problem(1)
    stats = teacher_stats(parts[2], parts[3].labels, chunk_size=N)
    past_only = kind in LEAKING and granularity.startswith("causal")
    figures = stats.cross_entropy if kind in LEAKING else stats.entropy
    found = weigh(WEIGHTINGS[f"{kind}, {granularity}"], parts)
    for t in range(N):
        valid = [m for m in range(3) if stats.valid[t, m]]
        expected = torch.zeros(3, dtype=torch.float64)
        said = torch.ones_like(stats.valid) if past_only else stats.valid
        x = [figure_at(figures[:, m], said[:, m], granularity, t, past_only) for m in valid]
        if valid:
            expected[valid] = torch.tensor(FORMULAS[kind](x), dtype=torch.float64)
        torch.testing.assert_close(found[t], expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("decay", [0.97, 1.0])
def test_bayes_is_the_posterior_after_the_past(decay):
    parts = problem(2)
    stats = teacher_stats(parts[2], parts[3].labels, chunk_size=N)
    found = weigh(Weighting("bayes", decay=decay), parts)
    for t in range(N):
        scores = torch.zeros(3, dtype=torch.float64)
        for s in range(t):
            if SEGMENTS[s] == SEGMENTS[t]:
                scores = scores - decay ** (t - 1 - s) * stats.cross_entropy[s]
        expected = scores.masked_fill(~stats.valid[t], -torch.inf).softmax(-1).nan_to_num()
        torch.testing.assert_close(found[t], expected, rtol=1e-10, atol=1e-12)


def test_domains_route_to_their_teachers():
    parts = problem(3)
    valid = teacher_stats(parts[2], parts[3].labels, chunk_size=N).valid
    found = weigh(WEIGHTINGS["domain"], parts)
    chosen = nn.functional.one_hot(torch.tensor([2, 0])[DOMAINS], 3).bool()
    assert torch.equal(found, (chosen & valid).double())
    with pytest.raises(ValueError, match="does not say which domain"):
        weigh(WEIGHTINGS["domain"], (*parts[:3], replace(parts[3], domains=None)))


@pytest.mark.parametrize("tau", [0.4, 0.0])
def test_given_scores_are_masked_where_a_teacher_is_not_valid(tau):
    parts = problem(4)
    valid = teacher_stats(parts[2], parts[3].labels, chunk_size=N).valid
    scores = torch.randn(N, 3, dtype=torch.float64, requires_grad=True)
    found = weigh(GivenScores(scores, tau), parts)
    masked = scores.detach().masked_fill(~valid, -torch.inf)
    expected = (masked / tau).softmax(-1) if tau else (masked == masked.amax(-1, keepdim=True)).double()
    expected = torch.where(valid.any(-1, keepdim=True), expected, 0.0)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    assert scores.grad is None


def test_min_norm_is_the_shortest_gradient_of_the_logits():
    hidden, head, signals, positions = problem(5, 2, spoil=False)
    found = weigh(MinNormWeighting("token", 1.0), (hidden, head, signals, positions))
    q = (head(hidden) / 1.5).softmax(-1)
    g = [q - (signal.logits(slice(0, N)) / (1.5 * 1.2)).softmax(-1) for signal in signals]
    a = ((g[1] * (g[1] - g[0])).sum(-1) / (g[0] - g[1]).square().sum(-1)).clamp(0, 1).detach()
    torch.testing.assert_close(found, torch.stack((a, 1 - a), -1), rtol=1e-8, atol=1e-9)


# ---- through both drivers


@pytest.mark.parametrize("name", list(WEIGHTINGS))
def test_both_drivers_agree_whatever_the_chunk_size(name):
    parts = problem(6)
    fusion = geometric_logprobs if "sequence" in name else mixture_logprobs
    expected, gradients = run(chunked.distillation_loss, WEIGHTINGS[name], parts, chunk_size=N, fusion=fusion)
    for driver, chunk_size in (
        (fused.distillation_loss, N),
        (fused.distillation_loss, 16),
        (fused.distillation_loss, 7),
        (chunked.distillation_loss, 7),
    ):
        sums, found = run(driver, WEIGHTINGS[name], parts, chunk_size=chunk_size, fusion=fusion)
        torch.testing.assert_close(sums.loss, expected.loss, rtol=1e-10, atol=0)
        torch.testing.assert_close(sums.weights, expected.weights, rtol=1e-9, atol=1e-11)
        for one, other in zip(found, gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", list(WEIGHTINGS))
def test_rows_sum_to_1_over_valid_teachers(name):
    parts = problem(7)
    valid = teacher_stats(parts[2], parts[3].labels, chunk_size=N).valid
    weights = weigh(WEIGHTINGS[name], parts)
    assert (weights[~valid] == 0).all() and (weights >= 0).all() and not valid[2].any()
    someone = valid.any(-1) if name != "domain" else weights.sum(-1) > 0
    torch.testing.assert_close(weights.sum(-1), someone.double(), rtol=1e-12, atol=0)


def chosen(weighting, order):
    """The weighting for the teachers in this order."""
    if isinstance(weighting, GivenScores):
        return replace(weighting, scores=weighting.scores[:, order])
    if isinstance(weighting, Weighting) and weighting.values is not None:
        return replace(weighting, values=tuple(weighting.values[m] for m in order))
    if isinstance(weighting, Weighting) and weighting.routes is not None:
        return replace(weighting, routes=tuple(order.index(m) for m in weighting.routes))
    return weighting


@pytest.mark.parametrize("name", list(WEIGHTINGS))
def test_order_does_not_matter_and_absent_is_removed_bit_for_bit(name):
    hidden, head, signals, positions = problem(8)
    weighting, order = WEIGHTINGS[name], [2, 0, 1]
    expected = weigh(weighting, (hidden, head, signals, positions))
    turned = weigh(chosen(weighting, order), (hidden, head, [signals[m] for m in order], positions))
    torch.testing.assert_close(turned, expected[:, order], rtol=1e-9, atol=1e-9)
    nowhere = replace(signals[1], valid=torch.zeros(N, dtype=torch.bool))
    if name != "domain":
        weighting = chosen(weighting, [0, 1, 2])
        with_absent, _ = run(
            fused.distillation_loss, weighting, (hidden, head, [signals[0], nowhere, signals[2]], positions)
        )
        without, _ = run(
            fused.distillation_loss,
            chosen(weighting, [0, 2]),
            (hidden, head, [signals[0], signals[2]], positions),
        )
        if name.startswith("min_norm"):  # rows that are alive at once depend on the number of teachers
            torch.testing.assert_close(with_absent.weights[:, [0, 2]], without.weights, rtol=1e-11, atol=1e-12)
        else:
            assert torch.equal(with_absent.weights[:, [0, 2]], without.weights)
            assert torch.equal(with_absent.loss, without.loss)


@pytest.mark.parametrize("name", [name for name in WEIGHTINGS if name not in ("static", "domain")])
def test_one_teacher_has_all_and_copies_of_one_are_one(name):
    hidden, head, signals, positions = problem(9, 1)
    weighting = WEIGHTINGS[name]
    if isinstance(weighting, GivenScores):
        weighting = replace(weighting, scores=weighting.scores[:, :1].expand(N, 3))
    one, gradients = run(fused.distillation_loss, weighting, (hidden, head, signals, positions))
    assert torch.equal(one.weights, one.stats.valid.double())
    three, of_three = run(fused.distillation_loss, weighting, (hidden, head, signals * 3, positions))
    torch.testing.assert_close(three.loss, one.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(three.weights, one.weights.expand(N, 3) / 3, rtol=1e-9, atol=0)
    for found, expected in zip(of_three, gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)


def test_large_tau_is_uniform():
    parts = problem(10)
    uniform = weigh(Weighting("uniform"), parts)
    for weighting in (Weighting("entropy", "causal:5", 1e12), GivenScores(torch.randn(N, 3).double(), 1e12)):
        torch.testing.assert_close(weigh(weighting, parts), uniform, rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", [n for n in WEIGHTINGS if "causal" in n or n.startswith("bayes")])
def test_causal_weights_know_nothing_of_what_follows(name):
    """Nor of the label at the position itself, where they read labels."""
    hidden, head, signals, positions = problem(11)
    before = weigh(WEIGHTINGS[name], (hidden, head, signals, positions))
    labels, at = positions.labels.clone(), 30
    labels[at:] = (labels[at:] + 5) % V
    other = torch.arange(N) > at
    changed = [replace(s, hidden=torch.where(other[:, None], -s.hidden, s.hidden)) for s in signals]
    after = weigh(WEIGHTINGS[name], (hidden, head, changed, replace(positions, labels=labels)))
    torch.testing.assert_close(after[: at + 1], before[: at + 1], rtol=1e-12, atol=1e-14)
    assert not torch.allclose(after[at + 1 :], before[at + 1 :])


@pytest.mark.parametrize("name", list(WEIGHTINGS))
def test_passes_over_the_teachers(name, monkeypatch):
    """One where teachers are scored by themselves, two where they are compared."""
    hidden, head, signals, positions = problem(12)
    heads, rows = {id(s.head.projection.weight) for s in signals}, []

    def counting(states, weight, bias=None, **options):
        if weight.untyped_storage().data_ptr() in pointers:
            rows.append(len(states))
        return project(states, weight, bias, **options)

    pointers = {s.head.projection.weight.untyped_storage().data_ptr() for s in signals}
    for module in ("collegium.fused.streamed", "collegium.models.head"):
        monkeypatch.setattr(f"{module}.project", counting)
    run(fused.distillation_loss, WEIGHTINGS[name], (hidden, head, signals, positions), chunk_size=20)
    passes = 3 if name.startswith("min_norm") else 2 if name.split(",")[0] in JOINT else 1
    assert len(heads) == 3 and sum(rows) == passes * 3 * N


def listed(signal, labels, kept=V):
    """The same teacher as a list of its most probable tokens."""
    logits = signal.logits(slice(0, N)).detach()
    at_weight, own = (logits / t for t in (signal.weight_temperature, signal.target_temperature))
    at_weight, own = at_weight.log_softmax(-1), own.log_softmax(-1)
    logprobs, ids = (logits / (1.5 * signal.target_temperature)).log_softmax(-1).topk(kept)
    at_label = (p.gather(-1, labels[:, None]).squeeze(-1) for p in (own, at_weight))
    entropy = -(at_weight.exp() * at_weight).sum(-1)
    label_logprob, weight_label_logprob = at_label
    return TopKSignal(
        ids,
        logprobs,
        entropy,
        label_logprob,
        V,
        weight_label_logprob=weight_label_logprob,
        kd_temperature=1.5,
        valid=signal.valid,
    )


@pytest.mark.parametrize("name", list(WEIGHTINGS))
def test_lists_get_the_weights_of_their_full_distributions(name):
    hidden, head, signals, positions = problem(13)
    expected, _ = run(fused.distillation_loss, WEIGHTINGS[name], (hidden, head, signals, positions))
    everything = [listed(signal, positions.labels) for signal in signals]
    mixed = [signals[0], *everything[1:]]
    for lists in (everything, mixed):
        found, _ = run(fused.distillation_loss, WEIGHTINGS[name], (hidden, head, lists, positions))
        torch.testing.assert_close(found.weights, expected.weights, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(found.loss, expected.loss, rtol=1e-8, atol=0)
    short = [listed(signal, positions.labels, 5) for signal in signals]
    one, _ = run(fused.distillation_loss, WEIGHTINGS[name], (hidden, head, short, positions))
    two, _ = run(chunked.distillation_loss, WEIGHTINGS[name], (hidden, head, short, positions))
    torch.testing.assert_close(one.weights, two.weights, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(one.loss, two.loss, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", list(WEIGHTINGS))
def test_logits_that_are_bad_leave_no_trace(name):
    """NaN in a teacher's states is as if it had said nothing there."""
    hidden, head, signals, positions = problem(14)
    silent = torch.rand(N) < 0.3
    said = replace(signals[1], valid=signals[1].valid & ~silent)
    spoilt = replace(signals[1], hidden=signals[1].hidden.masked_fill(silent[:, None], torch.nan))
    expected, gradients = run(
        fused.distillation_loss, WEIGHTINGS[name], (hidden, head, [signals[0], said, signals[2]], positions)
    )
    for driver in (fused.distillation_loss, chunked.distillation_loss):
        found, others = run(driver, WEIGHTINGS[name], (hidden, head, [signals[0], spoilt, signals[2]], positions))
        torch.testing.assert_close(found.weights, expected.weights, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(found.loss, expected.loss, rtol=1e-10, atol=0)
        for one, other in zip(others, gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", list(WEIGHTINGS))
def test_documents_weigh_as_they_would_alone(name):
    """The last of three documents in a block has the weights that it has by itself."""
    hidden, head, signals, positions = problem(15)
    together = weigh(WEIGHTINGS[name], (hidden, head, signals, positions))[20:]
    weighting = WEIGHTINGS[name]
    if isinstance(weighting, GivenScores):
        weighting = replace(weighting, scores=weighting.scores[20:])
    last = [replace(s, hidden=s.hidden[20:], valid=s.valid[20:]) for s in signals]
    place = Positions(*(value[20:] for value in vars(positions).values()))
    alone = weigh(weighting, (hidden[20:], head, last, place))
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-11)


@settings(max_examples=20)
@given(name=st.sampled_from(list(WEIGHTINGS)), seed=st.integers(0, 2**32 - 1), chunk_size=st.integers(1, N))
def test_no_chunk_size_changes_anything(name, seed, chunk_size):
    parts = problem(seed)
    expected = run(chunked.distillation_loss, WEIGHTINGS[name], parts, chunk_size=N)[0]
    found = run(fused.distillation_loss, WEIGHTINGS[name], parts, chunk_size=chunk_size)[0]
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-9, atol=0)
    torch.testing.assert_close(found.weights, expected.weights, rtol=1e-7, atol=1e-9)

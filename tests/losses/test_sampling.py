"""Drawing tokens: what is drawn from, and that a number decides the token."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from collegium.losses.sampling import at, draw, mixed_logprobs, shaped_logprobs


def random_logits(seed: int, rows: int = 5, vocab: int = 11) -> torch.Tensor:
    return 2 * torch.randn(rows, vocab, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_temperature_is_a_power_of_the_distribution():
    logits = random_logits(0)
    powered = logits.softmax(-1) ** (1 / 0.7)
    expected = powered / powered.sum(-1, keepdim=True)
    assert torch.allclose(shaped_logprobs(logits, temperature=0.7).exp(), expected, atol=1e-12)


@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.9, 0.999])
def test_nucleus_is_the_smallest_set_that_holds_the_mass(top_p):
    logits = random_logits(1)
    result = shaped_logprobs(logits, top_p=top_p).exp()
    for row, probs in zip(result, logits.softmax(-1), strict=True):
        kept, mass = set(), 0.0
        for token in sorted(range(len(probs)), key=lambda i: -float(probs[i])):
            kept.add(token)
            mass += float(probs[token])
            if mass >= top_p:
                break
        assert set(row.nonzero().squeeze(-1).tolist()) == kept
        for token in kept:
            assert float(row[token]) == pytest.approx(float(probs[token]) / mass, rel=1e-10)


def test_equal_tokens_at_the_border_are_not_all_taken():
    assert (shaped_logprobs(torch.zeros(1, 4), top_p=0.5).exp() > 0).sum() == 2


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_mixture_with_the_teacher(share):
    student, teacher = (random_logits(seed).log_softmax(-1) for seed in (2, 3))
    expected = share * teacher.exp() + (1 - share) * student.exp()
    assert torch.allclose(mixed_logprobs(student, teacher, share).exp(), expected, atol=1e-12)


def test_mixture_reaches_what_the_student_rules_out():
    student = torch.tensor([[0.0, -math.inf]])
    mixed = mixed_logprobs(student, torch.tensor([[0.5, 0.5]]).log(), 0.2)
    assert torch.allclose(mixed.exp(), torch.tensor([[0.9, 0.1]]))


@given(st.floats(0, 1, exclude_max=True), st.integers(0, 50))
def test_draw_inverts_the_cumulative_distribution(number, seed):
    probs = random_logits(seed, rows=1)[0].softmax(-1)
    total, expected = 0.0, len(probs) - 1
    for token, probability in enumerate(probs.tolist()):
        total += probability
        if number < total:
            expected = token
            break
    drawn = int(draw(probs.log()[None], torch.tensor([number], dtype=torch.float64)))
    border = min(abs(number - float(c)) for c in probs.cumsum(-1))
    assert drawn == expected or border < 1e-12


@pytest.mark.parametrize("number", [0.0, 0.5, 1 - 2**-53])
def test_tokens_of_probability_0_are_never_drawn(number):
    logprobs = torch.tensor([[-math.inf, 0.3, -math.inf, 0.7, -math.inf]]).log_softmax(-1)
    assert int(draw(logprobs, torch.tensor([number], dtype=torch.float64))) in (1, 3)


def test_frequencies_are_the_probabilities():
    logprobs = random_logits(4, rows=1, vocab=4).log_softmax(-1)
    numbers = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    counts = draw(logprobs.expand(10_000, -1), numbers).bincount(minlength=4) / 10_000
    assert torch.allclose(counts.double(), logprobs[0].exp(), atol=2e-4)


def test_at_reads_one_token_a_row():
    logprobs = random_logits(5, rows=3)
    tokens = torch.tensor([4, 0, 10])
    assert torch.equal(at(logprobs, tokens), logprobs[[0, 1, 2], tokens])

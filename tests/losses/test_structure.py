"""MGSKD's losses against a few lines a document that follow the official code; borders, packing, memory."""

import math
from itertools import pairwise

import pytest
import torch
from torch.nn.functional import normalize, smooth_l1_loss

from collegium.losses.structure import (
    Items,
    Relations,
    check_relation_heads,
    phrase_items,
    phrase_slots,
    pool,
    sample_loss,
    structure_loss,
    token_items,
)


D, E, HEADS = 8, 12, 4
RELATIONS = Relations(HEADS, salient=3, neighbours=4)
BLOCKS = [[7, 5, (2,)], [9, (5,)]]
"""Lengths of documents; those of padding in brackets."""


def grid(blocks=BLOCKS):
    """Positions and mask of packed blocks."""
    lengths = [[part if isinstance(part, int) else part[0] for part in block] for block in blocks]
    positions = torch.stack([torch.cat([torch.arange(n) for n in block]) for block in lengths])
    texts = [
        [torch.full((n,), isinstance(p, int)) for n, p in zip(*pair, strict=True)]
        for pair in zip(lengths, blocks, strict=True)
    ]
    return positions, torch.stack([torch.cat(parts) for parts in texts])


def draw(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(*shape, D, generator=generator, dtype=torch.float64)
    return student.requires_grad_(), 1.5 * torch.randn(*shape, E, generator=generator, dtype=torch.float64)


def documents(positions, mask):
    """(block, slice) of each document."""
    found = []
    for b in range(len(positions)):
        starts = [*(positions[b] == 0).nonzero().flatten().tolist(), positions.shape[1]]
        found += [(b, slice(i, j)) for i, j in pairwise(starts) if mask[b, i]]
    return found


def pair_reference(student, teacher):
    """`loss_pair` of the official code: mean over heads and all i, j of the squared difference of products."""
    total, count = 0.0, 0
    for i in range(len(student)):
        for j in range(len(student)):
            for head in range(HEADS):
                s, t = (h.view(len(h), HEADS, -1)[:, head] for h in (student, teacher))
                error = s[i] @ s[j] / math.sqrt(D // HEADS) - t[i] @ t[j] / math.sqrt(E // HEADS)
                total, count = total + error**2, count + 1
    return total / count


def triplet_reference(student, teacher):
    """`cal_pairinteraction_multihead` and `calculate_tripletangleseq_multihead` for one document."""
    heads = teacher.view(len(teacher), HEADS, -1).transpose(0, 1)
    scores = (heads @ heads.transpose(-1, -2) / math.sqrt(E // HEADS)).softmax(-1)
    chosen = scores.sum(1).sum(0).topk(min(RELATIONS.salient, len(teacher))).indices
    local = scores.sum(0) * (1 - torch.eye(len(teacher)))
    total, count = 0.0, 0
    for i in chosen:
        near = [j for j in local[i].topk(min(RELATIONS.neighbours, len(teacher))).indices if j != i]
        for j in near:
            for k in near:
                if j != k:
                    s, t = (
                        normalize(h[i] - h[j], dim=0) @ normalize(h[i] - h[k], dim=0) for h in (student, teacher)
                    )
                    total, count = total + smooth_l1_loss(s, t), count + 1
    return total / max(count, 1)


def token_reference(student, teacher, positions, mask):
    of_documents = [
        (part.stop - part.start) * (pair_reference(s, t) + triplet_reference(s, t))
        for b, part in documents(positions, mask)
        for s, t in [(student[b, part], teacher[b, part])]
    ]
    return sum(of_documents)


@pytest.mark.parametrize("buffer", [1, 300, 2**22])
def test_tokens_are_the_official_loss_of_each_document(buffer):
    positions, mask = grid()
    student, teacher = draw(positions.shape)
    found = structure_loss(student, teacher, token_items(positions, mask), RELATIONS, buffer=buffer)
    expected = token_reference(student, teacher, positions, mask)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    ours, theirs = (torch.autograd.grad(loss, student)[0] for loss in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


def begins_of(positions):
    begins = torch.zeros_like(positions, dtype=torch.bool)
    begins[0, [2, 4, 8]] = True  # documents of 3 and 2 phrases
    begins[1, [1, 2, 6, 10]] = True
    return begins


SPANS = [(0, [(0, 2), (2, 4), (4, 7)], 7), (1, [(0, 1), (1, 2), (2, 6), (6, 9)], 9)]
"""Of documents with at least three phrases: block, phrases, length."""


@pytest.mark.parametrize("buffer", [1, 2**22])
def test_phrases_are_means_of_spans_and_too_few_are_left_out(buffer):
    positions, mask = grid()
    student, teacher = draw(positions.shape)
    tokens, slots = token_items(positions, mask), phrase_slots(positions, begins_of(positions))
    found = structure_loss(
        pool(student, mask, slots),
        pool(teacher, mask, slots),
        phrase_items(tokens, slots),
        RELATIONS,
        buffer=buffer,
    )
    expected = 0.0
    for b, spans, length in SPANS:
        s, t = (torch.stack([h[b, i:j].mean(0) for i, j in spans]) for h in (student, teacher))
        expected = expected + length * (pair_reference(s, t) + triplet_reference(s, t))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("buffer", [1, 2**22])
def test_samples_are_the_official_loss_of_mean_states(buffer):
    positions, mask = grid()
    student, teacher = draw(positions.shape)
    found = sample_loss(student, teacher, token_items(positions, mask), HEADS, buffer=buffer)

    def angles(states):
        means = torch.stack([states[b, part].mean(0) for b, part in documents(positions, mask)])
        heads = means.view(len(means), HEADS, -1).permute(1, 0, 2)
        unit = normalize(heads.unsqueeze(1) - heads.unsqueeze(2), p=2, dim=-1)
        return torch.einsum("hijd, hidk->hijk", unit, unit.transpose(-2, -1))

    expected = smooth_l1_loss(angles(student), angles(teacher)) * mask.sum()
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def every_level(student, teacher, positions, mask, begins, emphasis=None):
    tokens, slots = token_items(positions, mask, emphasis), phrase_slots(positions, begins)
    phrases = phrase_items(tokens, slots)
    pooled = (pool(states, mask, slots) for states in (student, teacher))
    return torch.stack(
        [
            structure_loss(student, teacher, tokens, RELATIONS, buffer=200),
            structure_loss(*pooled, phrases, RELATIONS, buffer=200),
            sample_loss(student, teacher, tokens, HEADS, buffer=200),
        ]
    )


def test_gradients():
    positions, mask = grid()
    student, teacher = draw(positions.shape, seed=3)
    emphasis = torch.rand(positions.shape, dtype=torch.float64)
    begins = begins_of(positions)
    assert torch.autograd.gradcheck(
        lambda states: every_level(states, teacher, positions, mask, begins, emphasis), student
    )


def test_documents_packed_are_documents_apart():
    """Tokens and phrases, to the sum; samples need one another and have none alone."""
    positions, mask = grid()
    student, teacher = draw(positions.shape)
    begins = begins_of(positions)
    whole = every_level(student, teacher, positions, mask, begins)
    apart = [
        every_level(*(x[b : b + 1, part] for x in (student, teacher, positions, mask, begins)))
        for b, part in documents(positions, mask)
    ]
    torch.testing.assert_close(torch.stack(apart).sum(0)[:2], whole[:2], rtol=1e-12, atol=1e-12)
    assert all(parts[2] == 0 for parts in apart) and whole[2] > 0


@pytest.mark.parametrize("level", [0, 1])
def test_nothing_crosses_the_border_of_a_document(level):
    """What the first document teaches does not depend on the second's states, nor on the teacher's there."""
    positions, mask = grid([[6, 6]])
    student, teacher = draw(positions.shape)
    begins = torch.zeros_like(mask)
    begins[0, [1, 3, 8, 10]] = True
    second = torch.zeros_like(student)
    second[:, 6:] = 1.0
    shift = torch.randn(D, dtype=torch.float64) * second
    far = 3.0 * torch.randn(E, dtype=torch.float64) * second[..., :1]

    def gradient_of_first(student, teacher):
        student = student.detach().requires_grad_()
        loss = every_level(student, teacher, positions, mask, begins)[level]
        return torch.autograd.grad(loss, student)[0][:, :6]

    before = gradient_of_first(student, teacher)
    assert before.abs().max() > 0
    torch.testing.assert_close(gradient_of_first(student + shift, teacher + far), before, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("garbage", [math.nan, math.inf, 1e300])
def test_garbage_where_there_is_no_text_is_not_read(garbage):
    positions, mask = grid()
    student, teacher = draw(positions.shape)
    begins = begins_of(positions)
    clean = every_level(student, teacher, positions, mask, begins)
    spoilt = [states.detach().masked_fill(~mask.unsqueeze(-1), garbage) for states in (student, teacher)]
    states = spoilt[0].requires_grad_()
    found = every_level(states, spoilt[1], positions, mask, begins)
    torch.testing.assert_close(found, clean, rtol=1e-12, atol=1e-12)
    gradient = torch.autograd.grad(found.sum(), states)[0]
    assert gradient.isfinite().all() and not gradient[~mask].any()


def test_a_student_equal_to_the_teacher_has_no_loss_and_rotations_do_not_matter():
    positions, mask = grid()
    _, teacher = draw(positions.shape)
    begins = begins_of(positions)
    assert not every_level(teacher, teacher, positions, mask, begins).any()
    rotation = torch.linalg.qr(torch.randn(HEADS, E // HEADS, E // HEADS, dtype=torch.float64))[0]
    turned = torch.einsum("bshd,hde->bshe", teacher.unflatten(-1, (HEADS, -1)), rotation).flatten(2)
    assert every_level(turned, teacher, positions, mask, begins).abs().max() < 1e-12


def test_equal_states_have_no_angle_and_a_finite_gradient():
    """At the embeddings every occurrence of a token has the same state."""
    positions, mask = grid([[6], [6], [6]])
    student, teacher = draw(positions.shape)
    with torch.no_grad():
        student[:, 3] = student[:, 1]
        student[1] = student[0]
        teacher[:, 3] = teacher[:, 1]
    begins = torch.ones_like(mask)
    loss = every_level(student, teacher, positions, mask, begins).sum()
    assert torch.autograd.grad(loss, student)[0].abs().max() < 1e4


def test_emphasis_scales_what_belongs_to_a_document():
    positions, mask = grid()
    student, teacher = draw(positions.shape)
    begins = begins_of(positions)
    emphasis = torch.full(positions.shape, 0.25, dtype=torch.float64)
    whole, less = (every_level(student, teacher, positions, mask, begins, factor) for factor in (None, emphasis))
    torch.testing.assert_close(less, 0.25 * whole, rtol=1e-7, atol=0)
    alone = emphasis.clone().zero_()
    alone[0, :7] = 1.0
    only = every_level(student, teacher, positions, mask, begins, alone)
    first = (x[:1, :7] for x in (student, teacher, positions, mask, begins))
    torch.testing.assert_close(only[:2], every_level(*first)[:2], rtol=1e-7, atol=0)


def test_no_text_is_no_loss():
    positions, mask = grid([[(5,)]])
    student, teacher = draw(positions.shape)
    loss = every_level(student, teacher, positions, mask, torch.ones_like(mask))
    assert not loss.any() and not torch.autograd.grad(loss.sum(), student)[0].any()


def test_relation_heads_must_divide_the_widths():
    check_relation_heads(64, [576, 960, 2048])
    with pytest.raises(ValueError, match=r"relation_heads is 64.* 576, 96: what fits is 1, 2, 3, 4, 6, .*48, 96"):
        check_relation_heads(64, [576, 96])


def test_items_are_of_their_segments():
    positions, mask = grid()
    items = token_items(positions, mask)
    assert isinstance(items, Items)
    assert items.text[0, 0] == 7 and items.text[0, 8] == 5 and items.text[1, 10] == 0

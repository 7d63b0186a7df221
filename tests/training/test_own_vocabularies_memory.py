"""What terms on own vocabularies hold at once, in buffers of [n V] of the larger vocabulary."""

import pytest
import torch
from torch import nn

from collegium.models.head import ProjectionHead
from collegium.signals.contracts import Batch, TeacherOutput, predicted_positions
from collegium.signals.own_vocabulary import AlignedSpans, OwnView
from collegium.signals.signals import ProjectedSignal
from collegium.training.terms.cross_tokenizer import GoldTerm, UldTerm
from collegium.training.terms.dual_space import DualSpaceTerm
from collegium.training.terms.likelihood import AlmTerm
from collegium.training.terms.own_views import StudentRows
from tests.support.buffers import CHUNK_SIZE, VOCAB_SIZE, WIDTH, BufferCounter


LENGTH = 17
"""Tokens of a segment, one a block."""

TERMS = {
    "uld": lambda: UldTerm(["t"]),
    "gold": lambda: GoldTerm(["t"]),
    "alm": lambda: AlmTerm(["t"], boundaries=(torch.arange(9), [torch.arange(9)])),
    "dskd": lambda: DualSpaceTerm(["t"], (WIDTH, WIDTH), [WIDTH]),
}


def batch_of(num_blocks):
    tokens = torch.zeros((num_blocks, LENGTH), dtype=torch.int64)
    places = torch.arange(LENGTH).expand(num_blocks, -1)
    return Batch(tokens, torch.ones_like(tokens, dtype=torch.bool), tokens, places, tokens[:, 0])


def own_output(positions, vocab_size):
    """Stretches of one and of two tokens on both sides, as the student's rows in twos."""
    rows = len(positions)
    of_row = torch.arange(rows) // 2
    head = nn.Linear(WIDTH, vocab_size, bias=False).requires_grad_(False)
    signal = ProjectedSignal(torch.randn(rows, WIDTH), ProjectionHead(head, vocab_size))
    shared = torch.arange(VOCAB_SIZE // 2).unsqueeze(-1).expand(-1, 2)
    labels = positions.labels
    spans = AlignedSpans(of_row, of_row, torch.ones(rows // 2, dtype=torch.int64))
    embed = nn.Embedding(vocab_size, WIDTH).requires_grad_(False)
    view = OwnView(signal, labels, labels, positions.segments, spans, shared, embed)
    return TeacherOutput(signal, own=view)


def peak_of(name, num_blocks, vocab_size=VOCAB_SIZE):
    torch.manual_seed(0)
    batch = batch_of(num_blocks)
    positions = predicted_positions(batch)
    head = nn.Linear(WIDTH, VOCAB_SIZE, bias=False)
    hidden = torch.randn(len(positions), WIDTH, requires_grad=True)
    embed = nn.Embedding(VOCAB_SIZE, WIDTH)
    output, term = own_output(positions, vocab_size), TERMS[name]()
    with BufferCounter() as counter:
        rows = StudentRows(
            hidden, ProjectionHead(head, VOCAB_SIZE), batch, positions, VOCAB_SIZE, CHUNK_SIZE, embed
        )
        value, _ = term(rows, [output])
        value.backward()
    assert float(hidden.grad.abs().max()) > 0
    return counter.peak


@pytest.mark.parametrize("name", TERMS)
def test_memory_does_not_grow_with_the_number_of_positions(name):
    assert peak_of(name, 32) == pytest.approx(peak_of(name, 8), rel=0.05)


@pytest.mark.parametrize("name", TERMS)
def test_a_large_vocabulary_of_the_teacher_takes_smaller_chunks(name):
    head = 8 * WIDTH / CHUNK_SIZE  # in buffers; its product may copy it
    assert peak_of(name, 8, 8 * VOCAB_SIZE) <= peak_of(name, 8) + head + 0.05


@pytest.mark.parametrize(("name", "num_buffers"), [("uld", 10), ("gold", 10.5), ("alm", 4), ("dskd", 7)])
def test_number_of_buffers(name, num_buffers):
    assert peak_of(name, 8) <= num_buffers + 0.05

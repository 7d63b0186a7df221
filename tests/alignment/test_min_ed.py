"""Carrying by spelling, as FuseLLM does."""

import pytest
import torch

from collegium.alignment.edit_distance import nearest_tokens
from collegium.alignment.token_bytes import TokenBytes
from collegium.alignment.vocabulary import make_map
from collegium.signals.contracts import predicted_positions
from collegium.signals.signals import TopKSignal
from tests.support.aligned_pairs import PAIRS, TEXTS, ListingTeacher, aligned, batch_of, carried
from tests.support.small_tokenizers import byte_level, sentencepiece_bpe


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("COLLEGIUM_CACHE", str(tmp_path))


def distance(a: str, b: str) -> int:
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, right in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (left != right))
    return row[-1]


def test_the_nearest_token_is_the_one_of_least_distance() -> None:
    student, teacher = TokenBytes(byte_level(420)), TokenBytes(sentencepiece_bpe())
    nearest = nearest_tokens(student, teacher, make_map(student, teacher))
    texts = [(i, p.decode(errors="surrogateescape")) for i, p in enumerate(student.pieces) if p]
    for token in range(300, teacher.size, 17):
        spelt = (teacher.pieces[token] or b"").decode(errors="surrogateescape")
        best = min(distance(spelt, text) for _, text in texts)
        chosen = (student.pieces[nearest[token]] or b"").decode(errors="surrogateescape")
        assert distance(spelt, chosen) == best
    assert nearest[teacher.eos] == student.eos and nearest[teacher.bos] == -1
    again = nearest_tokens(student, teacher, make_map(student, teacher))
    assert (again == nearest).all()


@pytest.mark.parametrize("pair", [1, 2])
def test_one_token_for_one_and_the_label_elsewhere(pair: int) -> None:
    teacher, markov = aligned(*PAIRS[pair], by="min_ed")
    batch = batch_of(teacher, *TEXTS)
    logprobs, signal = carried(teacher, batch)
    positions = predicted_positions(batch)
    own = teacher.score(batch, positions, need=frozenset()).own
    assert own is not None and signal.exact is not None and signal.valid is not None
    assert bool(signal.valid.all()) and 0 < int(signal.exact.sum()) < len(positions)
    student = teacher.aligner.student
    full = own.signal.logits(slice(0, len(own.labels))).exp()  # type: ignore[union-attr]
    nearest = nearest_tokens(student, markov.table, teacher.aligner.vocabulary)
    for place in range(len(positions)):
        label = int(positions.labels[place])
        if not signal.exact[place]:
            assert float(logprobs[place, label]) == 0.0
            continue
        span = int(own.spans.student[place])
        (row,) = (own.spans.teacher == span).nonzero().flatten().tolist()
        expected = torch.zeros(student.size, dtype=torch.float64)
        for token, target in enumerate(nearest.tolist()):
            if target >= 0:
                expected[target] += full[row, token]
        assert torch.allclose(logprobs[place].exp(), expected / expected.sum(), atol=1e-9)


def test_lists_by_spelling() -> None:
    teacher, markov = aligned(*PAIRS[1], by="min_ed")
    batch = batch_of(teacher, *TEXTS)
    expected, signal = carried(teacher, batch)
    teacher.teacher = ListingTeacher(markov.table)
    positions = predicted_positions(batch)
    lists = teacher.score(batch, positions, need=frozenset()).signal
    assert isinstance(lists, TopKSignal)
    probs = torch.zeros_like(expected)
    listed = lists.logprobs.exp().masked_fill(lists.token_ids < 0, 0.0)
    probs.scatter_add_(-1, lists.token_ids.clamp_min(0), listed)
    assert torch.allclose(probs, expected.exp(), atol=1e-9)
    assert (lists.entropy[~signal.exact] == 0).all()

"""Lists are carried as full distributions are, as far as they go."""

import pytest
import torch

from collegium.alignment.meeting import Carry
from collegium.losses.divergences import entropy
from collegium.signals.contracts import predicted_positions
from collegium.signals.signals import TopKSignal
from collegium.teachers.aligned import AlignedTeacher
from tests.support.aligned_pairs import NEED, PAIRS, TEXTS, ListingTeacher, aligned, batch_of


def listing(pair: int, k: int) -> AlignedTeacher:
    teacher, markov = aligned(*PAIRS[pair], max_unknown=1.0)
    lists = ListingTeacher(markov.table)
    lists.k = k
    teacher.teacher = lists
    return teacher


@pytest.mark.parametrize("pair", range(4))
def test_whole_lists_are_carried_as_distributions_are(pair: int) -> None:
    full, _ = aligned(*PAIRS[pair], max_unknown=1.0)
    batch = batch_of(full, *TEXTS)
    positions = predicted_positions(batch)
    expected = full.score(batch, positions, need=NEED).signal
    signal = listing(pair, 1000).score(batch, positions, need=NEED).signal
    assert isinstance(signal, TopKSignal)
    dense = expected.logits(slice(0, len(positions)))  # type: ignore[union-attr]
    assert torch.equal(signal.valid, expected.valid)
    probs = torch.zeros_like(dense)
    probs.scatter_add_(
        -1, signal.token_ids.clamp_min(0), signal.logprobs.exp().masked_fill(signal.token_ids < 0, 0)
    )
    valid = signal.valid
    assert torch.allclose(probs[valid], dense.exp()[valid], atol=1e-9)
    assert torch.allclose(signal.entropy[valid], entropy(dense)[valid], atol=1e-7)
    at_label = dense.gather(-1, positions.labels[:, None]).squeeze(-1)
    assert torch.allclose(signal.label_logprob[valid], at_label[valid], atol=1e-7)
    assert (signal.tail_logprob[valid].exp() < 1e-9).all()


@pytest.mark.parametrize("pair", range(4))
@pytest.mark.parametrize("k", [1, 2, 4])
def test_what_is_not_listed_stays_in_the_tail(pair: int, k: int) -> None:
    full, _ = aligned(*PAIRS[pair], max_unknown=1.0)
    batch = batch_of(full, *TEXTS)
    positions = predicted_positions(batch)
    signal = listing(pair, k).score(batch, positions, need=NEED).signal
    assert isinstance(signal, TopKSignal) and signal.valid is not None and signal.tail_logprob is not None
    valid = signal.valid
    listed = signal.logprobs.exp().masked_fill(signal.token_ids < 0, 0.0).sum(-1)
    mass = listed + signal.tail_logprob.exp()
    assert torch.allclose(mass[valid], torch.ones_like(mass[valid]), atol=1e-9)
    assert (signal.entropy >= 0).all() and signal.entropy.isfinite().all()
    rows = (signal.token_ids >= 0) & valid[:, None]
    for row, column in rows.nonzero().tolist():
        assert signal.token_ids[row].tolist().count(int(signal.token_ids[row, column])) == 1
    at_label = signal.label_logprob[valid]
    assert (at_label <= 1e-9).all() and at_label.isfinite().all()


@pytest.mark.parametrize("max_unknown", [0.0, 0.2, 0.6, 1.0])
@pytest.mark.parametrize("pair", range(4))
@pytest.mark.parametrize("k", [1, 3, 1000])
def test_places_inside_a_token_are_left_out_as_of_full_distributions(
    pair: int, k: int, max_unknown: float
) -> None:
    """Of a whole list the same ones; of less no others, and none that calls the text itself impossible."""
    full, markov = aligned(*PAIRS[pair], max_unknown=max_unknown)
    batch = batch_of(full, *TEXTS)
    positions = predicted_positions(batch)
    expected = full.score(batch, positions, need=NEED).signal
    lists = ListingTeacher(markov.table)
    lists.k = k
    full.teacher = lists
    signal = full.score(batch, positions, need=NEED).signal
    assert isinstance(signal, TopKSignal) and signal.valid is not None and expected.valid is not None
    inside = full.read(vars(batch))["kinds"] == Carry.INSIDE
    found, allowed = signal.valid[inside], expected.valid[inside]
    assert not (found & ~allowed).any()
    assert k < 1000 or torch.equal(found, allowed)
    assert (signal.label_logprob[inside & signal.valid] > -50).all()

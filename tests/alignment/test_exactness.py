"""What is carried is what counting out all that a teacher may write gives."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from collegium.alignment.carry import CarryRows, carried_logprobs
from collegium.alignment.meeting import Carry
from collegium.alignment.plan import Aligner
from collegium.alignment.token_bytes import TokenBytes
from collegium.alignment.vocabulary import make_map
from collegium.fused.teacher_stats import teacher_stats
from collegium.signals.contracts import Batch, Capability, Positions, TeacherOutput, predicted_positions
from collegium.signals.signals import CarriedSignal, DenseSignal
from collegium.teachers.aligned import AlignedTeacher, AlignmentPolicy
from tests.support.aligned_pairs import LONGER, NEED, PAIRS, aligned, batch_of, carried
from tests.support.markov import MarkovTeacher, counted_out, letters_tokenizer


@pytest.mark.parametrize("text", ["cab", "cdab", "cdeabf", "acdcde", "abfab", "fcdf", "abab", "cdcd"])
def test_exact_places_are_as_counted_out(text: str) -> None:
    """The student has no token that the teacher lacks, so every place that both have cut is exact."""
    aligned_teacher, teacher = aligned([("a", "b")], LONGER)
    batch = batch_of(aligned_teacher, text)
    logprobs, signal = carried(aligned_teacher, batch)
    assert signal.exact is not None and signal.valid is not None
    assert bool(signal.exact.any())
    tokens = batch.input_ids[0].tolist()[1:]
    for place in signal.exact.nonzero().flatten().tolist():
        expected = counted_out(teacher, aligned_teacher.aligner.student, tokens[:place])
        assert (logprobs[place].exp() - expected).abs().max() < 1e-6, (text, place)


PARTS = ["a", "b", "c", "ab", "bc", "ca", "aa", "abc", "cab", "bca"]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(PARTS), st.sampled_from(PARTS)), min_size=1, max_size=5, unique_by="".join),
    st.integers(0, 2),
    st.text("abc", min_size=1, max_size=6),
    st.integers(0, 100),
)
def test_exact_places_of_any_pair_are_as_counted_out(pairs, num_own, text, seed) -> None:
    """The teacher merges on from the student's merges, so that its tokens are made of the student's."""
    merges, known = [], set("abc")
    for left, right in pairs:
        if left in known and right in known and left + right not in known:
            merges.append((left, right))
            known.add(left + right)
    student = TokenBytes(letters_tokenizer("abc", merges[:num_own]))
    teacher = MarkovTeacher(TokenBytes(letters_tokenizer("abc", merges)), seed=seed)
    teacher.table.bos = teacher.table.size - 2
    aligner = Aligner(student, teacher.table, make_map(student, teacher.table))
    aligned_teacher = AlignedTeacher(teacher, aligner, AlignmentPolicy(max_unknown=0.0))  # type: ignore[arg-type]
    batch = batch_of(aligned_teacher, text)
    logprobs, signal = carried(aligned_teacher, batch)
    assert signal.exact is not None and signal.valid is not None
    tokens = batch.input_ids[0].tolist()[1:]
    for place in (signal.exact & signal.valid).nonzero().flatten().tolist():
        expected = counted_out(teacher, student, tokens[:place])
        assert (logprobs[place].exp() - expected).abs().max() < 1e-6, (merges, num_own, text, place)


def test_places_inside_a_token_are_as_counted_out_where_nothing_ends_there() -> None:
    """In "fe", "fa", "fb" every token with f goes on, so what is inside is known."""
    merges = [("f", letter) for letter in "abcdef"]
    aligned_teacher, teacher = aligned([], merges)
    f = teacher.table.ids[b"f"]
    original = teacher._next_probs

    def without_f(before: int, last: int) -> torch.Tensor:
        probs = original(before, last).clone()
        probs[f] = 0.0
        return probs / probs.sum()

    teacher.next_probs = without_f  # type: ignore[assignment]
    batch = batch_of(aligned_teacher, "cfdab")
    logprobs, signal = carried(aligned_teacher, batch)
    assert signal.valid is not None and signal.exact is not None
    place = 2  # behind "cf", inside the teacher's "fd"
    assert not signal.exact[place] and signal.valid[place]
    expected = counted_out(teacher, aligned_teacher.aligner.student, batch.input_ids[0].tolist()[1:3])
    assert (logprobs[place].exp() - expected).abs().max() < 1e-6


def test_a_split_token_has_the_product_of_its_parts() -> None:
    aligned_teacher, teacher = aligned([("d", "e"), ("de", "f")], [("a", "b")])
    batch = batch_of(aligned_teacher, "cdefa")
    logprobs, signal = carried(aligned_teacher, batch)
    assert signal.exact is not None and signal.valid is not None
    tokens = batch.input_ids[0].tolist()[1:]
    place = 1  # behind "c": the student's next token is "def", the teacher's are d, e, f
    assert not signal.exact[place] and signal.valid[place]
    expected = counted_out(teacher, aligned_teacher.aligner.student, tokens[:place])
    assert logprobs[place].exp()[tokens[place]] == pytest.approx(float(expected[tokens[place]]), abs=1e-9)


def test_without_entries_a_token_that_is_always_longer_would_seem_impossible() -> None:
    aligned_teacher, teacher = aligned([], [("c", "d")])
    batch = batch_of(aligned_teacher, "cab")
    logprobs, _ = carried(aligned_teacher, batch)
    d = aligned_teacher.aligner.student.ids[b"d"]
    c, cd = teacher.table.ids[b"c"], teacher.table.ids[b"cd"]
    assert teacher.next_probs(teacher.table.bos, c)[teacher.table.ids[b"d"]] == 0
    at_start = teacher.next_probs(-1, teacher.table.bos)
    share = float(at_start[cd] / (at_start[c] + at_start[cd]))
    assert logprobs[1].exp()[d] == pytest.approx(share, abs=1e-12)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text("abcdef", min_size=1, max_size=12), min_size=1, max_size=3), st.sampled_from(range(4)))
def test_mass_is_conserved_and_labels_are_possible(texts: list[str], pair: int) -> None:
    aligned_teacher, _ = aligned(*PAIRS[pair])
    batch = batch_of(aligned_teacher, *texts)
    logprobs, signal = carried(aligned_teacher, batch)
    assert signal.valid is not None
    labels = predicted_positions(batch).labels
    mass = logprobs.exp().sum(-1)
    assert torch.allclose(mass[signal.valid], torch.ones_like(mass[signal.valid]), atol=1e-9)
    at_label = logprobs.gather(-1, labels[:, None]).squeeze(-1)
    assert (at_label[signal.valid] > -50).all()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text("abcdef", min_size=1, max_size=12), min_size=1, max_size=3), st.sampled_from(range(4)))
def test_any_part_of_the_places_gives_the_same(texts: list[str], pair: int) -> None:
    aligned_teacher, _ = aligned(*PAIRS[pair])
    batch = batch_of(aligned_teacher, *texts)
    positions = predicted_positions(batch)
    signal = aligned_teacher.score(batch, positions, need=NEED).signal
    assert isinstance(signal, CarriedSignal) and signal.valid is not None
    whole = signal.logits(slice(0, len(positions)))
    parts = torch.cat([signal.logits(slice(i, min(i + 3, len(positions)))) for i in range(0, len(positions), 3)])
    assert torch.allclose(whole[signal.valid], parts[signal.valid], atol=1e-9)
    read = {aligned_teacher.name: aligned_teacher.read(vars(batch))}
    ahead = Batch(**{**vars(batch), "stored": read})
    again = aligned_teacher.score(ahead, positions, need=NEED).signal.logits(slice(0, len(positions)))  # type: ignore[union-attr]
    assert torch.equal(whole, again)


class BrokenTeacher(MarkovTeacher):
    """Says nothing of use at one of its rows."""

    row, value = 0, torch.nan

    def score(self, batch: Batch, positions: Positions, *, need: frozenset[Capability]) -> TeacherOutput:
        signal = super().score(batch, positions, need=need).signal
        assert isinstance(signal, DenseSignal)
        logprobs = signal.logprobs.clone()
        logprobs[self.row] = self.value
        return TeacherOutput(DenseSignal(logprobs))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("row", [0, 3])
def test_a_row_that_is_no_distribution_spoils_no_other_place(row: int, value: float) -> None:
    """Whatever the size of a chunk: only what is carried from that row is absent."""
    aligned_teacher, teacher = aligned(*PAIRS[1])
    batch = batch_of(aligned_teacher, "abcdefabcde", "bcbcdef")
    positions = predicted_positions(batch)
    whole = aligned_teacher.score(batch, positions, need=NEED).signal
    broken = BrokenTeacher(teacher.table)
    broken.row, broken.value = row, value
    aligned_teacher.teacher = broken
    signal = aligned_teacher.score(batch, positions, need=NEED).signal
    expected = teacher_stats([whole], positions.labels, chunk_size=100)
    found = [teacher_stats([signal], positions.labels, chunk_size=size) for size in (1, 3, 100)]
    for stats in found:
        assert torch.equal(stats.valid, found[0].valid)
        assert 1 <= int((expected.valid & ~stats.valid).sum()) <= 3
        assert torch.allclose(stats.entropy[stats.valid], expected.entropy[stats.valid], atol=1e-9)


def test_a_place_at_which_all_is_ruled_out_is_absent() -> None:
    """Not an even distribution, which would be a target like any other."""
    aligned_teacher, teacher = aligned([], [("f", letter) for letter in "abcdef"], max_unknown=1.0)
    starts_with_f = [token for token, piece in enumerate(teacher.table.pieces) if (piece or b"")[:1] == b"f"]
    original = teacher._next_probs

    def without_f(before: int, last: int) -> torch.Tensor:
        probs = original(before, last).clone()
        probs[starts_with_f] = 0.0
        return probs / probs.sum()

    teacher.next_probs = without_f  # type: ignore[assignment]
    batch = batch_of(aligned_teacher, "cfdab")
    positions = predicted_positions(batch)
    signal = aligned_teacher.score(batch, positions, need=NEED).signal
    valid = teacher_stats([signal], positions.labels, chunk_size=100).valid.flatten()
    assert not valid[2] and bool(valid[0])  # behind "cf", inside the teacher's "fd"; behind BOS


def test_a_path_too_small_for_a_float_leaves_what_is_said_behind_it() -> None:
    """The teacher never expected "c", with which nothing else begins: behind it, it says what it says."""
    probs = torch.tensor([[0.0, 0.0, 1.0], [0.7, 0.3, 0.0]]).clamp_min(1e-38)
    zero = torch.tensor([0])
    rows = CarryRows(torch.tensor([2]), zero, zero, zero, zero, torch.tensor([1]), torch.tensor([2]))
    logits = torch.stack([*(torch.tensor([-300.0, -300.0, 0.0]),) * 2, probs[1].log()])
    logprobs = carried_logprobs(logits, torch.tensor([0, 0, 0]), torch.arange(3), rows, 3)
    assert torch.allclose(logprobs.exp(), probs[1:], atol=1e-6)


def test_a_token_from_further_back_makes_a_place_no_longer_exact() -> None:
    """The teacher could have written "bca" from the cut before the last one."""
    aligned_teacher, _ = aligned([], [("b", "c"), ("bc", "a")])
    batch = batch_of(aligned_teacher, "bcbf")
    kinds = aligned_teacher.read(vars(batch))["kinds"].tolist()
    assert Carry(kinds[0]) == Carry.EXACT
    longer, _ = aligned([], [("a", "b"), ("ab", "c")])
    kinds = longer.read(vars(batch_of(longer, "abd")))["kinds"].tolist()
    assert Carry(kinds[2]) == Carry.EXACT  # behind "ab", from the cut before it "abc" is an entry
    split, _ = aligned([], [("a", "b"), ("c", "d"), ("ab", "cd")])
    kinds = split.read(vars(batch_of(split, "abcf")))["kinds"].tolist()
    assert Carry(kinds[3]) == Carry.SPLIT  # behind "abc", cut before the c: "abcd" begins two cuts before


@pytest.mark.parametrize(("approximate", "highest"), [("none", 0), ("split", 1), ("inside", 2)])
def test_the_policy_says_what_is_carried(approximate: str, highest: int) -> None:
    aligned_teacher, _ = aligned(*PAIRS[1], approximate=approximate, max_unknown=1.0)
    batch = batch_of(aligned_teacher, "abcdefabcde", "bcbcdef")
    _, signal = carried(aligned_teacher, batch)
    kinds = aligned_teacher.read(vars(batch))["kinds"]
    assert signal.valid is not None
    assert torch.equal(signal.valid, kinds <= highest)
    assert {int(kind) for kind in kinds} >= {Carry.EXACT, Carry.SPLIT}


def test_spans_hold_the_same_bytes_on_both_sides() -> None:
    aligned_teacher, teacher = aligned(*PAIRS[2])
    batch = batch_of(aligned_teacher, "abcdabcdaf", "cdcdab")
    output = aligned_teacher.score(batch, predicted_positions(batch), need=NEED)
    assert output.own is not None
    spans, labels = output.own.spans, predicted_positions(batch).labels
    student = aligned_teacher.aligner.student
    for span, size in enumerate(spans.num_bytes.tolist()):
        ours = student.decode(labels[spans.student == span].tolist())
        theirs = teacher.table.decode(output.own.labels[spans.teacher == span].tolist())
        ends = 1 if student.eos in labels[spans.student == span].tolist() else 0
        assert ours == theirs and len(ours) + ends == size
    assert np.all(np.diff(spans.student[spans.student >= 0].numpy()) >= 0)

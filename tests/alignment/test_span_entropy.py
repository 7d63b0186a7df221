"""A teacher's own entropy over stretches between common cuts."""

from dataclasses import replace

import torch

from collegium.fused.teacher_stats import teacher_stats
from collegium.signals.contracts import predicted_positions
from collegium.signals.own_vocabulary import AlignedSpans
from collegium.signals.signals import CarriedSignal
from collegium.teachers.batch_plan import per_student_token
from tests.support.aligned_pairs import NEED, PAIRS, aligned, batch_of


def test_labels_that_are_left_out_change_no_other_entropy() -> None:
    """As of prompts: a stretch is shared out among all its tokens, whichever of them are predicted."""
    teacher, _ = aligned(*PAIRS[1], entropy_of="span")
    batch = batch_of(teacher, "abcdefabcde", "bcbcdef")
    whole, kept = predicted_positions(batch), torch.arange(batch.labels.shape[1]) % 2 == 0
    some = replace(batch, labels=batch.labels.masked_fill(~kept, -100))
    part = predicted_positions(some)
    ours, theirs = (teacher.score(b, p, need=NEED).signal for b, p in ((some, part), (batch, whole)))
    assert isinstance(ours, CarriedSignal) and isinstance(theirs, CarriedSignal)
    assert ours.entropy is not None and theirs.entropy is not None
    same = torch.isin(whole.index, part.index)
    assert 0 < len(part) < len(whole)
    assert torch.allclose(ours.entropy, theirs.entropy[same], equal_nan=True)


def test_a_stretch_is_the_sum_of_its_tokens_shared_out() -> None:
    teacher, _ = aligned(*PAIRS[1], entropy_of="span")
    batch = batch_of(teacher, "abcdefabcde", "bcbcdef")
    output = teacher.score(batch, predicted_positions(batch), need=NEED)
    assert (
        isinstance(output.signal, CarriedSignal) and output.signal.entropy is not None and output.own is not None
    )
    own, spans = output.own, output.own.spans
    each = teacher_stats([own.signal], own.labels, chunk_size=3).entropy.flatten().tolist()
    for place, span in enumerate(spans.student.tolist()):
        total = sum(e for e, other in zip(each, spans.teacher.tolist(), strict=True) if other == span)
        expected = total / spans.student.tolist().count(span)
        assert span < 0 or abs(float(output.signal.entropy[place]) - expected) < 1e-9


def test_a_stretch_without_a_prediction_is_not_certain() -> None:
    spans = AlignedSpans(torch.tensor([0, 1, -1]), torch.tensor([0, -1]), torch.tensor([2, 3]))
    shared = per_student_token(torch.tensor([1.5, 9.0]), spans)
    assert shared[0] == 1.5 and bool(shared[1:].isnan().all())

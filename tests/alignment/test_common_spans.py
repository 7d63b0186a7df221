"""Spans that both sides predict in full, against a loop."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from collegium.alignment.common_spans import common_spans
from collegium.signals.own_vocabulary import AlignedSpans


def spans_of(student, teacher, num_spans):
    return AlignedSpans(torch.tensor(student), torch.tensor(teacher), torch.ones(num_spans, dtype=torch.int64))


def as_dict(found):
    return {name: getattr(found, name).tolist() for name in vars(found)}


def test_rows_and_neighbours():
    """Two segments; span 1 has two student tokens, span 2 two of the teacher's, span 3 is another segment's."""
    spans = spans_of([0, 1, 1, 2, -1, 3], [0, 1, 2, 2, 3], 4)
    found = common_spans(spans, torch.tensor([1, 1, 1, 1, 2, 2]))
    assert as_dict(found) == {
        "first": [0, 1, 3, 5],
        "last": [0, 2, 3, 5],
        "own_first": [0, 1, 2, 4],
        "own_last": [0, 1, 3, 4],
        "adjoins": [True, True, False, False],  # a token without bytes follows on span 2, then a segment
        "of_student": [0, 1, 1, 2, -1, 3],
        "of_teacher": [0, 1, 2, 2, 3],
    }


def test_a_span_with_a_row_that_may_not_be_read_is_left_out():
    spans = spans_of([0, 1, 1, 2, 3], [0, 1, 2, 2, 3], 4)
    segments = torch.ones(5, dtype=torch.int64)
    usable = torch.tensor([True, True, False, True, True])
    own_usable = torch.tensor([True, True, True, False, True])
    mine = common_spans(spans, segments, usable=usable)
    assert as_dict(mine)["of_student"] == [0, -1, -1, 1, 2]
    assert mine.adjoins.tolist() == [False, True, False]
    theirs = common_spans(spans, segments, own_usable=own_usable)
    assert theirs.of_teacher.tolist() == [0, 1, -1, -1, 2]
    assert len(common_spans(spans, segments, usable=usable, own_usable=own_usable)) == 2


def test_spans_that_a_side_reads_elsewhere_do_not_adjoin():
    """A teacher's block ended behind span 0; its rows in between are of other text."""
    found = common_spans(spans_of([0, 1, 2], [0, -1, 1, 2], 3), torch.zeros(3, dtype=torch.int64))
    assert found.adjoins.tolist() == [False, True, False]


def test_none_at_all():
    for student, teacher, count in (([], [], 0), ([-1, -1], [0], 1), ([0], [], 1)):
        student, teacher = (torch.tensor(rows, dtype=torch.int64) for rows in (student, teacher))
        spans = AlignedSpans(student, teacher, torch.ones(count, dtype=torch.int64))
        found = common_spans(spans, torch.ones(len(student), dtype=torch.int64))
        assert len(found) == 0
        assert found.of_student.tolist() == [-1] * len(student)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_is_a_loop(data):
    sizes = data.draw(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=6))
    student = [g for g, (n, _) in enumerate(sizes) for _ in range(n)]
    teacher = [g for g, (_, u) in enumerate(sizes) for _ in range(u)]
    usable = [data.draw(st.booleans()) for _ in student]
    spans = AlignedSpans(
        torch.tensor(student, dtype=torch.int64),
        torch.tensor(teacher, dtype=torch.int64),
        torch.ones(len(sizes), dtype=torch.int64),
    )
    found = common_spans(
        spans, torch.zeros(len(student), dtype=torch.int64), usable=torch.tensor(usable, dtype=torch.bool)
    )
    rows = [
        ([i for i, s in enumerate(student) if s == g], [i for i, t in enumerate(teacher) if t == g])
        for g in range(len(sizes))
    ]
    kept = [(a, b) for a, b in rows if a and b and all(usable[i] for i in a)]
    assert found.first.tolist() == [a[0] for a, _ in kept]
    assert found.last.tolist() == [a[-1] for a, _ in kept]
    assert found.own_first.tolist() == [b[0] for _, b in kept]
    assert found.own_last.tolist() == [b[-1] for _, b in kept]

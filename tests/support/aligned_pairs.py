"""Aligned teachers over six letters, which student and teacher cut in different ways."""

import torch

from collegium.alignment.plan import Aligner
from collegium.alignment.token_bytes import TokenBytes
from collegium.alignment.vocabulary import make_map
from collegium.losses.divergences import entropy
from collegium.signals.contracts import Batch, Capability, Positions, TeacherOutput, predicted_positions
from collegium.signals.signals import CarriedSignal, TopKSignal
from collegium.teachers.aligned import AlignedTeacher, AlignmentPolicy
from tests.support.markov import MarkovTeacher, letters_tokenizer


NEED = frozenset({Capability.TOP_K})


LONGER = [("a", "b"), ("c", "d"), ("cd", "e"), ("ab", "f")]


def aligned(
    student_merges: list[tuple[str, str]], teacher_merges: list[tuple[str, str]], **options: object
) -> tuple[AlignedTeacher, MarkovTeacher]:
    student = TokenBytes(letters_tokenizer("abcdef", student_merges))
    teacher = MarkovTeacher(TokenBytes(letters_tokenizer("abcdef", teacher_merges)))
    teacher.table.bos = teacher.table.size - 2
    aligner = Aligner(student, teacher.table, make_map(student, teacher.table))
    return AlignedTeacher(teacher, aligner, AlignmentPolicy(**options)), teacher  # type: ignore[arg-type]


def batch_of(teacher: AlignedTeacher, *texts: str) -> Batch:
    """One text a block, behind the student's BOS."""
    student = teacher.aligner.student
    rows = [[student.size - 2, *student.encode([text.encode()])[0].tokens, student.eos] for text in texts]
    length = max(map(len, rows))
    ids = torch.tensor([row + [student.eos] * (length - len(row)) for row in rows])
    mask = torch.tensor([[True] * len(row) + [False] * (length - len(row)) for row in rows])
    places = torch.tensor([[*range(len(row)), *range(length - len(row))] for row in rows])
    return Batch(ids, mask, ids.masked_fill(~mask, -100), places, torch.arange(len(rows)))


def carried(teacher: AlignedTeacher, batch: Batch) -> tuple[torch.Tensor, CarriedSignal]:
    positions = predicted_positions(batch)
    signal = teacher.score(batch, positions, need=NEED).signal
    assert isinstance(signal, CarriedSignal)
    return signal.logits(slice(0, len(positions))), signal


PAIRS = [
    ([("a", "b")], LONGER),
    ([("d", "e"), ("de", "f"), ("a", "b")], [("a", "b"), ("b", "c")]),
    ([("a", "b"), ("c", "d")], [("b", "c"), ("d", "a")]),
    (LONGER, [("a", "b")]),
]


TEXTS = ("abcdefabcde", "bcbcdef", "cdab", "a")


class ListingTeacher(MarkovTeacher):
    """Says only its `k` most probable tokens."""

    k = 1000

    def score(self, batch: Batch, positions: Positions, **kwargs: object) -> TeacherOutput:
        full = super().score(batch, positions, need=NEED).signal.logprobs  # type: ignore[union-attr]
        top = full.topk(min(self.k, full.shape[1]), -1)
        ids, order = top.indices.sort(-1)
        at_label = full.gather(-1, positions.labels[:, None]).squeeze(-1)
        logprobs = top.values.gather(-1, order)
        ids = ids.masked_fill(logprobs == -torch.inf, -1)
        listed = TopKSignal(ids, logprobs.masked_fill(ids < 0, 0.0), entropy(full), at_label, full.shape[1])
        return TeacherOutput(listed)

"""A student with teachers of other tokenizers, and the stretches that they share, found by plain loops."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from transformers import PreTrainedTokenizerFast

from collegium.alignment.plan import Aligner
from collegium.alignment.token_bytes import TokenBytes
from collegium.alignment.vocabulary import make_map
from collegium.signals.contracts import Batch
from collegium.teachers.aligned import AlignedTeacher, AlignmentPolicy
from collegium.teachers.local import LocalTeacher
from tests.support.pico import pico_llama
from tests.support.small_tokenizers import LINES, byte_level, sentencepiece_bpe


STUDENT, OTHER = byte_level(420), sentencepiece_bpe(520)
TABLES = {"student": TokenBytes(STUDENT), "other": TokenBytes(OTHER)}
VOCAB_SIZE = TABLES["student"].size


def local_teacher(seed: int, vocab_size: int, *, width: int = 32) -> LocalTeacher:
    """A pico teacher in float64."""
    model = pico_llama(seed, width=width, vocab_size=vocab_size, dtype=torch.float64)
    return LocalTeacher(f"t{seed}", model, vocab_size=vocab_size, fingerprint=str(seed))


def aligned_teacher(
    seed: int = 7, tokenizer: PreTrainedTokenizerFast = OTHER, *, width: int = 40
) -> AlignedTeacher:
    """A pico teacher with a tokenizer of its own."""
    student, own = TokenBytes(STUDENT), TokenBytes(tokenizer)
    own.bos = tokenizer.bos_token_id
    aligner = Aligner(student, own, make_map(student, own))
    return AlignedTeacher(local_teacher(seed, own.size, width=width), aligner, AlignmentPolicy())


def batch_of(blocks: Sequence[Sequence[str]], length: int = 60) -> Batch:
    """Blocks of texts, one segment each behind the student's BOS and closed by EOS; cut and padded to a length."""
    table = TABLES["student"]
    rows, places = [], []
    for texts in blocks:
        segments = [
            [STUDENT.bos_token_id, *table.encode([text.encode()])[0].tokens.tolist(), table.eos] for text in texts
        ]
        rows.append([token for segment in segments for token in segment][:length])
        places.append([i for segment in segments for i in range(len(segment))][:length])
    pads = [length - len(row) for row in rows]
    ids = torch.tensor([row + [table.eos] * pad for row, pad in zip(rows, pads, strict=True)])
    mask = torch.tensor([[True] * len(r) + [False] * p for r, p in zip(rows, pads, strict=True)])
    position_ids = torch.tensor([[*at, *range(p)] for at, p in zip(places, pads, strict=True)])
    return Batch(ids, mask, ids.masked_fill(~mask, -100), position_ids, torch.arange(len(rows)))


TEXTS = [
    [LINES[0][:30], LINES[1][:25]],
    [LINES[2]],
    [LINES[4][:22], "the", LINES[3][:28]],
    [LINES[0][11:40], "Größe"],
]


@dataclass
class Stretch:
    """Text between two common cuts: rows that predict its tokens in the flattened grids, and its segment."""

    student: list[int]
    teacher: list[int]
    segment: int


def segments_of(tokens: torch.Tensor, mask: torch.Tensor, places: torch.Tensor) -> list[list[int]]:
    """Places of each segment of text in the flattened grid."""
    found: list[list[int]] = []
    for place, (attended, at) in enumerate(zip(mask.flatten().tolist(), places.flatten().tolist(), strict=True)):
        if attended and at == 0:
            found.append([])
        if attended:
            found[-1].append(place)
    return found


def ends_of(places: list[int], tokens: torch.Tensor, table: TokenBytes) -> list[int]:
    """Byte at which each token of a segment ends; EOS counts one."""
    ends, end = [], 0
    for place in places:
        token = int(tokens.flatten()[place])
        end += len(table.pieces[token] or b"") + (token == table.eos)
        ends.append(end)
    return ends


def stretches_of(batch: Batch, own: Batch, own_table: TokenBytes) -> list[Stretch]:
    """All stretches, segment by segment."""
    mine = segments_of(batch.input_ids, batch.attention_mask, batch.position_ids)
    theirs = segments_of(own.input_ids, own.attention_mask, own.position_ids)
    found = []
    for number, (left, right) in enumerate(zip(mine, theirs, strict=True)):
        ends = ends_of(left, batch.input_ids, TABLES["student"])
        own_ends = ends_of(right, own.input_ids, own_table)
        cuts = sorted(set(ends) & set(own_ends))
        for begin, end in pairwise(cuts):
            rows = [left[i - 1] for i in range(1, len(left)) if begin < ends[i] <= end]
            own_rows = [right[i - 1] for i in range(1, len(right)) if begin < own_ends[i] <= end]
            found.append(Stretch(rows, own_rows, number))
    return found


def own_batch(teacher: AlignedTeacher, batch: Batch) -> Batch:
    """The same text as the teacher's tokens."""
    plan = teacher.read(vars(batch))
    ids, mask, places = plan["input_ids"], plan["attention_mask"], plan["position_ids"]
    labels = ids.masked_fill(~mask | (places == 0), -100)
    return Batch(ids, mask, labels, places, batch.sample_ids)

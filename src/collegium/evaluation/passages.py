"""Held-out passages token by token: who carried the target there, how certain all were, and their alternatives.

For people to read, not to rank by: one passage a domain, the first that is long enough. All figures are at
temperature 1 and before the token is known; weights are those of the student's own rule. Of each distribution only
the most probable tokens are kept, so a passage of 96 tokens with five teachers is 60 kB of JSON.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from collegium.evaluation.language_modeling import (
    HeldOut,
    HeldOutBatch,
    HeldOutDomain,
    Rule,
    Trunk,
    covered_weights,
    teacher_logprobs,
)
from collegium.losses.divergences import entropy
from collegium.losses.fusion import mixture_logprobs
from collegium.losses.precision import full_precision
from collegium.losses.teacher_weights import uniform_weights
from collegium.report.samples import Alternative, Passage, TeacherView, View
from collegium.signals.signals import Head


Decode = Callable[[Sequence[int]], str]
"""Token ids to text."""


@dataclass(frozen=True)
class Reading:
    """Extent of a passage, and the rule that fuses teachers on it.

    Attributes:
        rule: What fuses the teachers; equal weights if None.
        decode: Of the student's tokenizer, without special treatment of any token.
        num_tokens: Predicted tokens at most.
        num_alternatives: Kept of each distribution.
    """

    rule: Rule | None
    decode: Decode
    num_tokens: int
    num_alternatives: int = 3


@torch.no_grad()
def read_passages(held_out: HeldOut, trunk: Trunk, head: Head, how: Reading) -> dict[str, Passage]:
    """The beginning of a document of each domain.

    Args:
        held_out: Text and its teachers.
        trunk: The student below its head.
        head: Projects its hidden states.
        how: How much is read, and with which rule.
    """
    passages = {}
    for name, domain in held_out.domains.items():
        found = _first_segment(domain, how.num_tokens)
        if found is not None:
            batch, rows = found
            hidden = batch.positions.select(trunk(batch.batch))[rows]  # [n D]
            student = full_precision(head(hidden)).log_softmax(-1)
            passages[name] = _passage(batch, rows, [teacher.name for teacher in domain.teachers], student, how)
    return passages


def _first_segment(domain: HeldOutDomain, num_tokens: int) -> tuple[HeldOutBatch, slice] | None:
    """Rows of the first segment with so many predicted tokens in the first batch, else of the longest one."""
    batch = next(iter(domain.batches()), None)
    if batch is None or not len(batch.positions):
        return None
    _, lengths = batch.positions.segments.unique_consecutive(return_counts=True)
    long_enough = (lengths >= num_tokens).nonzero()
    chosen = int(long_enough[0]) if len(long_enough) else int(lengths.argmax())
    start = int(lengths[:chosen].sum())
    return batch, slice(start, start + min(num_tokens, int(lengths[chosen])))


def _passage(
    held_out: HeldOutBatch, rows: slice, teachers: Sequence[str], student: Float[Tensor, "n V"], how: Reading
) -> Passage:
    labels = held_out.positions.labels[rows]
    first = held_out.batch.input_ids.flatten()[held_out.positions.index[rows.start]]
    ids = [int(first), *labels.tolist()]
    writing = _Writing(ids, how.decode)

    def view(logprobs: Tensor, present: Sequence[bool] | None = None) -> View:
        probability = logprobs.gather(-1, labels[:, None]).squeeze(-1).exp()
        return View(_rounded(probability), writing.alternatives(logprobs, how.num_alternatives, present))

    passage = Passage(
        document=int(_document(held_out, rows)),
        lead=how.decode(ids[:1]),
        text=writing.pieces(),
        conflict=(0.0,) * len(labels),
        student=view(student),
    )
    if held_out.stats is None:
        return passage
    valid = held_out.stats.valid[rows]
    weights = _weights(held_out, rows, how.rule, student.dtype)
    said = list(teacher_logprobs(held_out, rows))
    target = mixture_logprobs(said, weights) if how.rule is None else how.rule.fusion(said, weights)
    entropies = torch.stack([entropy(p) for p in said], -1)  # [n M]
    conflict = (entropy(mixture_logprobs(said, weights)) - (weights * entropies).sum(-1)).clamp_min(0.0)
    views = {}
    for m, name in enumerate(teachers):
        present = valid[:, m].tolist()
        own = view(said[m], present)
        views[name] = TeacherView(
            own.probability,
            own.alternatives,
            weight=_rounded(weights[:, m] * valid[:, m]),
            entropy=_where(present, entropies[:, m]),
        )
    return replace(passage, conflict=_rounded(conflict), target=view(target), teachers=views)


def _weights(held_out: HeldOutBatch, rows: slice, rule: Rule | None, dtype: torch.dtype) -> Float[Tensor, "n M"]:
    assert held_out.stats is not None, "of teachers"
    if rule is None:
        return uniform_weights(held_out.stats.valid[rows], dtype=dtype)
    return covered_weights(rule.weighting(held_out.stats, held_out.positions))[rows]


def _where(present: Sequence[bool], values: Tensor) -> tuple[float | None, ...]:
    return tuple(round(value, 3) if here else None for value, here in zip(values.tolist(), present, strict=True))


def _document(held_out: HeldOutBatch, rows: slice) -> Tensor:
    ids = held_out.batch.document_ids
    assert ids is not None, "held-out blocks say which documents they hold"
    return ids.flatten()[held_out.positions.index[rows.start]]


def _rounded(values: Tensor) -> tuple[float, ...]:
    return tuple(round(float(value), 4) for value in values)


@dataclass(frozen=True)
class _Writing:
    """A text as its tokenizer writes it: the same token reads differently behind another."""

    ids: Sequence[int]
    decode: Decode

    def pieces(self) -> tuple[str, ...]:
        """Text that each token but the first adds."""
        texts = [self.decode(self.ids[: end + 1]) for end in range(len(self.ids))]
        whole = [text.rstrip("�") for text in texts]
        return tuple(after[len(before) :] for before, after in pairwise(whole))

    def alternatives(
        self, logprobs: Tensor, count: int, present: Sequence[bool] | None
    ) -> tuple[tuple[Alternative, ...], ...]:
        """The most probable tokens at each place."""
        best = logprobs.topk(min(count, logprobs.shape[-1]), dim=-1)
        found = []
        for place, (values, tokens) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
            here = present is None or present[place]
            pairs = zip(tokens, values, strict=True) if here else ()
            found.append(tuple((self._behind(place, token), round(math.exp(value), 4)) for token, value in pairs))
        return tuple(found)

    def _behind(self, place: int, token: int) -> str:
        before = list(self.ids[max(0, place - 3) : place + 1])
        return self.decode([*before, token])[len(self.decode(before)) :]

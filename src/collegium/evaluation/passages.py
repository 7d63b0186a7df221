"""Held-out passages token by token: who carried the target there, how certain all were, what they would have said.

For people to read, not to rank by: one passage a domain, the first that is long enough. All figures are at
temperature 1 and before the token is known; weights are those of the student's own rule. Of each distribution only
the most probable tokens are kept, so a passage of 96 tokens with five teachers is 60 kB of JSON.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import torch
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
from collegium.signals.signals import Head


Decode = Callable[[Sequence[int]], str]
"""Token ids to text."""

Alternative = tuple[str, float]
"""A token and its probability."""


@dataclass(frozen=True)
class Passage:
    """One stretch of a held-out document; n tokens, K alternatives.

    Attributes:
        document: Its number.
        lead: The token that is given and not predicted.
        text: The n tokens as they stand in the text; what is no whole character yet is empty.
        probability: Of each token by `student`, `target` and `teacher/NAME`, n each.
        weight: Of each teacher in the target; 0 where it is absent.
        entropy: Of each teacher, in nats; None where it is absent.
        conflict: Divergence among the teachers under these weights, in nats: 0 where all say the same.
        alternatives: The K most probable tokens by `student`, `target` and `teacher/NAME`, the first first; none
            where it is absent.
    """

    document: int
    lead: str
    text: list[str]
    probability: dict[str, list[float]]
    weight: dict[str, list[float]]
    entropy: dict[str, list[float | None]]
    conflict: list[float]
    alternatives: dict[str, list[list[Alternative]]]


@torch.no_grad()
def read_passages(
    held_out: HeldOut,
    trunk: Trunk,
    head: Head,
    rule: Rule | None,
    decode: Decode,
    *,
    num_tokens: int,
    num_alternatives: int = 3,
) -> dict[str, dict[str, object]]:
    """The beginning of a document of each domain.

    Args:
        held_out: Text and its teachers.
        trunk: The student below its head.
        head: Projects its hidden states.
        rule: What fuses the teachers; equal weights if None.
        decode: Of the student's tokenizer, without special treatment of any token.
        num_tokens: Predicted tokens at most.
        num_alternatives: Kept of each distribution.
    """
    passages = {}
    for name, domain in held_out.domains.items():
        found = _first_segment(domain, num_tokens)
        if found is not None:
            passages[name] = asdict(_read(*found, domain, trunk, head, rule, decode, num_alternatives))
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


def _read(
    held_out: HeldOutBatch,
    rows: slice,
    domain: HeldOutDomain,
    trunk: Trunk,
    head: Head,
    rule: Rule | None,
    decode: Decode,
    num_alternatives: int,
) -> Passage:
    labels = held_out.positions.labels[rows]
    first = held_out.batch.input_ids.flatten()[held_out.positions.index[rows.start]]
    ids = [int(first), *labels.tolist()]
    hidden = held_out.positions.select(trunk(held_out.batch))[rows]  # [n D]
    views = {"student": full_precision(head(hidden)).log_softmax(-1)}
    names = [teacher.name for teacher in domain.teachers]
    weights, valid, conflict = _fused(held_out, rows, rule, names, views)
    present = {f"teacher/{name}": valid[:, m].tolist() for m, name in enumerate(names)}
    writing = _Writing(ids, decode)
    return Passage(
        document=int(_document(held_out, rows)),
        lead=decode(ids[:1]),
        text=writing.pieces(),
        probability={name: _rounded(p.gather(-1, labels[:, None]).squeeze(-1).exp()) for name, p in views.items()},
        weight={name: _rounded(weights[:, m] * valid[:, m]) for m, name in enumerate(names)},
        entropy={name: _entropies(views, present, f"teacher/{name}") for name in names},
        conflict=_rounded(conflict),
        alternatives={
            name: writing.alternatives(logprobs, num_alternatives, present.get(name))
            for name, logprobs in views.items()
        },
    )


def _fused(
    held_out: HeldOutBatch, rows: slice, rule: Rule | None, names: Sequence[str], views: dict[str, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights [n M], presence [n M], conflict [n]; puts teachers and target beside the student in `views`."""
    student = views["student"]
    num = len(student)
    if held_out.stats is None:
        empty = torch.zeros((num, 0), device=student.device)
        return empty, empty.bool(), torch.zeros(num)
    valid = held_out.stats.valid[rows]
    if rule is None:
        weights = uniform_weights(valid, dtype=student.dtype)
    else:
        weights = covered_weights(rule.weighting(held_out.stats, held_out.positions))[rows]
    said = list(teacher_logprobs(held_out, rows))
    views |= {f"teacher/{name}": logprobs for name, logprobs in zip(names, said, strict=True)}
    views["target"] = mixture_logprobs(said, weights) if rule is None else rule.fusion(said, weights)
    own = torch.stack([entropy(p) for p in said], -1)  # [n M]
    conflict = (entropy(mixture_logprobs(said, weights)) - (weights * own).sum(-1)).clamp_min(0.0)
    return weights, valid, conflict


def _entropies(
    views: Mapping[str, Tensor], present: Mapping[str, Sequence[bool]], view: str
) -> list[float | None]:
    values = entropy(views[view]).tolist()
    return [round(value, 3) if here else None for value, here in zip(values, present[view], strict=True)]


def _document(held_out: HeldOutBatch, rows: slice) -> Tensor:
    ids = held_out.batch.document_ids
    assert ids is not None, "held-out blocks say which documents they hold"
    return ids.flatten()[held_out.positions.index[rows.start]]


def _rounded(values: Tensor) -> list[float]:
    return [round(float(value), 4) for value in values]


@dataclass(frozen=True)
class _Writing:
    """A text as its tokenizer writes it: the same token reads differently behind another."""

    ids: Sequence[int]
    decode: Decode

    def pieces(self) -> list[str]:
        """What each token but the first adds."""
        texts = [self.decode(self.ids[: end + 1]) for end in range(len(self.ids))]
        whole = [text.rstrip("�") for text in texts]
        return [after[len(before) :] for before, after in pairwise(whole)]

    def alternatives(
        self, logprobs: Tensor, count: int, present: Sequence[bool] | None
    ) -> list[list[Alternative]]:
        """The most probable tokens at each place."""
        best = logprobs.topk(min(count, logprobs.shape[-1]), dim=-1)
        found = []
        for place, (values, tokens) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
            here = present is None or present[place]
            pairs = zip(tokens, values, strict=True) if here else ()
            found.append([(self._behind(place, token), round(math.exp(value), 4)) for token, value in pairs])
        return found

    def _behind(self, place: int, token: int) -> str:
        before = list(self.ids[max(0, place - 3) : place + 1])
        return self.decode([*before, token])[len(self.decode(before)) :]

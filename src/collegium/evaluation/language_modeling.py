"""Perplexity, bits per byte, KL and agreement on held-out text, with intervals over documents.

Corpus figures are ratios of sums, never means of batch means. Every figure is summed per document
first: tokens of one document are not independent, so intervals resample documents. A document that
crosses blocks loses its context at the border, as in training; the first token of a segment is not
predicted, and its bytes are not counted.

What teachers say about held-out text is computed once and kept as hidden states (2.3 kB a token for a
width of 576), so that measuring a student again costs the student's forward pass only.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice, zip_longest

import torch
from jaxtyping import Float, Int
from torch import Tensor

from collegium.base.progress import Phase
from collegium.data.blocks import PackedBlocks
from collegium.data.collate import BlockCollator
from collegium.evaluation.teachers_alone import teachers_alone
from collegium.fused.teacher_stats import target_logprobs, teacher_stats
from collegium.losses.calibration import confidence_bins, confidence_gaps
from collegium.losses.chunks import chunks
from collegium.losses.divergences import entropy, forward_kl
from collegium.losses.fusion import Fusion, mixture_logprobs
from collegium.losses.precision import full_precision
from collegium.losses.teacher_weights import uniform_weights
from collegium.report import metric_names as names
from collegium.signals.contracts import Batch, Capability, Positions, Teacher, TeacherStats, predicted_positions
from collegium.signals.signals import Head, TeacherSignal, TopKSignal


CONFIDENCE_BINS = 15
"""Of equal width, as in arXiv:1706.04599."""

Trunk = Callable[[Batch], Tensor]
"""Runs a model below its head: a batch to hidden states [B S D]."""


@dataclass(frozen=True)
class HeldOutBatch:
    """A batch with the document of each predicted position and the teachers' distributions there."""

    batch: Batch
    positions: Positions
    documents: Int[Tensor, " N"]
    signals: tuple[TeacherSignal, ...]
    stats: TeacherStats | None


@dataclass(frozen=True)
class DocumentSums:
    """Figures of one domain, summed per document.

    Attributes:
        tokens: Predicted tokens, [D].
        num_bytes: UTF-8 bytes of the predicted tokens, [D].
        sums: Sum of each per-token figure, [D] each.
        confidence_gaps: Sum over the tokens of each bin of confidence of (confidence - right or wrong),
            [D `CONFIDENCE_BINS`]; None for what is no student.
        confidence_counts: Tokens of each bin, likewise.
    """

    tokens: Tensor
    num_bytes: Tensor
    sums: dict[str, Tensor]
    confidence_gaps: Tensor | None = None
    confidence_counts: Tensor | None = None

    def counts(self, name: str) -> Tensor:
        """Tokens over which a figure is summed, [D]: all, or those where the teacher that it is of speaks."""
        return self.sums.get(names.heard_with(name) or "", self.tokens)

    def mean(self, name: str) -> float:
        """Mean of a figure over tokens; NaN for a teacher that never speaks."""
        return float(self.sums[name].sum() / self.counts(name).sum())

    def heard(self, teacher: str) -> float:
        """Share of the tokens where a teacher speaks."""
        return float(self.sums[names.of_teacher(teacher, names.HEARD)].sum() / self.tokens.sum())


class HeldOutDomain:
    """Held-out blocks of one domain, with the teachers' view of them.

    Args:
        name: The domain.
        blocks: Its packed blocks.
        collator: Makes batches of them.
        batch_size: Blocks a batch.
        teachers: Asked once, at the first use.
        device: Where batches go.
        chunk_size: Positions whose logits are alive at once.
    """

    def __init__(
        self,
        name: str,
        blocks: PackedBlocks,
        collator: BlockCollator,
        *,
        batch_size: int,
        teachers: Sequence[Teacher],
        device: torch.device,
        chunk_size: int,
    ) -> None:
        self.name = name
        self.teachers = tuple(teachers)
        self.chunk_size = chunk_size
        self.rows = [blocks[i] for i in range(len(blocks))]
        self._collator = collator
        self._batch_size = batch_size
        self._device = device
        numbers = sorted({number for row in self.rows for number in row["segment_documents"]})
        self._document_index = {number: index for index, number in enumerate(numbers)}

    @property
    def num_documents(self) -> int:
        """Documents of the domain."""
        return len(self._document_index)

    @cached_property
    def num_bytes(self) -> Tensor:
        """UTF-8 bytes of the predicted tokens of each document, [D]."""
        totals = torch.zeros(self.num_documents, dtype=torch.float64)
        for row in self.rows:
            for number, size in zip(row["segment_documents"], row["segment_bytes"], strict=True):
                totals[self._document_index[number]] += size
        return totals

    def blocks(self) -> Iterator[Batch]:
        """One block after another, without what teachers say of it."""
        for row in self.rows:
            yield Batch.from_inputs(self._collator([row]))

    def batches(self) -> Iterator[HeldOutBatch]:
        """All batches, each with its signals on the device while it is used; teachers are asked once."""
        for held_out in self._scored:
            yield replace(held_out, signals=tuple(signal.to(self._device) for signal in held_out.signals))

    @cached_property
    def absent_teachers(self) -> frozenset[str]:
        """Names of the teachers that say nothing about this domain."""
        stats = [held_out.stats for held_out in self._scored if held_out.stats is not None]
        heard = torch.stack([s.valid.any(0) for s in stats]).any(0).tolist() if stats else []
        return frozenset(t.name for t, known in zip(self.teachers, heard, strict=False) if not known)

    @cached_property
    def _scored(self) -> list[HeldOutBatch]:
        starts = range(0, len(self.rows), self._batch_size)
        if not self.teachers:
            return [self._batch(slice(start, start + self._batch_size)) for start in starts]
        with Phase(f"asking the teachers about {self.name}", total=len(starts), unit="batches") as phase:
            return [self._batch(slice(start, start + self._batch_size)) for start in phase.counted(starts)]

    @torch.no_grad()
    def _batch(self, rows: slice) -> HeldOutBatch:
        inputs = {k: v.to(self._device) for k, v in self._collator(self.rows[rows]).items()}
        batch = Batch.from_inputs(inputs)
        positions = predicted_positions(batch)
        numbers = inputs["document_ids"].flatten()[positions.index].tolist()
        documents = torch.tensor([self._document_index[n] for n in numbers], dtype=torch.int64)
        need = frozenset({Capability.SAMPLES})
        signals = tuple(teacher.score(batch, positions, need=need).signal for teacher in self.teachers)
        stats = None
        if signals:
            stats = teacher_stats(signals, positions.labels, chunk_size=self.chunk_size)
        kept = tuple(signal.to(torch.device("cpu")) for signal in signals)
        return HeldOutBatch(batch, positions, documents, kept, stats)

    def sum_by_document(self, figures: Iterator[tuple[HeldOutBatch, dict[str, Tensor]]]) -> DocumentSums:
        """Add up per-position figures."""
        tokens = torch.zeros(self.num_documents, dtype=torch.float64)
        sums: dict[str, Tensor] = {}
        with Phase(f"held-out text of {self.name}", total=len(self.rows), unit="blocks") as phase:
            for held_out, values in figures:
                ones = torch.ones(len(held_out.documents), dtype=torch.float64)
                tokens.index_add_(0, held_out.documents, ones)
                for name, value in values.items():
                    empty = torch.zeros((self.num_documents, *value.shape[1:]), dtype=torch.float64)
                    total = sums.setdefault(name, empty)
                    total.index_add_(0, held_out.documents, value.double().cpu())
                phase.advance(len(held_out.batch.input_ids))
        return DocumentSums(tokens, self.num_bytes, sums)


class HeldOut:
    """Held-out text of several domains. See `HeldOutDomain` for the arguments."""

    def __init__(
        self,
        blocks: Mapping[str, PackedBlocks],
        collator: BlockCollator,
        *,
        batch_size: int = 8,
        max_blocks: int | None = None,
        teachers: Sequence[Teacher] = (),
        device: torch.device | None = None,
        chunk_size: int = 256,
    ) -> None:
        self.teachers = tuple(teachers)
        self.domains = {
            name: HeldOutDomain(
                name,
                domain if max_blocks is None else domain.take(max_blocks),
                collator,
                batch_size=batch_size,
                teachers=teachers,
                device=device or torch.device("cpu"),
                chunk_size=chunk_size,
            )
            for name, domain in blocks.items()
        }

    def first_blocks(self, count: int) -> list[Batch]:
        """The first blocks of the domains in turn, without what teachers say of them."""
        turns = zip_longest(*(domain.blocks() for domain in self.domains.values()))
        return list(islice((batch for turn in turns for batch in turn if batch is not None), count))

    def measure_student(self, trunk: Trunk, head: Head, *, own: "Rule | None" = None) -> dict[str, DocumentSums]:
        """NLL, token accuracy, calibration, KL to each teacher and to fused targets, and top-1 agreement.

        KL and agreement with the `common` target are with the uniform mixture of all teachers, whatever the
        student was trained on: the only KL by which students may be ranked. KL and entropy of its `own` target
        are of the student's own rule: where rules differ, so do their targets, and a target that is easy to
        match makes no better student. All are at temperature 1.

        Args:
            trunk: The student below its head.
            head: Projects its hidden states.
            own: The rule that it was trained on; None leaves its figures out.
        """
        return {name: _student_of(domain, trunk, head, own) for name, domain in self.domains.items()}

    def measure_targets(self, rules: Mapping[str, "Rule"]) -> dict[str, DocumentSums]:
        """NLL and entropy of each teacher, NLL of each fusion rule, by the names of `metric_names`."""
        teachers = [teacher.name for teacher in self.teachers]
        return {name: _targets_of(domain, teachers, rules) for name, domain in self.domains.items()}


@dataclass(frozen=True)
class Rule:
    """A way to fuse teachers: a weighting and a fusion."""

    weighting: Callable[[TeacherStats, Positions], Tensor]
    fusion: Fusion = mixture_logprobs


@dataclass(frozen=True)
class OwnTarget:
    """The rule that a student was trained on, and its weights at the positions of a batch, [N M]."""

    rule: Rule
    weights: Tensor

    @classmethod
    def of(cls, rule: Rule, held_out: HeldOutBatch) -> "OwnTarget | None":
        """None where there is no teacher."""
        if held_out.stats is None:
            return None
        return cls(rule, covered_weights(rule.weighting(held_out.stats, held_out.positions)))


def _student_of(domain: HeldOutDomain, trunk: Trunk, head: Head, own: Rule | None) -> DocumentSums:
    teachers = [teacher.name for teacher in domain.teachers]

    def figures() -> Iterator[tuple[HeldOutBatch, dict[str, Tensor]]]:
        for held_out in domain.batches():
            hidden = held_out.positions.select(trunk(held_out.batch))  # [N D]
            target = None if own is None else OwnTarget.of(own, held_out)
            parts = [
                _student_chunk(held_out, hidden[rows], head, rows, teachers, target)
                for rows in chunks(len(hidden), domain.chunk_size)
            ]
            yield held_out, _concatenate(parts)

    with torch.no_grad():
        sums = domain.sum_by_document(figures())
    absent = {names.of_teacher(name, part) for name in domain.absent_teachers for part in (names.KL, names.HEARD)}
    kept = {key: total for key, total in sums.sums.items() if key not in absent}
    gaps = kept.pop(names.CONFIDENCE_GAPS, None)
    counts = kept.pop(names.CONFIDENCE_COUNTS, None)
    return replace(sums, confidence_gaps=gaps, confidence_counts=counts, sums=kept)


def _student_chunk(
    held_out: HeldOutBatch,
    hidden: Tensor,
    head: Head,
    rows: slice,
    teachers: Sequence[str],
    own: OwnTarget | None,
) -> dict[str, Tensor]:
    labels = held_out.positions.labels[rows]
    logprobs = full_precision(head(hidden)).log_softmax(-1)  # [n V]
    top, best = logprobs.max(-1)
    right = (best == labels).float()
    values = {
        names.NLL: _nll(logprobs, labels),
        names.ACCURACY: right,
        names.CONFIDENCE_GAPS: confidence_gaps(top.exp(), right, CONFIDENCE_BINS),
        names.CONFIDENCE_COUNTS: confidence_bins(top.exp(), torch.ones_like(top), CONFIDENCE_BINS),
    }
    if held_out.stats is None:
        return values
    valid = held_out.stats.valid[rows]

    def distributions() -> Iterator[Tensor]:
        for m, (name, signal) in enumerate(zip(teachers, held_out.signals, strict=True)):
            teacher = target_logprobs(signal, rows, valid[:, m], student_logprobs=logprobs)
            kl = forward_kl(logprobs, teacher)
            if (
                isinstance(signal, TopKSignal) and signal.drawn
            ):  # on average, with the entropy of what is drawn from
                kl = -(teacher.exp() * logprobs).sum(-1) - signal.entropy[rows].to(logprobs.dtype)
            values[names.of_teacher(name, names.KL)] = torch.where(valid[:, m], kl, 0.0)
            values[names.of_teacher(name, names.HEARD)] = valid[:, m].double()
            yield teacher

    if any(isinstance(signal, TopKSignal) and signal.drawn for signal in held_out.signals):
        for _ in distributions():  # a mixture of draws is no distribution that a student can be held to
            pass
        return values
    said = distributions() if own is None else list(distributions())  # one at a time where they are read once
    common = mixture_logprobs(said, uniform_weights(valid, dtype=logprobs.dtype))
    covered = valid.any(-1)
    common = torch.where(covered[:, None], common, logprobs)
    values[names.KL_COMMON] = forward_kl(logprobs, common)
    values[names.AGREEMENT] = (best == common.argmax(-1)).float()
    if own is not None:
        target = torch.where(covered[:, None], own.rule.fusion(said, own.weights[rows]), logprobs)
        values |= {names.KL_OWN: forward_kl(logprobs, target), names.ENTROPY_OWN: entropy(target)}
    return values


def _targets_of(domain: HeldOutDomain, teachers: Sequence[str], rules: Mapping[str, Rule]) -> DocumentSums:
    def figures() -> Iterator[tuple[HeldOutBatch, dict[str, Tensor]]]:
        for held_out in domain.batches():
            stats = held_out.stats
            assert stats is not None, "targets are measured with teachers"
            values = teachers_alone(teachers, stats)
            for name, rule in rules.items():
                weights = covered_weights(rule.weighting(stats, held_out.positions))
                values[names.rule_nll(name)] = rule_nll(rule.fusion, weights, held_out, domain.chunk_size)
            yield held_out, values

    with torch.no_grad():
        return domain.sum_by_document(figures())


def covered_weights(weights: Float[Tensor, "N M"]) -> Float[Tensor, "N M"]:
    """Equal weights where no teacher has any: absent teachers are uniform, and so is what is fused of them."""
    nobody = weights.sum(-1, keepdim=True) == 0
    return torch.where(nobody, torch.full_like(weights, 1.0 / max(1, weights.shape[1])), weights)


def rule_nll(fusion: Fusion, weights: Tensor, held_out: HeldOutBatch, chunk_size: int) -> Float[Tensor, " N"]:
    """-log probability of the label under the fused target."""
    assert held_out.stats is not None, "a target is made of teachers"
    if fusion is mixture_logprobs:  # the label's probability is the mixture of the teachers' for it
        return -torch.logsumexp(weights.log() - held_out.stats.cross_entropy, -1)
    parts = []
    for rows in chunks(len(weights), chunk_size):
        fused = fusion(teacher_logprobs(held_out, rows), weights[rows])
        parts.append(_nll(fused, held_out.positions.labels[rows]))
    return torch.cat(parts)


def teacher_logprobs(held_out: HeldOutBatch, rows: slice) -> Iterator[Float[Tensor, "n V"]]:
    """Each teacher's part of a mixture at some positions, one teacher at a time; uniform where it is absent."""
    assert held_out.stats is not None, "called where there are teachers"
    for m, signal in enumerate(held_out.signals):
        yield target_logprobs(signal, rows, held_out.stats.valid[rows, m])


def _nll(logprobs: Float[Tensor, "n V"], labels: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    return -logprobs.gather(-1, labels[:, None]).squeeze(-1)


def _concatenate(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if parts else {}

"""The loss of one method: kd_weight * KD + (1 - kd_weight) * CE + feature_weight * sum of w_i * F_i, and more.

Every term is a sum over positions divided once by a global count, so that the loss and its gradient do
not depend on how a step's blocks are cut into micro-batches and ranks. A batch may bring weights of its own
for the first two terms, one pair a position (`Batch.weights`). The objective owns what is trained besides the
student (projections of its terms); they never reach the exported student.
"""

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from collegium.base.errors import RecipeError
from collegium.base.schedule import Schedule, largest, value_at
from collegium.fused.chunked import DistillationSums, KdTarget
from collegium.fused.fused import distillation_loss
from collegium.fused.teacher_stats import TeacherWeighting
from collegium.losses.divergences import forward_kl
from collegium.losses.fusion import Fusion, mixture_logprobs
from collegium.losses.weighting import GivenScores
from collegium.report.metric_names import (
    CROSS_ENTROPY,
    FEATURE_LOSS,
    INVALID_FRACTION,
    KD_LOSS,
    ROUTER_LOSS,
    STUDENT_UNCERTAINTY,
    feature_term,
    of_teacher,
)
from collegium.signals.contracts import Batch, Capability, ItemCounts, LossOutput, Positions, TeacherOutput
from collegium.signals.inner_states import InnerLayers, InnerStates
from collegium.signals.metrics import Mean
from collegium.signals.signals import Head, TeacherSignal
from collegium.training.chunk_size import default_chunk_size
from collegium.training.module import TrainedModule
from collegium.training.named import require_weights, schedule_of, target_of, weighting_of
from collegium.training.terms.balancing import Balancer
from collegium.training.terms.cross_tokenizer import CrossTokenizerLoss, cross_tokenizer_names
from collegium.training.terms.divergence_schedules import DivergenceSchedule
from collegium.training.terms.dynamic import DynamicDistillation, Guidance
from collegium.training.terms.features import FeatureTerm
from collegium.training.terms.loss_metrics import loss_metrics
from collegium.training.terms.own_views import StudentRows
from collegium.training.terms.routing import Router


class Objective(TrainedModule):
    """The weighted terms of one method.

    Args:
        teacher_names: In the order in which teachers' outputs are given.
        kd_weight: Weight of the divergence from the teachers; 0 leaves their distributions unread.
        ce_weight: Weight of the cross-entropy to the text; 1 - kd_weight if not given.
        target: Divergence, fusion and temperature; or the name of a divergence, as in recipes.
        fusion: How teachers are fused, where the target is a name; a function, `mixture` or `geometric`.
        weighting: How much each teacher counts; a name as in recipes will do.
        router: Learns how much each teacher counts, instead.
        feature_weight: Weight of the feature terms together.
        features: The terms, each with its own weight among them, if feature_weight is above 0.
        cross_tokenizer: Terms that compare the student with teachers in their own vocabularies.
        balancer: Weighs the terms against one another; none leaves the weights as they are given.
        dynamic: Lets the student's uncertainty decide what it is taught.
        divergence_schedule: Moves the target's parameter along with the training.
        label_smoothing: Share of a label's probability that the cross-entropy spreads over the vocabulary.
        max_invalid_fraction: Share of bad positions above which a teacher stops the run.
        chunk_size: Positions whose logits are alive at once; None: see `default_chunk_size`.

    Attributes:
        progress: Share of the training that is done, in [0, 1], which schedules follow; set between steps.

    Raises:
        ValueError: a weight is out of range, or parts do not go together.
    """

    def __init__(
        self,
        teacher_names: Sequence[str] = (),
        *,
        kd_weight: float | Schedule = 0.5,
        ce_weight: float | Schedule | None = None,
        target: KdTarget | str | None = None,
        fusion: Fusion | str | None = None,
        weighting: TeacherWeighting | str | None = None,
        router: Router | None = None,
        feature_weight: float | Schedule = 0.0,
        features: Sequence[FeatureTerm] = (),
        cross_tokenizer: CrossTokenizerLoss | None = None,
        balancer: Balancer | None = None,
        dynamic: DynamicDistillation | None = None,
        divergence_schedule: DivergenceSchedule | None = None,
        label_smoothing: float = 0.0,
        max_invalid_fraction: float = 0.01,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__()
        require_weights(kd_weight, ce_weight, feature_weight)
        if isinstance(teacher_names, str):
            raise ValueError(f"teacher_names is the text {teacher_names!r}: give a list of names")
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"label_smoothing is {label_smoothing}; it must lie in [0, 1)")
        if (largest(feature_weight) > 0) != (len(features) > 0):
            raise ValueError("feature_weight above 0 and feature terms go together")
        self.teacher_names = tuple(teacher_names)
        self._kd_weight = kd_weight
        self._ce_weight = ce_weight
        self._feature_weight = feature_weight
        self.target = target_of(target, fusion)
        self.weighting = weighting_of(weighting)
        self.router = router
        self.features = nn.ModuleList(features)
        self.cross_tokenizer = cross_tokenizer
        self.balancer = balancer
        self.dynamic = dynamic
        self.divergence_schedule = schedule_of(target, divergence_schedule)
        self.label_smoothing = label_smoothing
        self.max_invalid_fraction = max_invalid_fraction
        self.chunk_size = chunk_size
        self.progress = 0.0

    @property
    def kd_weight(self) -> float:
        """Weight of the divergence now."""
        return value_at(self._kd_weight, self.progress)

    @property
    def ce_weight(self) -> float:
        """Weight of the cross-entropy now."""
        return 1.0 - self.kd_weight if self._ce_weight is None else value_at(self._ce_weight, self.progress)

    @property
    def feature_weight(self) -> float:
        """Weight of the feature terms together now."""
        return value_at(self._feature_weight, self.progress)

    @property
    def distils(self) -> bool:
        """True if the divergence has any weight at any time."""
        return largest(self._kd_weight) > 0

    @property
    def need(self) -> frozenset[Capability]:
        """Capabilities that teachers must have; empty if they are not asked at all."""
        need = set()
        if self.distils:
            linear = self.target.divergence is forward_kl and self.target.fusion is mixture_logprobs
            # Drawn lists are right on average, which only a divergence that is linear in the target keeps.
            need = {Capability.SAMPLES if linear else Capability.TOP_K}
        if self.cross_tokenizer is not None:
            need |= self.cross_tokenizer.need
        return frozenset(need).union(*(term.need for term in self.feature_terms))

    def require_teachers(self, count: int) -> None:
        """See that it can be computed with so many teachers.

        Raises:
            RecipeError: there are none, or not as many as are weighed.
        """
        if self.need and not count:
            raise RecipeError("the objective asks teachers, but there are none: give teachers, or kd_weight=0")
        values = getattr(self.weighting, "values", None)
        if values is not None and len(values) != count:
            raise RecipeError(
                f"the objective weighs {len(values)} teachers, but {count} {'is' if count == 1 else 'are'} given"
            )

    @property
    def feature_terms(self) -> Sequence[FeatureTerm]:
        """The terms on inner states."""
        return cast(Sequence[FeatureTerm], self.features)

    @property
    def student_layers(self) -> InnerLayers:
        """Layers of the student that the feature terms read."""
        return functools.reduce(operator.or_, (term.student_layers for term in self.feature_terms), InnerLayers())

    @property
    def teacher_layers(self) -> list[InnerLayers]:
        """Layers of each teacher that the feature terms read; an empty list without such terms."""
        by_term = [term.teacher_layers for term in self.feature_terms]
        return [functools.reduce(operator.or_, layers) for layers in zip(*by_term, strict=True)]

    def forward(
        self,
        student_hidden: Tensor,
        student_head: Head,
        batch: Batch,
        positions: Positions,
        outputs: Sequence[TeacherOutput],
        *,
        counts: ItemCounts,
        vocab_size: int,
        student_states: InnerStates | None = None,
        student_embed: Callable[[Tensor], Tensor] | None = None,
    ) -> LossOutput:
        """Loss of one micro-batch.

        Args:
            student_hidden: Last hidden states at the predicted positions, [N D].
            student_head: Projects them to logits over `vocab_size` tokens.
            batch: The tokens.
            positions: Its predicted positions.
            outputs: One per teacher; none if `need` is empty.
            counts: Global counts of the optimizer step.
            vocab_size: Student's vocabulary.
            student_states: Inner states that feature terms read, if there are any.
            student_embed: Its input embeddings of token ids, if a term may read them.
        """
        chunk_size = self.chunk_size or default_chunk_size(vocab_size, student_hidden.device)
        signals = [output.signal for output in outputs] if self.distils else []
        rows = StudentRows(student_hidden, student_head, batch, positions, vocab_size, chunk_size, student_embed)
        guidance = self._guidance(rows)
        scores = None if self.router is None else self.router(student_hidden)
        factors: Mapping[str, float | Tensor] = {} if self.balancer is None else self.balancer.factors()
        sums = self._distil(rows, signals, scores, guidance, factors)
        # A step in which nothing is predicted has a loss of 0, not of 0 / 0.
        predicted = counts.predicted.clamp_min(1)
        predicted_here = _count(positions)
        loss = sums.loss / predicted
        metrics = loss_metrics(sums, self.teacher_names, signals)
        terms = {"kd": self.kd_weight * sums.kd / predicted, "ce": self.ce_weight * sums.cross_entropy / predicted}
        if guidance is not None:
            metrics[STUDENT_UNCERTAINTY] = Mean(guidance.uncertainty.sum(), predicted_here)
        if self.router is not None and scores is not None:
            missed = self.router.loss(scores, sums.stats.cross_entropy, sums.stats.valid)
            loss = loss + self.router.loss_weight * missed / predicted
            metrics[ROUTER_LOSS] = Mean(missed.detach(), predicted_here)
        others, logged = self._others(rows, student_states, outputs, guidance, counts)
        # The factors of "kd" and "ce" are in the weights of the loss above.
        loss = sum((factors.get(name, 1.0) * value for name, value in others.items()), start=loss)
        terms = terms | others
        metrics = metrics | logged
        if self.balancer is not None:
            loss = loss + self.balancer.penalty(terms, predicted_here / predicted)
        return LossOutput(loss, metrics)

    def _others(
        self,
        rows: StudentRows,
        student_states: InnerStates | None,
        outputs: Sequence[TeacherOutput],
        guidance: Guidance | None,
        counts: ItemCounts,
    ) -> tuple[dict[str, Tensor], dict[str, Mean]]:
        """Weighted terms beside those of the logits, divided by their counts, and what is logged of them."""
        terms: dict[str, Tensor] = {}
        metrics: dict[str, Mean] = {}
        if self.feature_terms:
            sums, metrics = self._features(student_states, outputs, rows.batch, rows.positions, guidance)
            terms = {name: value / counts.attended.clamp_min(1) for name, value in sums.items()}
        if self.cross_tokenizer is not None:
            sums, logged = self.cross_tokenizer(rows, outputs, self.progress)
            terms |= {name: value / counts.predicted.clamp_min(1) for name, value in sums.items()}
            metrics |= logged
        return terms, metrics

    def _distil(
        self,
        rows: StudentRows,
        signals: Sequence[TeacherSignal],
        scores: Tensor | None,
        guidance: Guidance | None,
        factors: Mapping[str, float | Tensor],
    ) -> DistillationSums:
        kd_weight, ce_weight = self._logit_weights(rows.batch, guidance)
        return distillation_loss(
            rows.hidden,
            rows.head,
            rows.positions,
            signals,
            self._weighting(scores, guidance),
            target=self._target(rows.batch, rows.positions),
            kd_weight=kd_weight * factors.get("kd", 1.0),
            ce_weight=ce_weight * factors.get("ce", 1.0),
            label_smoothing=self.label_smoothing,
            chunk_size=rows.chunk_size,
        )

    def _guidance(self, rows: StudentRows) -> Guidance | None:
        if self.dynamic is None:
            return None
        return self.dynamic.guide(rows.hidden, rows.head, rows.positions.labels, chunk_size=rows.chunk_size)

    def _logit_weights(self, batch: Batch, guidance: Guidance | None) -> tuple[float | Tensor, float | Tensor]:
        """Weights of divergence and cross-entropy, of all positions or of each."""
        # On-policy training has weighed each position over the whole step, schedules included.
        if batch.weights is not None:
            return batch.weights.kd, batch.weights.ce
        kd_weight = self.kd_weight if guidance is None else self.kd_weight * guidance.kd
        return kd_weight, self.ce_weight

    def _weighting(self, scores: Tensor | None, guidance: Guidance | None) -> TeacherWeighting:
        if scores is not None:
            return GivenScores(scores.detach())
        if guidance is not None and guidance.teacher_scores is not None:
            return GivenScores(guidance.teacher_scores)
        return self.weighting

    def _target(self, batch: Batch, positions: Positions) -> KdTarget:
        """The target, with the parameter that its divergence has now."""
        if self.divergence_schedule is None:
            return self.target
        written = torch.zeros_like(positions.index, dtype=torch.bool)
        if batch.on_policy is not None:
            written = batch.on_policy[batch.blocks_at(positions.index)]
        return replace(self.target, parameter=self.divergence_schedule.parameter(written, self.progress))

    def _features(
        self,
        student_states: InnerStates | None,
        outputs: Sequence[TeacherOutput],
        batch: Batch,
        positions: Positions,
        guidance: Guidance | None,
    ) -> tuple[dict[str, Tensor], dict[str, Mean]]:
        """Each term's weighted sum over text positions, and what is logged of them."""
        assert student_states is not None, "feature terms read them"
        states = [output.features for output in outputs if output.features is not None]
        emphasis = None
        if guidance is not None and guidance.features is not None:
            # The sums run over text, not over predicted positions: factors of these go to their places in it.
            emphasis = torch.zeros(batch.input_ids.numel(), device=batch.input_ids.device)
            emphasis = emphasis.index_copy(0, positions.index, guidance.features.float()).view_as(batch.input_ids)
        terms = {}
        metrics = {}
        logged = []
        attended = batch.attention_mask.sum()
        nothing = torch.zeros((), device=attended.device)  # a term need not have parameters
        for name, term in self._named_features():
            weight = self._weight_of(name)
            if weight > 0:
                value = term(student_states, states, batch, emphasis)
                metrics[name] = Mean(value.detach(), attended)
                logged.append(value_at(term.weight, self.progress) * value.detach())
            else:  # for now; but its parameters must have a gradient on every rank
                value = sum((0.0 * parameter.sum() for parameter in term.parameters()), start=nothing)
            terms[name] = weight * value
        if logged:  # without `feature_weight`, as the other terms are logged without theirs
            metrics[FEATURE_LOSS] = Mean(torch.stack(logged).sum(), attended)
        return terms, metrics

    def _weight_of(self, feature: str) -> float:
        term = dict(self._named_features())[feature]
        return self.feature_weight * value_at(term.weight, self.progress)

    def set_progress(self, progress: float) -> None:
        """Set the share of the training that is done; called between steps."""
        self.progress = progress
        for term in self.feature_terms:
            term.progress = progress

    def after_step(self, means: Mapping[str, float]) -> None:
        """Take in a finished step's metrics over all ranks; called between steps where `watches`."""
        if self.balancer is not None:
            weights = {"kd": self.kd_weight, "ce": self.ce_weight}
            weights |= {name: self._weight_of(name) for name, _ in self._named_features()}
            if self.cross_tokenizer is not None:
                weights |= self.cross_tokenizer.weights(self.progress)
            metrics = {"kd": KD_LOSS, "ce": CROSS_ENTROPY}
            present = [name for name, weight in weights.items() if weight > 0]
            self.balancer.after_step({name: means.get(metrics.get(name, name), 0.0) for name in present})
        if self.divergence_schedule is not None and self.divergence_schedule.watches:
            self.divergence_schedule.after_step(means.get(KD_LOSS, 0.0), self.progress)

    @property
    def watches(self) -> frozenset[str]:
        """Metrics that must be known after each step; their reading waits for the device."""
        names: set[str] = set()
        if self.balancer is not None and self.balancer.watches:
            names |= {KD_LOSS, CROSS_ENTROPY, *(name for name, _ in self._named_features())}
            if self.cross_tokenizer is not None:
                names |= self.cross_tokenizer.weights(self.progress).keys()
        if self.divergence_schedule is not None and self.divergence_schedule.watches:
            names.add(KD_LOSS)
        return frozenset(names)

    def _named_features(self) -> list[tuple[str, FeatureTerm]]:
        return list(zip(term_names(len(self.features))[2:], self.feature_terms, strict=True))

    def unreliable_teachers(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Teachers that were bad more often than allowed, with the share of bad positions."""
        shares = {name: metrics.get(of_teacher(name, INVALID_FRACTION), 0.0) for name in self.teacher_names}
        return {name: share for name, share in shares.items() if share > self.max_invalid_fraction}


def term_names(num_features: int, num_cross_tokenizer: int = 0) -> tuple[str, ...]:
    """Names of the terms that a balancer weighs."""
    features = (feature_term(i) for i in range(num_features))
    return ("kd", "ce", *features, *cross_tokenizer_names(num_cross_tokenizer))


def _count(positions: Positions) -> Tensor:
    return torch.tensor(len(positions), device=positions.index.device)

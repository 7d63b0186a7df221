"""On-policy distillation: the rollouts of one optimizer step, and the weights of its positions in the loss.

`divergence` is GKD (arXiv:2306.13649): the objective's own divergence, on text that the student wrote.
`policy_gradient` is MiniLLM (arXiv:2306.08543): the log-ratio of teachers and student is the reward of each
token, and the divergence stays beside it as the single-step term. Each rollout is used for one update, so the
ratio of the student of now to the one that wrote it is 1; several passes would need rollouts that live longer
than a step, and a resumed run could not make them again.

A step's means, for whitening and for dividing, are taken over all its micro-batches and ranks before the first
forward pass. `policy_gradient` scores its rollouts twice: here for the rewards, and with the loss.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from collegium.base.errors import TeacherError
from collegium.fused.teacher_stats import teacher_stats
from collegium.losses.fusion import geometric_logprobs
from collegium.losses.joint_weighting import JointWeighting
from collegium.losses.policy import (
    JudgeName,
    agreement,
    discounted_returns,
    geometric_verdict,
    mixture_verdict,
    moments,
    policy_weights,
    rewards,
    routed_verdict,
    surrogate_weights,
    whitened,
)
from collegium.losses.weighting import Weighting
from collegium.models.head import ProjectionHead
from collegium.models.pretrained import trunk_of
from collegium.report.metric_names import IMPORTANCE_WEIGHT, ON_POLICY_BLOCKS, REWARD, ROLLOUT_TOKENS
from collegium.signals.contracts import Batch, Capability, PositionWeights, Teacher, predicted_positions
from collegium.signals.metrics import Mean
from collegium.signals.signals import TeacherSignal
from collegium.training.chunk_size import default_chunk_size
from collegium.training.model import DistillationModel
from collegium.training.objective import Objective
from collegium.training.rollout import Author, Rollout, Sampling, roll_out
from collegium.training.terms.balancing import UncertaintyWeighting


@dataclass(frozen=True)
class PolicyGradient:
    """Rewards and the surrogate; defaults of MiniLLM's scripts.

    Attributes:
        judge: Whose probability is the reward: `mixture`, the objective's fusion with its weights; `route`, the
            teacher of greatest weight; `consensus`, the mixture where all agree whether a token is better
            than the student thinks, else nothing.
        gamma: Discount of later rewards in a token's return.
        reward_scale: Divides a reward.
        reward_clip: Bounds it.
        ratio_clip: Half-width of the surrogate's range.
        single_step_weight: Weight of the divergence beside the surrogate.
    """

    judge: JudgeName = "mixture"
    gamma: float = 0.95
    reward_scale: float = 0.5
    reward_clip: float = 100.0
    ratio_clip: float = 0.2
    single_step_weight: float = 1.0


@dataclass(frozen=True)
class _Scored:
    """One micro-batch with what must be known of the whole step before its weights are.

    Attributes:
        inputs: What it is trained on.
        mask: Positions [N] whose label the student wrote.
        returns: Of the tokens that were written, in reading order; None without any, or for a divergence.
        log_importance: Of the same tokens.
    """

    inputs: dict[str, Any]
    mask: Tensor
    returns: Tensor | None
    log_importance: Tensor | None


@dataclass(frozen=True)
class OnPolicy:
    """Makes the rollouts of a step.

    Attributes:
        sampling: Which blocks, and how they go on.
        policy: None for a divergence alone.
    """

    sampling: Sampling
    policy: PolicyGradient | None = None

    def check(self, teachers: Sequence[Teacher], objective: Objective) -> None:
        """Refuse teachers and objectives that cannot judge text before it is written.

        Raises:
            TeacherError: a teacher cannot.
            ValueError: the objective asks no teacher, or smooths labels that the policy gradient weighs.
        """
        if not objective.distils:
            raise ValueError("on_policy has teachers judge what the student writes: set kd_weight above 0")
        if self.policy is not None and objective.label_smoothing > 0:
            raise ValueError("label_smoothing would reward every token with the one that was written: set it to 0")
        if not isinstance(objective.weighting, Weighting | JointWeighting) or objective.router is not None:
            raise ValueError(
                "on_policy weighs teachers on text that is not written yet: set objective.weighting to another "
                "kind than min_norm and router"
            )
        if objective.dynamic is not None or isinstance(objective.balancer, UncertaintyWeighting):
            raise ValueError("on_policy weighs positions itself: leave out dynamic and balance: uncertainty")
        if objective.target.conflict_limit is not None:
            raise ValueError("conflict_limit would teach the student its own text: leave it out with on_policy")
        for teacher in teachers:
            if Capability.GENERATE not in teacher.provides:
                raise TeacherError(
                    f"teacher {teacher.name!r} knows stored text only, but on_policy has it judge what the "
                    "student writes: run the teacher (cached: false), or leave on_policy out"
                )

    def prepare(
        self,
        step_inputs: Sequence[dict[str, Any]],
        model: DistillationModel,
        teachers: Sequence[Teacher],
        *,
        step: int,
        add_up: Callable[[Tensor], Tensor],
    ) -> tuple[list[dict[str, Any]], dict[str, Mean]]:
        """The micro-batches of a step with rollouts in them, and what to log.

        Args:
            step_inputs: As the collator made them.
            model: The student, which writes, and the objective, whose weighting, fusion and kd_weight are used.
            teachers: Judges of the rollouts, and co-authors where they have a share in the sampling.
            step: Number of the step; with a block's sample id it decides everything that is random.
            add_up: Sums a tensor over ranks. Called once on each, rollouts or not.
        """
        author = self._author(model, teachers)
        judge = _Judge(teachers, model.objective, self.policy, model.vocab_size)
        device = step_inputs[0]["input_ids"].device
        names = [ON_POLICY_BLOCKS, ROLLOUT_TOKENS]
        metrics = _Metrics(names if self.policy is None else [*names, REWARD, IMPORTANCE_WEIGHT], device)
        scored = []
        for inputs in step_inputs:
            rollout = roll_out(inputs, author, self.sampling, step=step)
            scored.append(judge.score(rollout, metrics))
        # One reduction over ranks for all counts and moments, also on ranks without a rollout.
        own = torch.zeros(5, dtype=torch.float64, device=device)
        for part in scored:
            own[:2] += torch.stack([part.mask.sum(), (~part.mask).sum()])
            if part.returns is not None:
                own[2:] += moments(part.returns)
        totals = add_up(own)
        weighted = [{**p.inputs, "weights": self._weights(p, totals, model.objective)} for p in scored]
        return weighted, metrics.means

    def _weights(self, part: _Scored, totals: Tensor, objective: Objective) -> PositionWeights:
        surrogate = None
        if self.policy is not None:
            surrogate = torch.zeros_like(part.mask, dtype=torch.float32)
            if part.returns is not None and part.log_importance is not None:
                advantages = whitened(part.returns, totals[2:])
                weights = surrogate_weights(advantages, part.log_importance, clip=self.policy.ratio_clip)
                surrogate = surrogate.to(weights.dtype).masked_scatter(part.mask, weights)
        return policy_weights(
            part.mask,
            surrogate,
            totals[:2],
            fraction=self.sampling.fraction,
            kd_weight=objective.kd_weight,
            ce_weight=objective.ce_weight,
            single_step_weight=1.0 if self.policy is None else self.policy.single_step_weight,
        )

    def _author(self, model: DistillationModel, teachers: Sequence[Teacher]) -> Author:
        """The student, and the teachers where they have a share."""
        weighting = model.objective.weighting
        return Author(
            model.student,
            trunk_of(model.student),
            ProjectionHead.from_model(model.causal_lm, model.vocab_size),
            teachers if self.sampling.teacher_share > 0 else (),
            weighting if isinstance(weighting, Weighting) else Weighting("uniform"),
            model.objective.target.fusion,
        )


class _Metrics:
    """Means of rollouts over the micro-batches of a step; the same names on every rank, rollouts or not."""

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        zero = torch.zeros((), device=device)
        self.means = {name: Mean(zero, zero) for name in names}

    def add(self, name: str, values: Tensor) -> None:
        """Add some values of one figure."""
        self.means[name] += Mean(values.sum(), torch.tensor(values.numel(), device=values.device))


@dataclass(frozen=True)
class _Judge:
    """Scores rollouts with all teachers."""

    teachers: Sequence[Teacher]
    objective: Objective
    policy: PolicyGradient | None
    vocab_size: int

    @torch.no_grad()
    def score(self, rollout: Rollout, metrics: _Metrics) -> _Scored:
        """Returns of the tokens of one micro-batch's rollouts."""
        batch = Batch.from_inputs(rollout.inputs)
        positions = predicted_positions(batch)
        written = rollout.continuations
        assert batch.on_policy is not None
        mask = batch.on_policy[batch.blocks_at(positions.index)]  # [N]
        metrics.add(ON_POLICY_BLOCKS, batch.on_policy.double())
        if written is None:
            return _Scored(rollout.inputs, mask, None, None)
        metrics.add(ROLLOUT_TOKENS, written.mask.sum(-1).double())
        if self.policy is None:
            return _Scored(rollout.inputs, mask, None, None)
        need = frozenset({Capability.TOP_K})
        signals = [teacher.score(batch, positions, need=need).signal for teacher in self.teachers]
        reward = self._rewards(signals, positions, mask, written.student_logprobs[written.mask])
        grid = torch.zeros_like(written.student_logprobs).masked_scatter(written.mask, reward)
        returns = discounted_returns(grid, written.mask, self.policy.gamma)[written.mask]
        importance = (written.student_logprobs - written.sampled_logprobs)[written.mask]
        metrics.add(REWARD, reward)
        metrics.add(IMPORTANCE_WEIGHT, importance.exp())
        return _Scored(rollout.inputs, mask, returns, importance)

    def _rewards(
        self, signals: Sequence[TeacherSignal], positions: Any, mask: Tensor, student_logprobs: Tensor
    ) -> Tensor:
        """Rewards of the tokens that were written, in reading order."""
        assert self.policy is not None
        chunk_size = self.objective.chunk_size or default_chunk_size(self.vocab_size, mask.device)
        stats = teacher_stats(signals, positions.labels, chunk_size=chunk_size)
        weighting = self.objective.weighting
        assert isinstance(weighting, Weighting | JointWeighting), "checked"
        weights = weighting(stats, positions)
        teacher_logprobs = -stats.cross_entropy[mask]
        weights = weights[mask]
        valid = stats.valid[mask]
        if self.policy.judge == "route":
            verdict = routed_verdict(teacher_logprobs, weights)
        elif self.objective.target.fusion is geometric_logprobs:
            verdict = geometric_verdict(teacher_logprobs, weights)
        else:
            verdict = mixture_verdict(teacher_logprobs, weights)
        covered = weights.sum(-1) > 0
        if self.policy.judge == "consensus":
            covered = covered & agreement(teacher_logprobs, student_logprobs, valid)
        return rewards(
            verdict,
            student_logprobs,
            covered=covered,
            scale=self.policy.reward_scale,
            clip=self.policy.reward_clip,
        )

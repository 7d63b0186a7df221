"""Proportions of domains that follow the student's perplexity against the fused target's (DDK, arXiv:2407.16154).

Blocks that are set aside from the training text are measured every so many steps; a domain in which the student
lags behind its target gets more of the next round's text. The target is measured once: with 32 blocks of 1,024
tokens a domain, a round costs the student's forward pass over 32 thousand tokens, and each teacher's hidden states
75 MB (width 576).

Loaders read ahead, so a round's proportions are needed some steps before it begins. `DomainMixing.remix` is given
how many, and measures that much earlier.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from collegium.data.blocks import PackedBlocks
from collegium.data.order import DomainOrder
from collegium.evaluation.language_modeling import DocumentSums, HeldOut, Rule
from collegium.losses.domain_mix import MAX_RATIO, initial_proportions, next_proportions
from collegium.report import metric_names as names


def set_aside(train: PackedBlocks, num_blocks: int) -> tuple[dict[str, list[int]], dict[str, PackedBlocks]]:
    """Split training blocks into those that are trained on and those that are measured.

    Args:
        train: Training blocks of all domains.
        num_blocks: To be measured of each domain, evenly spaced over it; at most a tenth of it, at least one.

    Returns:
        Indices to train on, and blocks to measure, by domain.

    Raises:
        ValueError: a domain has fewer than 2 blocks.
    """
    by_domain: dict[str, list[int]] = {}
    for index, domain in enumerate(train.dataset["domain"]):
        by_domain.setdefault(domain, []).append(index)
    trained = {}
    measured = {}
    for domain, indices in by_domain.items():
        if len(indices) < 2:
            raise ValueError(f"domain {domain!r} has one training block; two are needed, to measure and to train")
        count = max(1, min(num_blocks, len(indices) // 10))
        chosen = [indices[i * len(indices) // count] for i in range(count)]
        trained[domain] = sorted(set(indices) - set(chosen))
        measured[domain] = PackedBlocks(train.dataset.select(chosen), chosen)
    return trained, measured


class DomainMixing:
    """Proportions of all rounds so far, and how the next ones follow.

    Args:
        trained: Indices of each domain's training samples.
        held_out: Blocks of the same domains that are measured.
        rule: How teachers are fused.
        every: Optimizer steps of a round.
        alpha: Share of the proportions that follows the discrepancy; the rest is spread evenly.
        max_ratio: Larger ratios of perplexities count as this.
    """

    def __init__(
        self,
        trained: Mapping[str, Sequence[int]],
        held_out: HeldOut,
        rule: Rule,
        *,
        every: int = 1000,
        alpha: float = 0.5,
        max_ratio: float = MAX_RATIO,
    ) -> None:
        if list(trained) != list(held_out.domains):
            raise ValueError(f"{list(trained)} are trained on, but {list(held_out.domains)} are measured")
        self.held_out = held_out
        self.every = every
        self.rounds: list[list[float]] = []
        self._trained = trained
        self._rule = rule
        self._alpha = alpha
        self._max_ratio = max_ratio
        self._target: torch.Tensor | None = None

    @property
    def domains(self) -> list[str]:
        """Names in the order of the proportions."""
        return list(self._trained)

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the proportions beside student, teachers and text."""
        sizes = {domain: len(indices) for domain, indices in self._trained.items()}
        own = {"every": self.every, "alpha": self._alpha, "max_ratio": self._max_ratio}
        return {**own, "rule": self._rule, "samples": sizes}

    def order(self, *, samples_per_step: int, seed: int, total: int, start: int = 0) -> DomainOrder:
        """The order of samples from position `start` up to `total`; it sees rounds that are added later."""
        return DomainOrder(
            list(self._trained.values()),
            self.rounds,
            round_size=self.every * samples_per_step,
            seed=seed,
            total=total,
            start=start,
        )

    def remix(
        self, step: int, measure: Callable[[HeldOut], Mapping[str, DocumentSums]], *, steps_ahead: int = 0
    ) -> dict[str, float]:
        """Set the proportions of all rounds that a loader may ask for.

        Args:
            step: Optimizer steps done.
            measure: Measures the student; called only when a round is due. Must give the same on all ranks.
            steps_ahead: How far a loader may be ahead of the step.

        Returns:
            Proportions and perplexities to log; empty if no round was due.
        """
        due = (step + steps_ahead) // self.every + 1 - len(self.rounds)
        if due <= 0:
            return {}
        sums = measure(self.held_out)
        student = self._perplexities(sums, names.NLL)
        target = self._target_perplexities()
        for _ in range(due):
            self.rounds.append(self._next(student, target).tolist())
        logs = {}
        for index, domain in enumerate(self.domains):
            logs[names.share_of_domain(domain)] = self.rounds[-1][index]
            logs[names.perplexity_of_domain(domain, "student")] = float(student[index])
            logs[names.perplexity_of_domain(domain, "target")] = float(target[index])
        return logs

    def _next(self, student: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if not self.rounds:
            return initial_proportions(student, target, self._max_ratio)
        last = torch.tensor(self.rounds[-1], dtype=torch.float64)
        return next_proportions(last, student, target, self._alpha, self._max_ratio)

    def _target_perplexities(self) -> torch.Tensor:
        if self._target is None:
            sums = self.held_out.measure_targets({names.TARGET: self._rule})
            self._target = self._perplexities(sums, names.rule_nll(names.TARGET))
        return self._target

    def _perplexities(self, sums: Mapping[str, DocumentSums], name: str) -> torch.Tensor:
        nlls = [min(sums[domain].mean(name), 700.0) for domain in self.domains]  # exp(710) is infinite
        return torch.tensor([math.exp(nll) for nll in nlls], dtype=torch.float64)

    def state_dict(self) -> dict[str, Any]:
        """All that a run must remember."""
        return {"domains": self.domains, "rounds": self.rounds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the rounds of a checkpoint.

        Raises:
            ValueError: it was made with other domains.
        """
        if state["domains"] != self.domains:
            raise ValueError(f"the checkpoint mixes {state['domains']}, this run {self.domains}")
        self.rounds[:] = state["rounds"]  # in place: an order may hold the list already

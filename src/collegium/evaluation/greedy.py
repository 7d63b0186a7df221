"""Greedy continuations of prompts: by a model, and by fused teachers.

The fused target of a rule is a distribution like any other, so it can write: at each step the teachers' next-token
distributions are fused and the most probable token is taken. Each teacher keeps a key-value cache of its own, so
that a token costs one step of every teacher; the prompts are read twice, once for the teachers' figures on them,
which set the weights at what follows.
"""

import contextlib
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from collegium.base.progress import Phase
from collegium.evaluation.language_modeling import Rule, covered_weights
from collegium.fused.teacher_stats import teacher_stats
from collegium.losses.joint_weighting import JointWeighting
from collegium.losses.weighting import Weighting
from collegium.signals.contracts import Batch, Capability, NextToken, Teacher, TeacherStats, predicted_positions


@dataclass(frozen=True)
class Writing:
    """Limits and special tokens of a continuation.

    Attributes:
        new_tokens: Tokens at most.
        stop_token_id: Ends a text and is no part of it; None: only length does.
        pad_token_id: Stands behind the end of a text while others of its batch go on.
        vocab_size: Rows of the head beyond it are padding and never written.
        batch_size: Prompts continued together.
    """

    new_tokens: int
    stop_token_id: int | None
    pad_token_id: int
    vocab_size: int
    batch_size: int = 8


@torch.no_grad()
def continuations(model: PreTrainedModel, prompts: Int[Tensor, "R P"], how: Writing) -> list[list[int]]:
    """Continue each prompt by `generate` of transformers, with the largest logit and no more.

    What the model was published with (penalties, least lengths, temperatures) has no say.
    """
    model.eval()
    rows = len(cast(Any, model.get_output_embeddings()).weight)
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=how.new_tokens,
        eos_token_id=how.stop_token_id,
        pad_token_id=how.pad_token_id,
        suppress_tokens=list(range(how.vocab_size, rows)) or None,
    )
    written: list[list[int]] = []
    generate = cast(Any, model).generate
    batches = prompts.to(model.device).split(how.batch_size)
    with (
        Phase("writing continuations", total=len(batches), unit="batches") as phase,
        _generation_config(model, config),
    ):
        for batch in phase.counted(batches):
            output = generate(batch, attention_mask=torch.ones_like(batch), generation_config=config)
            written += [_until_stop(row, how.stop_token_id) for row in output[:, batch.shape[1] :].tolist()]
    return written


@contextlib.contextmanager
def _generation_config(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """Replace what `generate` fills up a configuration from that leaves something open."""
    kept = model.generation_config
    model.generation_config = config
    try:
        yield
    finally:
        model.generation_config = kept


def _until_stop(tokens: list[int], stop_token_id: int | None) -> list[int]:
    return tokens[: tokens.index(stop_token_id)] if stop_token_id in tokens else tokens


def writes_ahead(rule: Rule) -> bool:
    """True if the weights of a rule are known before the token that they are asked about."""
    return isinstance(rule.weighting, Weighting | JointWeighting) and rule.weighting.is_known_ahead


@torch.no_grad()
def fused_continuations(
    teachers: Sequence[Teacher],
    rule: Rule,
    prompts: Int[Tensor, "R P"],
    how: Writing,
    *,
    absent: Collection[str] = (),
    domain: int | None = None,
) -> list[list[int]]:
    """Continue prompts by the fused teachers: the most probable token of the target that students are trained on.

    At every step all teachers read the same text, and the rule weighs them by their figures on the prompt and
    all that was written after it, the part of its means that lies ahead left out.

    Args:
        teachers: All of them, in the order of the rule.
        rule: One for which `writes_ahead` is true.
        prompts: One or more tokens each.
        how: When to stop.
        absent: Names of those that have no say here.
        domain: Number of the domain, for rules that go by it.
    """
    assert writes_ahead(rule), "the weights of this rule follow the token itself"
    written = []
    batches = prompts.split(how.batch_size)
    with Phase("writing continuations of the teachers", total=len(batches), unit="batches") as phase:
        for batch in phase.counted(batches):
            text = _FusedText(teachers, rule, absent, domain)
            written += [_until_stop(row, how.stop_token_id) for row in text.go_on(batch, how).tolist()]
    return written


_CHUNK_SIZE = 256
"""Positions of prompts whose logits are alive at once."""


class _FusedText:
    """Texts of one batch while they grow, with the teachers' figures at each position."""

    def __init__(
        self, teachers: Sequence[Teacher], rule: Rule, absent: Collection[str], domain: int | None
    ) -> None:
        self.teachers = teachers
        self.rule = rule
        self.domain = domain
        self.present = torch.tensor([teacher.name not in absent for teacher in teachers])

    def go_on(self, prompts: Tensor, how: Writing) -> Int[Tensor, "R T"]:
        """Tokens behind the prompts."""
        tokens = prompts
        voices = [teacher.next_tokens(how.new_tokens) for teacher in self.teachers]
        views = [voice.prefill(prompts, torch.ones_like(prompts, dtype=torch.bool)) for voice in voices]
        entropy, nll, valid = self._figures(prompts, views[0].logprobs.shape[-1])  # [R P-1 M]
        alive = torch.ones(len(prompts), dtype=torch.bool, device=prompts.device)
        for step in range(how.new_tokens):
            here, speaks = self._entropies(views)
            entropy = _and(entropy, here)
            valid = _and(valid, speaks)
            unknown = torch.zeros_like(here)  # of a token that is not there: no rule here reads it
            weights = self._weights(tokens, entropy, _and(nll, unknown), valid)
            chosen = self.rule.fusion(_filled(views, speaks), weights).argmax(-1)
            chosen = chosen.masked_fill(~alive, how.pad_token_id)
            tokens = torch.cat([tokens, chosen[:, None]], -1)
            alive = alive & (chosen != how.stop_token_id) if how.stop_token_id is not None else alive
            if step + 1 == how.new_tokens or not bool(alive.any()):
                break
            nll = _and(nll, self._nll(views, chosen, speaks))
            views = [voice.step(chosen) for voice in voices]
        return tokens[:, prompts.shape[1] :]

    def _figures(self, prompts: Tensor, vocab_size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Entropy, cross-entropy and presence of all teachers where prompts are predicted."""
        batch = self._batch(prompts)
        positions = predicted_positions(batch)
        need = frozenset({Capability.TOP_K})
        signals = [teacher.score(batch, positions, need=need).signal for teacher in self.teachers]
        stats = teacher_stats(signals, positions.labels, chunk_size=_CHUNK_SIZE)
        valid = stats.valid & self.present.to(stats.valid.device)
        uniform = math.log(vocab_size)
        shape = (len(prompts), prompts.shape[1] - 1)
        entropy, nll = (figure.masked_fill(~valid, uniform) for figure in (stats.entropy, stats.cross_entropy))
        return entropy.unflatten(0, shape), nll.unflatten(0, shape), valid.unflatten(0, shape)

    def _entropies(self, views: Sequence[NextToken]) -> tuple[Tensor, Tensor]:
        """Entropy of each teacher at the next token, as `TeacherStats` has it, and whether it speaks there."""
        entropy = torch.stack([view.entropy for view in views], -1)  # [R M]
        valid = entropy.isfinite() & self.present.to(entropy.device)
        return entropy.masked_fill(~valid, math.log(views[0].logprobs.shape[-1])), valid

    def _nll(self, views: Sequence[NextToken], tokens: Tensor, valid: Tensor) -> Tensor:
        logprobs = torch.stack([view.logprobs.gather(-1, tokens[:, None]).squeeze(-1) for view in views], -1)
        return (-logprobs).masked_fill(~valid, math.log(views[0].logprobs.shape[-1]))

    def _weights(self, tokens: Tensor, entropy: Tensor, nll: Tensor, valid: Tensor) -> Float[Tensor, "R M"]:
        """Weights of the teachers at the next token of each text."""
        ahead = torch.nn.functional.pad(tokens, (0, 1))  # some token to be predicted
        positions = predicted_positions(self._batch(ahead))
        flat = [figure.flatten(0, 1) for figure in (entropy, nll, nll, valid)]
        weights = covered_weights(self.rule.weighting(TeacherStats(*flat), positions))
        last: Tensor = weights.unflatten(0, (len(tokens), -1))[:, -1]
        return last

    def _batch(self, tokens: Tensor) -> Batch:
        """Each row a text of its own."""
        places = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        batch = Batch.of_text(tokens, torch.ones_like(tokens, dtype=torch.bool), places)
        if self.domain is None:
            return batch
        return replace(batch, domain_ids=torch.full((len(tokens),), self.domain, device=tokens.device))


def _and(columns: Tensor, new: Tensor) -> Tensor:
    """[R S M] and [R M] as [R S+1 M]."""
    return torch.cat([columns, new[:, None]], 1)


def _filled(views: Sequence[NextToken], valid: Tensor) -> Iterator[Tensor]:
    """The teachers' log-probabilities, finite where they have no weight."""
    for m, view in enumerate(views):
        yield view.logprobs.masked_fill(~valid[:, m, None], 0.0)

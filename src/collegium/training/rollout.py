"""Text that the student writes while it is trained: which blocks, how they go on, the batch they become.

Everything is a function of (seed, step, sample id) and of the student's weights at that step: a block's coin and
the numbers its tokens are drawn with come from a generator of its own. So a resumed run writes the same
text, and so do any number of ranks and any cut of a step into micro-batches, up to rounding in the logits
that happens to cross a border between two tokens. Nothing is kept from one step to the next.

The student is asked without dropout and without gradient, at the price of one forward pass a token; a
teacher's share of the sampling costs another one a teacher and token.
"""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from collegium.data.collate import with_continuations
from collegium.losses.fusion import Fusion
from collegium.losses.precision import full_precision
from collegium.losses.sampling import at, draw, mixed_logprobs, shaped_logprobs
from collegium.losses.weighting import Weighting
from collegium.models.decoding import Decoder
from collegium.signals.contracts import Batch, NextToken, Teacher
from collegium.signals.signals import Head


@dataclass(frozen=True)
class Sampling:
    """Settings of a rollout.

    Attributes:
        fraction: Probability with which a block is replaced by a rollout.
        prompt_length: Tokens of the prompt; half of a document that is no longer than that.
        max_new_tokens: Tokens that are written at most.
        temperature: Divides the logits that tokens are drawn from.
        top_p: Mass of the nucleus that tokens are drawn from; 1 is all.
        teacher_share: Share a of the teachers in what is sampled from, a p + (1 - a) q.
        stop_token_id: Ends a rollout, and is part of it; None: only length does.
        pad_token_id: Token id on padding.
        seed: Of all rollouts.
    """

    fraction: float = 0.5
    prompt_length: int = 64
    max_new_tokens: int = 128
    temperature: float = 0.9
    top_p: float = 1.0
    teacher_share: float = 0.0
    stop_token_id: int | None = None
    pad_token_id: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Numbers:
    """Random numbers of a step for each block of a batch, drawn before it is known what for.

    Attributes:
        coins: A block is continued where it is below the fraction.
        uniforms: One number for each token.
    """

    coins: Float[Tensor, " B"]
    uniforms: Float[Tensor, "B T"]


def numbers_of(sample_ids: Sequence[int], *, seed: int, step: int, max_new_tokens: int) -> Numbers:
    """Numbers in [0, 1) for each block, from a generator seeded by (seed, step, sample id)."""
    rows = []
    for sample_id in sample_ids:
        digest = hashlib.sha256(f"rollout/{seed}/{step}/{sample_id}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        rows.append(torch.rand(1 + max_new_tokens, generator=generator, dtype=torch.float64))
    numbers = torch.stack(rows)
    return Numbers(numbers[:, 0], numbers[:, 1:])


def prompt_of(
    input_ids: Int[Tensor, " S"], attention_mask: Bool[Tensor, " S"], position_ids: Int[Tensor, " S"], length: int
) -> Int[Tensor, " P"]:
    """The beginning of a block's longest segment of text, the first of them where two are equal.

    Its first `length` tokens, or the first half of a segment that has no more than that.
    """
    starts = (position_ids == 0).nonzero().squeeze(-1)
    ends = torch.cat([starts[1:], starts.new_tensor([len(input_ids)])])
    sizes = torch.where(attention_mask[starts], ends - starts, 0)
    longest = int(sizes.argmax())
    size = int(sizes[longest])
    start = int(starts[longest])
    return input_ids[start : start + (length if size > length else max(1, size // 2))]


@dataclass(frozen=True)
class Continuations:
    """Tokens that were written, and how probable they were.

    Attributes:
        tokens: Those beyond the end of a rollout are padding.
        mask: True up to the end, the stop token included.
        student_logprobs: Of each token under the student at temperature 1.
        sampled_logprobs: Under the distribution that it was drawn from.
    """

    tokens: Int[Tensor, "R T"]
    mask: Bool[Tensor, "R T"]
    student_logprobs: Float[Tensor, "R T"]
    sampled_logprobs: Float[Tensor, "R T"]


@dataclass(frozen=True)
class Author:
    """The student, and the teachers that may take a share in what it writes.

    Attributes:
        model: Put in evaluation mode while it writes.
        trunk: The part of it below the head.
        head: Projects its hidden states.
        teachers: All of them, if their share is above 0.
        weighting: How much each counts; see `Weighting.of_next_token`.
        fusion: Makes one distribution of theirs.
    """

    model: nn.Module
    trunk: nn.Module
    head: Head
    teachers: Sequence[Teacher]
    weighting: Weighting
    fusion: Fusion

    @torch.no_grad()
    def write(self, prompts: Sequence[Tensor], uniforms: Float[Tensor, "R T"], how: Sampling) -> Continuations:
        """Continue each prompt; its numbers decide the tokens."""
        device = uniforms.device
        with evaluating(self.model):
            decoder = Decoder(self.trunk, self.head, how.max_new_tokens)
            teachers = [t.next_tokens(how.max_new_tokens) for t in self.teachers] if how.teacher_share > 0 else []
            inputs = left_padded(prompts, how.pad_token_id, device)
            logits = decoder.prefill(*inputs)
            views = [teacher.prefill(*inputs) for teacher in teachers]
            alive = torch.ones(len(prompts), dtype=torch.bool, device=device)
            columns = []
            for column, numbers in enumerate(uniforms.unbind(-1)):
                token, *logprobs = self._draw(full_precision(logits), views, numbers, how)
                token = token.masked_fill(~alive, how.pad_token_id)
                columns.append((token, alive, *logprobs))
                if how.stop_token_id is not None:
                    alive = alive & (token != how.stop_token_id)
                if column + 1 == how.max_new_tokens or not bool(alive.any()):
                    break
                logits = decoder.step(token)
                views = [teacher.step(token) for teacher in teachers]
        return Continuations(*(torch.stack(parts, -1) for parts in zip(*columns, strict=True)))

    def _draw(
        self, logits: Tensor, views: Sequence[NextToken], uniforms: Tensor, how: Sampling
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A token of each sequence, with its log-probability under the student and as it was sampled."""
        shape = {"temperature": how.temperature, "top_p": how.top_p}
        sampled = shaped_logprobs(logits, **shape)
        if views:
            valid = torch.stack([view.entropy.isfinite() for view in views], -1)  # [R M]
            covered = valid.any(-1, keepdim=True)
            fused = shaped_logprobs(self._fused(views, valid), **shape)
            sampled = torch.where(covered, mixed_logprobs(sampled, fused, how.teacher_share), sampled)
        tokens = draw(sampled, uniforms)
        return tokens, at(logits.log_softmax(-1), tokens), at(sampled, tokens)

    def _fused(self, views: Sequence[NextToken], valid: Tensor) -> Tensor:
        weights = self.weighting.of_next_token(torch.stack([view.entropy for view in views], -1), valid)
        weights = torch.where(valid.any(-1, keepdim=True), weights, 1.0 / len(views))
        logprobs = (view.logprobs.masked_fill(~valid[:, m, None], 0.0) for m, view in enumerate(views))
        return self.fusion(logprobs, weights)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """No dropout for a while; every module is left in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def left_padded(prompts: Sequence[Tensor], pad_token_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Prompts of one length, [R P], and where they are text."""
    longest = max(len(prompt) for prompt in prompts)
    padded = [
        torch.nn.functional.pad(prompt.to(device), (longest - len(prompt), 0), value=pad_token_id)
        for prompt in prompts
    ]
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    columns = torch.arange(longest, device=device)
    return torch.stack(padded), columns >= (longest - lengths).unsqueeze(-1)


@dataclass(frozen=True)
class Rollout:
    """One micro-batch after its rollouts.

    Attributes:
        inputs: As the collator's, with `on_policy` [B]; what caches had stored of the old text is gone.
        continuations: What was written, a row for each True of `on_policy`; None if there is none.
    """

    inputs: dict[str, Tensor]
    continuations: Continuations | None


def roll_out(inputs: dict[str, Tensor], author: Author, how: Sampling, *, step: int) -> Rollout:
    """Replace some blocks of a micro-batch by what the author makes of their beginnings."""
    batch = Batch.from_inputs({**inputs, "stored": {}})
    device = batch.input_ids.device
    numbers = numbers_of(batch.sample_ids.tolist(), seed=how.seed, step=step, max_new_tokens=how.max_new_tokens)
    on_policy = numbers.coins < how.fraction
    chosen = on_policy.nonzero().squeeze(-1).tolist()
    if not chosen:
        return Rollout({**inputs, "on_policy": on_policy.to(device)}, None)
    ids, mask, positions = (p.cpu() for p in (batch.input_ids, batch.attention_mask, batch.position_ids))
    prompts = [prompt_of(ids[row], mask[row], positions[row], how.prompt_length) for row in chosen]
    written = author.write(prompts, numbers.uniforms[on_policy].to(device), how)
    lengths = written.mask.sum(-1).tolist()
    parts = [(p, tokens[:n]) for p, tokens, n in zip(prompts, written.tokens, lengths, strict=True)]
    replaced = with_continuations(inputs, chosen, parts, pad_token_id=how.pad_token_id)
    return Rollout({**replaced, "on_policy": on_policy.to(device)}, written)

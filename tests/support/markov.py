"""A pair of small tokenizers and a teacher whose every continuation can be counted out."""

from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from collegium.alignment.token_bytes import TokenBytes
from collegium.signals.contracts import Batch, Capability, Positions, TeacherOutput
from collegium.signals.signals import DenseSignal
from collegium.teachers.defaults import TeacherDefaults


def letters_tokenizer(
    letters: str, merges: Sequence[tuple[str, str]], *, bos: bool = True
) -> PreTrainedTokenizerFast:
    """BPE over some letters, with BOS and EOS."""
    vocab = {token: i for i, token in enumerate([*letters, *(a + b for a, b in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>" if bos else None, eos_token="</s>", pad_token="</s>"
    )


class MarkovTeacher(TeacherDefaults):
    """Predicts from the last two tokens, and only what its tokenizer would write."""

    name, fingerprint = "markov", "markov"
    provides = frozenset({Capability.FULL_VOCAB, Capability.TOP_K, Capability.SAMPLES})

    def __init__(self, table: TokenBytes, seed: int = 0, sharpness: float = 1.0) -> None:
        self.table, self.seed, self.sharpness = table, seed, sharpness
        self.next_probs = cache(self._next_probs)

    def _next_probs(self, before: int, last: int) -> torch.Tensor:
        """Of the next token, [V] in float64."""
        draws = np.random.default_rng([self.seed, before + 1, last + 1]).normal(size=self.table.size)
        logits = torch.from_numpy(draws) * self.sharpness
        allowed = torch.tensor([self._can_follow(last, token) for token in range(self.table.size)])
        return logits.masked_fill(~allowed, -torch.inf).softmax(-1)

    def _can_follow(self, last: int, token: int) -> bool:
        left, right = self.table.pieces[last], self.table.pieces[token]
        if right is None:
            return token == self.table.eos
        if left is None:
            return True
        return self.table.encode([left + right])[0].tokens.tolist() == [last, token]

    def score(self, batch: Batch, positions: Positions, *, need: frozenset[Capability]) -> TeacherOutput:
        tokens, places = batch.input_ids.flatten(), batch.position_ids.flatten()
        rows = [
            self.next_probs(int(tokens[i - 1]) if places[i] > 0 else -1, int(tokens[i]))
            for i in positions.index.tolist()
        ]
        logprobs = torch.stack(rows).log() if rows else torch.zeros((0, self.table.size), dtype=torch.float64)
        return TeacherOutput(DenseSignal(logprobs))

    def continuations(self, content: bytes, num_more: int) -> Iterator[tuple[bytes, bool, float]]:
        """All texts that begin with some bytes and go on for so many more, or end, with their probabilities."""
        bos = self.table.bos
        assert bos is not None

        def go_on(before: int, last: int, text: bytes, prob: float) -> Iterator[tuple[bytes, bool, float]]:
            if len(text) >= len(content) + num_more:
                yield text, False, prob
                return
            for token, p in enumerate(self.next_probs(before, last).tolist()):
                longer = text + (self.table.pieces[token] or b"")
                if p == 0 or not (longer.startswith(content) or content.startswith(longer)):
                    continue
                if token == self.table.eos:
                    yield text, True, prob * p
                else:
                    yield from go_on(last, token, longer, prob * p)

        yield from go_on(-1, bos, b"", 1.0)


def counted_out(teacher: MarkovTeacher, student: TokenBytes, context: Sequence[int]) -> torch.Tensor:
    """Of the student's next token behind `context`, over all that the teacher may write, [V_S]."""
    probs = torch.zeros(student.size, dtype=torch.float64)
    num_more = int(student.lengths.max())
    for text, is_ended, prob in teacher.continuations(student.decode(context), num_more):
        tokens = student.encode([text])[0].tokens.tolist() + [student.eos] * is_ended
        if tokens[: len(context)] == list(context) and len(tokens) > len(context):
            probs[tokens[len(context)]] += prob
    return probs / probs.sum()

"""The inputs that every contestant gets: hidden states, heads and positions, seeded.

Random heads give logits of standard deviation `LOGIT_SCALE`, so that distributions are neither flat nor
one-hot: entropies of a few nats, as language models have, and no denormal probabilities.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from collegium.models.head import ProjectionHead
from collegium.signals.contracts import Positions
from collegium.signals.signals import ProjectedSignal


STUDENT_WIDTH = 384
TEACHER_WIDTH = 576
LOGIT_SCALE = 3.0
SEGMENT_LENGTH = 1024


@dataclass(frozen=True)
class Problem:
    """One batch after the trunks: what the loss is made from.

    Attributes:
        student_hidden: [N D], a leaf that gets a gradient.
        student_head: [V D], which gets one too.
        teacher_hidden: [N E] of each teacher.
        teacher_heads: [V E] of each teacher, frozen.
        positions: N predicted positions in segments of `SEGMENT_LENGTH`.
    """

    student_hidden: Tensor
    student_head: nn.Linear
    teacher_hidden: Sequence[Tensor]
    teacher_heads: Sequence[nn.Linear]
    positions: Positions

    @classmethod
    def build(cls, *, num_positions: int, vocab_size: int, num_teachers: int, seed: int = 0) -> "Problem":
        """Seeded random inputs; teachers differ from each other."""
        torch.manual_seed(seed)
        return cls(
            student_hidden=torch.randn(num_positions, STUDENT_WIDTH).requires_grad_(),
            student_head=_random_head(STUDENT_WIDTH, vocab_size),
            teacher_hidden=[torch.randn(num_positions, TEACHER_WIDTH) for _ in range(num_teachers)],
            teacher_heads=[
                _random_head(TEACHER_WIDTH, vocab_size).requires_grad_(False) for _ in range(num_teachers)
            ],
            positions=_random_positions(num_positions, vocab_size),
        )

    @property
    def num_positions(self) -> int:
        """N."""
        return self.student_hidden.shape[0]

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.student_head.out_features

    @property
    def num_teachers(self) -> int:
        """M."""
        return len(self.teacher_heads)

    @property
    def signals(self) -> list[ProjectedSignal]:
        """The teachers as the package takes them."""
        return [
            ProjectedSignal(hidden, ProjectionHead(head, self.vocab_size))
            for hidden, head in zip(self.teacher_hidden, self.teacher_heads, strict=True)
        ]

    def with_teachers(self, num_teachers: int) -> "Problem":
        """The same inputs with the first teachers only; memory is shared."""
        return Problem(
            self.student_hidden,
            self.student_head,
            self.teacher_hidden[:num_teachers],
            self.teacher_heads[:num_teachers],
            self.positions,
        )

    def first_positions(self, num_positions: int) -> "Problem":
        """The first positions with the same heads, for a warm-up."""
        rows = slice(0, num_positions)
        return Problem(
            self.student_hidden.detach()[rows].clone().requires_grad_(),
            self.student_head,
            [hidden[rows] for hidden in self.teacher_hidden],
            self.teacher_heads,
            Positions(**{name: value[rows] for name, value in vars(self.positions).items() if value is not None}),
        )

    def teacher_logits(self, m: int) -> Tensor:
        """All logits of one teacher, [N V]."""
        with torch.no_grad():
            logits: Tensor = self.teacher_heads[m](self.teacher_hidden[m])
        return logits

    def clear_gradients(self) -> None:
        """Forget the gradients, so that the next contestant allocates its own."""
        self.student_hidden.grad = None
        self.student_head.weight.grad = None

    def gradients(self) -> tuple[Tensor, Tensor]:
        """Copies of the gradients of hidden states and head."""
        assert self.student_hidden.grad is not None, "a contestant ran"
        assert self.student_head.weight.grad is not None, "a contestant ran"
        return self.student_hidden.grad.clone(), self.student_head.weight.grad.clone()


def _random_head(width: int, vocab_size: int) -> nn.Linear:
    head = nn.Linear(width, vocab_size, bias=False)
    nn.init.normal_(head.weight, std=LOGIT_SCALE / math.sqrt(width))
    return head


def _random_positions(num_positions: int, vocab_size: int) -> Positions:
    index = torch.arange(num_positions)
    return Positions(
        index=index,
        labels=torch.randint(vocab_size, (num_positions,)),
        segments=index // SEGMENT_LENGTH,
        offsets=index % SEGMENT_LENGTH,
    )

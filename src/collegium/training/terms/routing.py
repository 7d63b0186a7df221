"""A router: teacher weights that are learned from what the student's own state says of the text.

It predicts, from the student's last hidden state at a position and nothing else, which teacher will be
right there: its target is softmax(-NLL / tau) over teachers, NLL being each one's loss on the label. So it
can weigh teachers where labels are not known, and costs one product of [N D] with [D M]. The weights enter
the distillation loss without gradient: they learn from their own loss alone, and the student's states are
not bent to please the router.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from collegium.training.module import TrainedModule


class Router(TrainedModule):
    """Scores teachers at each position.

    Args:
        hidden_size: Student's width.
        num_teachers: How many there are.
        tau: Sharpness of what it learns, in nats; small: the best teacher alone.
        loss_weight: Weight of its own loss beside that of the student.
    """

    def __init__(self, hidden_size: int, num_teachers: int, *, tau: float = 1.0, loss_weight: float = 1.0) -> None:
        super().__init__()
        if not tau > 0.0:
            raise ValueError(f"the router's tau is {tau}; it must be above 0")
        self.norm = nn.LayerNorm(hidden_size, elementwise_affine=False)
        self.scores = nn.Linear(hidden_size, num_teachers)
        nn.init.zeros_(self.scores.weight)  # uniform at first
        nn.init.zeros_(self.scores.bias)
        self.tau = tau
        self.loss_weight = loss_weight

    def forward(self, student_hidden: Float[Tensor, "N D"]) -> Float[Tensor, "N M"]:
        """Scores whose softmax are the weights; the student gets no gradient from them."""
        scores: Tensor = self.scores(self.norm(student_hidden.detach().to(self.scores.weight.dtype)))
        return scores

    def loss(
        self, scores: Float[Tensor, "N M"], cross_entropy: Float[Tensor, "N M"], valid: Bool[Tensor, "N M"]
    ) -> Float[Tensor, ""]:
        """Sum over positions of the cross-entropy to softmax(-cross_entropy / tau) over valid teachers."""
        return router_loss(scores, cross_entropy, valid, tau=self.tau)


def router_loss(
    scores: Float[Tensor, "N M"],
    cross_entropy: Float[Tensor, "N M"],
    valid: Bool[Tensor, "N M"],
    *,
    tau: float,
) -> Float[Tensor, ""]:
    """See `Router.loss`. Positions where no teacher is valid cost nothing."""
    some = valid.any(-1, keepdim=True)
    usable = valid | ~some  # a row without any gets some softmax, not a NaN
    lowest = torch.finfo(scores.dtype).min
    predicted = scores.masked_fill(~usable, lowest).log_softmax(-1)
    target = (-cross_entropy.to(scores.dtype) / tau).masked_fill(~usable, lowest).softmax(-1)
    losses = -torch.where(usable, target * predicted, 0.0).sum(-1, keepdim=True)
    return torch.where(some, losses, 0.0).sum()

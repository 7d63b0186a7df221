"""Other libraries' distillation losses, called once per teacher: none of them fuses several.

They do less than ours: no mixture, no weights, and cross-entropy only in Liger's. Each is used in the way
that suits it best: the student's logits are made once for all teachers where the loss takes logits, labels
are left out where they only mask, and the divergence is the forward KL that ours computes, with TRL's and
Liger's default, the Jensen-Shannon divergence, beside it. A library that cannot be imported is skipped.
"""

import os
from collections.abc import Callable, Sequence
from importlib import import_module

import torch
from torch import Tensor

from benchmarks.contestants import KD_WEIGHT, Contestant
from benchmarks.problem import Problem


PIECES = 8  # torchtune's default number of chunks
FORWARD_KL, JENSEN_SHANNON = 0.0, 0.5  # the divergence's beta, in TRL and Liger

DenseLoss = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]
"""(student's logits, teacher's logits), in pieces that are [n V] each, to a scalar."""


def load_peers(names: Sequence[str] | None = None) -> dict[str, Contestant | None]:
    """Peers by name, all if None; a peer is None where its library cannot be used, and a line says why."""
    peers: dict[str, Contestant | None] = {}
    for name in _LOADERS if names is None else names:
        try:
            peers[name] = _LOADERS[name]()
        except Exception as error:  # a broken import may raise anything
            print(f"skipped {name}: {type(error).__name__}: {error}".splitlines()[0], flush=True)
            peers[name] = None
    return peers


def trl_gkd(beta: float) -> Contestant:
    """TRL's GKD: the static loss of its trainer, on all logits."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    module = import_module("trl.experimental.gkd")

    def loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        value: Tensor = module.GKDTrainer.generalized_jsd_loss(student[0], teacher[0], beta=beta)
        return value

    return lambda problem: _add_dense_gradients(problem, loss)


def trl_chunked(beta: float) -> Contestant:
    """TRL's divergence from hidden states, in tiles; without Triton its torch fall-back."""
    module = import_module("trl.kernels.chunked_divergence")

    def run(problem: Problem) -> None:
        for hidden, head in zip(problem.teacher_hidden, problem.teacher_heads, strict=True):
            student = (problem.student_hidden, problem.student_head.weight, None)
            divergence, _ = module.ChunkedDivergenceFunction.apply(*student, hidden, head.weight, None, beta)
            divergence.mean().backward()

    return run


def liger(beta: float, *, chunk_size: int) -> Contestant:
    """Liger's fused linear JSD, compiled as by default; cross-entropy comes with the first teacher only."""
    module = import_module("liger_kernel.chunked_loss")

    def build(hard: float) -> Callable[..., Tensor]:
        loss: Callable[..., Tensor] = module.LigerFusedLinearJSDLoss(
            weight_hard_loss=hard,
            weight_soft_loss=KD_WEIGHT,
            beta=beta,
            chunk_size=chunk_size,
        )
        return loss

    losses = (build(1.0 - KD_WEIGHT), build(0.0))

    def run(problem: Problem) -> None:
        student = (problem.student_hidden, problem.student_head.weight)
        for m in range(problem.num_teachers):
            teacher = (problem.teacher_hidden[m], problem.teacher_heads[m].weight)
            losses[min(m, 1)](*student, *teacher, problem.positions.labels).backward()

    return run


def torchtune() -> Contestant:
    """torchtune's forward KL over chunked outputs."""
    module = import_module("torchtune.modules.loss.kd_losses")

    chunked = module.ForwardKLWithChunkedOutputLoss(num_output_chunks=PIECES)

    def run(problem: Problem) -> None:
        labels = problem.positions.labels.unsqueeze(0)
        _add_dense_gradients(problem, lambda s, t: chunked(_batch(s), _batch(t), labels), pieces=PIECES)

    return run


def modelopt() -> Contestant:
    """NVIDIA Model Optimizer's loss on logits."""
    module = import_module("modelopt.torch.distill.losses")

    loss = module.LogitsDistillationLoss(reduction="batchmean")
    return lambda problem: _add_dense_gradients(problem, lambda s, t: loss(s[0], t[0]))


def _add_dense_gradients(problem: Problem, loss: DenseLoss, *, pieces: int = 1) -> None:
    """Gradient of a loss that takes logits, summed over teachers, with one pass through the head."""
    logits = [problem.student_head(hidden) for hidden in problem.student_hidden.chunk(pieces)]
    if problem.num_teachers == 1:
        loss(logits, _teacher_pieces(problem, 0, pieces)).backward()
        return
    leaves = [piece.detach().requires_grad_() for piece in logits]
    for m in range(problem.num_teachers):
        loss(leaves, _teacher_pieces(problem, m, pieces)).backward()
    torch.autograd.backward(logits, [leaf.grad for leaf in leaves])


def _teacher_pieces(problem: Problem, m: int, pieces: int) -> list[Tensor]:
    head, hidden = problem.teacher_heads[m], problem.teacher_hidden[m]
    with torch.no_grad():
        return [head(chunk) for chunk in hidden.chunk(pieces)]


def _batch(pieces: Sequence[Tensor]) -> list[Tensor]:
    return [piece.unsqueeze(0) for piece in pieces]


_LOADERS: dict[str, Callable[[], Contestant]] = {
    "trl_gkd": lambda: trl_gkd(FORWARD_KL),
    "trl_gkd_jsd": lambda: trl_gkd(JENSEN_SHANNON),
    "trl_chunked": lambda: trl_chunked(FORWARD_KL),
    "liger": lambda: liger(FORWARD_KL, chunk_size=256),
    "liger_jsd": lambda: liger(JENSEN_SHANNON, chunk_size=1024),
    "torchtune": torchtune,
    "modelopt": modelopt,
}

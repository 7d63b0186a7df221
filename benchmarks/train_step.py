"""Time and peak memory of a whole optimizer step: trunks, heads, loss, backward, AdamW.

Teachers of SmolLM2-135M's size and a student of 31.5 million parameters with random weights, one batch of
1024 tokens, float32; the same models, optimizer and tokens for every step, in turns. TRL's is the
step of its real GKDTrainer on given text (`lmbda=0`) with the forward KL, so that both compute the
same divergence; `trl_gkd_jsd` is the same trainer with its default. TRL has one teacher and no
cross-entropy. Peaks are over models, optimizer state and batch, and hold the student's gradients.

    python -m benchmarks.train_step [--quick] [--sequences 1] [--tokens 1024] [--rounds 5]
"""

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import kl_div, nll_loss
from transformers import PreTrainedModel

from benchmarks.contestants import KD_WEIGHT
from benchmarks.measure import (
    Samples,
    describe_memory_check,
    median_seconds,
    peak_mb,
    peak_ratio,
    rounded,
    take_turns,
    time_ratio,
)
from benchmarks.models import STUDENT, TEACHER, VOCAB_SIZE, build_model, num_parameters
from benchmarks.peers import FORWARD_KL, JENSEN_SHANNON
from benchmarks.trl_step import trl_gkd_step
from collegium.losses.teacher_weights import group_mean
from collegium.losses.weighting import Weighting
from collegium.signals.contracts import Batch, ItemCounts, Teacher, predicted_positions
from collegium.teachers.local import LocalTeacher
from collegium.training.model import DistillationModel
from collegium.training.objective import Objective


QUICK_SECONDS = 40.0
NUM_TEACHERS = 3
Step = Callable[[], object]


@dataclass(frozen=True)
class Setting:
    """What all steps share."""

    student: PreTrainedModel
    teachers: Sequence[PreTrainedModel]
    optimizer: torch.optim.Optimizer
    batch: Batch

    @classmethod
    def build(cls, *, sequences: int, tokens: int, vocab_size: int) -> "Setting":
        """Random models and tokens."""
        teachers = [build_model(TEACHER, seed=m, vocab_size=vocab_size) for m in range(1, NUM_TEACHERS + 1)]
        student = build_model(STUDENT, seed=0, vocab_size=vocab_size).train()
        for teacher in teachers:
            teacher.eval().requires_grad_(False)
        input_ids = torch.randint(2, vocab_size, (sequences, tokens))
        batch = Batch(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids, dtype=torch.bool),
            labels=input_ids.clone(),
            position_ids=torch.arange(tokens).expand(sequences, tokens),
            sample_ids=torch.arange(sequences),
        )
        return cls(student, teachers, torch.optim.AdamW(student.parameters(), lr=1e-5), batch)

    def forget_gradients(self) -> None:
        """As after a step: no gradient is alive."""
        self.optimizer.zero_grad(set_to_none=True)

    def update(self, loss: Tensor) -> None:
        """Backward and the optimizer's step."""
        loss.backward()
        self.optimizer.step()


def fused_step(setting: Setting, num_teachers: int) -> Step:
    """The package's own model, objective and teachers, called as its trainer calls them; 0: cross-entropy."""
    vocab_size = setting.student.config.vocab_size
    teachers: list[Teacher] = [
        LocalTeacher(f"teacher-{m}", model, vocab_size=vocab_size, fingerprint=str(m))
        for m, model in enumerate(setting.teachers[:num_teachers])
    ]
    objective = Objective([t.name for t in teachers], kd_weight=KD_WEIGHT if teachers else 0.0)
    model = DistillationModel(setting.student, objective, vocab_size=vocab_size)

    def step() -> None:
        batch = setting.batch
        positions = predicted_positions(batch)
        counts = ItemCounts(torch.tensor(len(positions)), batch.attention_mask.sum())
        need = objective.need
        outputs = [teacher.score(batch, positions, need=need) for teacher in teachers] if need else []
        setting.update(model(batch, positions, outputs, counts).loss)

    return step


def naive_step(setting: Setting, num_teachers: int) -> Step:
    """Full logits of one teacher after the other, mixed by entropy; plain autograd. 0: cross-entropy."""

    def step() -> None:
        target = _mixture(setting, num_teachers) if num_teachers else None
        logits = setting.student(input_ids=setting.batch.input_ids, use_cache=False).logits
        logprobs = logits[:, :-1].flatten(0, 1).log_softmax(-1)
        del logits
        loss = nll_loss(logprobs, setting.batch.labels[:, 1:].flatten())
        if target is not None:
            kd = kl_div(logprobs, target, reduction="batchmean")
            loss = KD_WEIGHT * kd + (1.0 - KD_WEIGHT) * loss
        setting.update(loss)

    return step


@torch.no_grad()
def _mixture(setting: Setting, num_teachers: int) -> Tensor:
    """Mixture of the teachers' distributions, [N V]."""
    weighting = Weighting()
    groups = weighting.groups(predicted_positions(setting.batch))
    assert groups is not None, "the default weighting averages over windows"
    mixture, total = torch.zeros(()), torch.zeros(())
    for teacher in setting.teachers[:num_teachers]:
        logits = teacher(input_ids=setting.batch.input_ids, use_cache=False).logits
        logprobs = logits[:, :-1].flatten(0, 1).log_softmax(-1)
        del logits
        probs = logprobs.exp()
        entropies = -(logprobs.mul_(probs)).sum(-1, keepdim=True)
        mean, _ = group_mean(entropies, torch.ones_like(entropies, dtype=torch.bool), groups)
        # Relative to the entropy of a uniform distribution, so that the exponential does not vanish.
        score = ((math.log(probs.shape[-1]) - mean) / weighting.tau).exp()
        mixture, total = mixture + probs.mul_(score), total + score
    return mixture / total


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print; the last line is JSON."""
    options = _parse(arguments)
    setting = Setting.build(sequences=options.sequences, tokens=options.tokens, vocab_size=options.vocab_size)
    sizes = {"student": num_parameters(setting.student), "teacher": num_parameters(setting.teachers[0])}
    print(f"{torch.get_num_threads()} threads, batch {tuple(setting.batch.input_ids.shape)}, parameters {sizes}")
    print(describe_memory_check(), flush=True)
    steps = _steps(setting, quick=options.quick)
    for name in ("fused_1",) if options.quick else steps:  # compiles, and allocates AdamW's state
        setting.forget_gradients()
        steps[name]()
    until = QUICK_SECONDS if options.quick else float("inf")
    samples = take_turns(steps, rounds=options.rounds, before=setting.forget_gradients, until=until)
    _print_table(samples)
    setup = {"batch": list(setting.batch.input_ids.shape), "parameters": sizes, "quick": options.quick}
    print(json.dumps(rounded({**_figures(samples), "setup": {**setup, "threads": torch.get_num_threads()}})))


def _steps(setting: Setting, *, quick: bool) -> dict[str, Step]:
    steps = {"fused_1": fused_step(setting, 1), "naive_1": naive_step(setting, 1)}
    betas = {"trl_gkd": FORWARD_KL} if quick else {"trl_gkd": FORWARD_KL, "trl_gkd_jsd": JENSEN_SHANNON}
    for name, beta in betas.items():
        step = trl_gkd_step(setting.student, setting.teachers[0], setting.optimizer, setting.batch, beta=beta)
        if step is not None:
            steps[name] = step
    steps |= {"fused_3": fused_step(setting, 3), "naive_3": naive_step(setting, 3)}
    if not quick:
        steps |= {"fused_cross_entropy": fused_step(setting, 0), "naive_cross_entropy": naive_step(setting, 0)}
    return steps


def _figures(samples: Samples) -> dict[str, object]:
    steps = {name: {"time_s": median_seconds(taken), "peak_mb": peak_mb(taken)} for name, taken in samples.items()}
    return {
        "speedup_vs_trl_gkd": time_ratio(samples, "trl_gkd", "fused_1"),
        "peak_vs_trl_gkd": peak_ratio(samples, "fused_1", "trl_gkd"),
        "speedup_vs_trl_gkd_jsd": time_ratio(samples, "trl_gkd_jsd", "fused_1"),
        "peak_vs_trl_gkd_jsd": peak_ratio(samples, "fused_1", "trl_gkd_jsd"),
        "speedup_vs_naive_m1": time_ratio(samples, "naive_1", "fused_1"),
        "peak_vs_naive_m1": peak_ratio(samples, "fused_1", "naive_1"),
        "speedup_vs_naive_m3": time_ratio(samples, "naive_3", "fused_3"),
        "peak_vs_naive_m3": peak_ratio(samples, "fused_3", "naive_3"),
        "rounds": len(samples["fused_1"]),
        "steps": steps,
    }


def _print_table(samples: Samples) -> None:
    print(f"\n{'':22}{'time s':>9}{'peak MB':>9}")
    for name, taken in samples.items():
        print(f"{name:22}{median_seconds(taken):9.3f}{peak_mb(taken) or float('nan'):9.0f}")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A whole optimizer step, against a naive one and TRL's.")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and steps")
    parser.add_argument("--sequences", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--vocab-size", type=int, default=VOCAB_SIZE)
    parser.add_argument("--rounds", type=int, help="rounds, at most (5; quick: 2)")
    options = parser.parse_args(arguments)
    options.rounds = options.rounds or (2 if options.quick else 5)
    return options


if __name__ == "__main__":
    main()

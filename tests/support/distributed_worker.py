"""Run by torchrun on two gloo ranks: losses, gradients and weights go to a folder for the test to compare."""

import json
import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist


sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from safetensors.torch import save_file
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainerCallback

from collegium.data.collate import BlockCollator
from collegium.losses.weighting import Weighting
from collegium.signals.contracts import Batch, ItemCounts, predicted_positions
from collegium.teachers.local import LocalTeacher
from collegium.training.callbacks import StopOnSignal, Stopped
from collegium.training.checkpoint import CheckpointDirectory, TrainingState, load_model_state
from collegium.training.model import DistillationModel
from collegium.training.objective import Objective
from collegium.training.on_policy import OnPolicy, PolicyGradient
from collegium.training.rollout import Sampling
from collegium.training.terms.features import HiddenStatesTerm
from collegium.training.trainer import DistillationTrainer
from tests.support.pico import byte_tokenizer, pico_llama
from tests.support.runs import arguments, packed, trainer_of, weights_of


def make_model() -> DistillationModel:
    torch.manual_seed(7)
    feature = HiddenStatesTerm((32, 2), [(32, 2)] * 2)
    objective = Objective(
        ["a", "b"],
        weighting=Weighting("entropy", "sequence", 0.5),
        feature_weight=0.1,
        features=[feature],
        chunk_size=13,
    )
    return DistillationModel(pico_llama(0), objective, vocab_size=260)


def make_batch(indices: range) -> Batch:
    blocks = packed()
    return Batch.from_inputs(BlockCollator(pad_token_id=258)([blocks[i] for i in indices]))


def backward(model: nn.Module, batches: list[Batch], indices: range, *, scale: int) -> torch.Tensor:
    """Loss and backward of the blocks `indices`, divided by the counts of all `batches`."""
    teachers = [LocalTeacher(n, pico_llama(s), vocab_size=260, fingerprint=n) for s, n in ((1, "a"), (2, "b"))]
    counts = ItemCounts(
        torch.tensor(sum(len(predicted_positions(b)) for b in batches)),
        torch.tensor(sum(int(b.attention_mask.sum()) for b in batches)),
    )
    batch = make_batch(indices)
    positions = predicted_positions(batch)
    need = make_model().objective.need
    outputs = [teacher.score(batch, positions, need=need) for teacher in teachers]
    loss = model(batch, positions, outputs, counts).loss * scale
    loss.backward()
    return loss.detach() / scale


# Ragged: the last block is shorter, and ranks get unequal numbers of blocks.
SHARES = (range(0, 5), range(5, 8))
ALL = range(0, 8)


def full_gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    grads = {}
    for name, parameter in model.named_parameters():
        grad = parameter.grad
        assert grad is not None, name
        grads[name.removeprefix("module.")] = (
            grad.full_tensor() if isinstance(grad, DTensor) else grad
        ).contiguous()
    return grads


def shard(model: DistillationModel) -> DistillationModel:
    for layer in model.student.model.layers:
        fully_shard(layer)
    fully_shard(model)
    assert all(isinstance(p, DTensor) for p in model.parameters())
    return model


def measure(kind: str, folder: Path) -> None:
    """Gradient of one step over both ranks."""
    model: nn.Module = make_model()
    model = DistributedDataParallel(model) if kind == "ddp" else shard(model)
    rank = dist.get_rank()
    loss = backward(model, [make_batch(share) for share in SHARES], SHARES[rank], scale=2)
    dist.all_reduce(loss)
    grads = full_gradients(model)
    if rank == 0:
        save_file(grads, folder / f"{kind}.safetensors")
        (folder / f"{kind}.json").write_text(json.dumps(float(loss)))


def checkpoint_of_shards(folder: Path) -> None:
    """A sharded model's checkpoint, loaded into another sharded model, gives the same next step."""

    def step(model: DistillationModel, optimizer: torch.optim.Optimizer) -> None:
        backward(model, [make_batch(share) for share in SHARES], SHARES[dist.get_rank()], scale=2)
        optimizer.step()
        optimizer.zero_grad()

    first = shard(make_model())
    optimizer = torch.optim.AdamW(first.parameters(), lr=1e-2)
    step(first, optimizer)
    directory = CheckpointDirectory(folder / "shards")
    directory.save(TrainingState(first, optimizer, {}, {}), 1, write=dist.get_rank() == 0)
    dist.barrier()
    second = shard(make_model())
    other = torch.optim.AdamW(second.parameters(), lr=1e-2)
    path = directory.newest_whole()
    assert path is not None
    load_model_state(second, path)
    TrainingState(second, other, {}, {}).load_optimizer(path)
    step(first, optimizer)
    step(second, other)
    same = all(
        torch.equal(a.full_tensor(), b.full_tensor())
        for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )
    if dist.get_rank() == 0:
        (folder / "shards.json").write_text(json.dumps(same))


def train(folder: Path) -> None:
    """Three steps of the whole trainer, stopped after two and resumed."""
    objective = make_model().objective
    options = {"max_steps": 3, "save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-3}
    trainer = trainer_of(folder / "trained", objective=objective, per_device_train_batch_size=4, **options)
    trainer.train()
    again = trainer_of(
        folder / "trained", objective=make_model().objective, per_device_train_batch_size=4, **options
    )
    dist.barrier()
    again.train(resume_from_checkpoint=True)
    same = all(torch.equal(value, weights_of(again)[name]) for name, value in weights_of(trainer).items())
    if dist.get_rank() == 0:
        save_file(weights_of(trainer), folder / "trainer.safetensors")
        losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
        read = [
            {key: count for key, count in used.state.log_history[-1].items() if key.startswith("read/")}
            for used in (trainer, again)
        ]
        content = {"losses": losses, "resumed_is_same": same, "read": read}
        (folder / "trainer.json").write_text(json.dumps(content))


def train_on_policy(folder: Path) -> None:
    """Two steps on text that the student writes, with rewards whitened over both ranks."""
    trainer = on_policy_trainer(folder / "on-policy", batch_size=4)
    trainer.train()
    if dist.get_rank() == 0:
        save_file(weights_of(trainer), folder / "on-policy.safetensors")


def on_policy_trainer(folder: Path, *, batch_size: int) -> DistillationTrainer:
    """A policy gradient with a share of the teachers in the sampling, and corpus beside it."""
    sampling = Sampling(0.5, 8, 8, teacher_share=0.2, stop_token_id=257, pad_token_id=258)
    return DistillationTrainer(
        pico_llama(0),
        teachers=[pico_llama(1), pico_llama(2)],
        args=arguments(folder, max_steps=2, learning_rate=1e-3, per_device_train_batch_size=batch_size),
        train_dataset=packed(),
        processing_class=byte_tokenizer(),
        on_policy=OnPolicy(sampling, PolicyGradient()),
    )


def stop(folder: Path) -> None:
    """A signal that reaches the ranks at different steps ends both after the same one."""
    signals = StopOnSignal()

    class Kill(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            if state.global_step == 2 + dist.get_rank():
                os.kill(os.getpid(), signal.SIGTERM)

    trainer = trainer_of(folder / "stopped", max_steps=50, per_device_train_batch_size=2)
    trainer.add_callback(Kill())
    trainer.add_callback(signals)
    with signals.listening():
        trainer.train()
    try:
        signals.raise_if_stopped(trainer.state.global_step)
    except Stopped as stopped:
        result = {"step": trainer.state.global_step, "exit_code": stopped.exit_code}
        (folder / f"stopped-{dist.get_rank()}.json").write_text(json.dumps(result))


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    measure("ddp", folder)
    measure("fsdp", folder)
    checkpoint_of_shards(folder)
    train(folder)
    train_on_policy(folder)
    stop(folder)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

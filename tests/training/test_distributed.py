"""Two gloo ranks give what one process gives, under DDP, under fully_shard and in the whole trainer."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.distributed_worker import (
    ALL,
    backward,
    full_gradients,
    make_batch,
    make_model,
    on_policy_trainer,
)
from tests.support.runs import trainer_of, weights_of


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """What the worker left; run once, also where pytest itself runs in several processes."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "two-ranks"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            run_worker(folder)
            (folder / "done").touch()
    return folder


def run_worker(folder: Path) -> None:
    worker = Path(__file__).parents[1] / "support" / "distributed_worker.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", worker, folder]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-8000:]


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_loss_and_gradient_are_those_of_one_process(two_ranks, kind):
    model = make_model()
    loss = backward(model, [make_batch(ALL)], ALL, scale=1)
    assert json.loads((two_ranks / f"{kind}.json").read_text()) == pytest.approx(float(loss), rel=1e-6)
    theirs = load_file(two_ranks / f"{kind}.safetensors")
    ours = full_gradients(model)
    assert theirs.keys() == ours.keys()
    for name, grad in ours.items():
        assert torch.allclose(grad, theirs[name], rtol=1e-4, atol=1e-7), name


def test_checkpoint_of_a_sharded_model_resumes_exactly(two_ranks):
    assert json.loads((two_ranks / "shards.json").read_text()) is True


def test_trainer_on_two_ranks_is_one_process_with_the_whole_batch(two_ranks, tmp_path):
    result = json.loads((two_ranks / "trainer.json").read_text())
    assert result["resumed_is_same"] is True
    ours = trainer_of(
        tmp_path, objective=make_model().objective, per_device_train_batch_size=8, max_steps=3, learning_rate=1e-3
    )
    ours.train()
    losses = [line["loss"] for line in ours.state.log_history if "loss" in line]
    assert result["losses"] == pytest.approx(losses, rel=1e-5)
    read = {key: count for key, count in ours.state.log_history[-1].items() if key.startswith("read/")}
    assert read["read/blocks"] == 24 and result["read"] == [read, read], "on two ranks, and resumed there"
    theirs = load_file(two_ranks / "trainer.safetensors")
    for name, value in weights_of(ours).items():
        assert torch.allclose(value, theirs[name], atol=2e-5), name


def test_one_process_goes_on_where_two_ranks_stopped(two_ranks, tmp_path):
    """The same samples a step, so the same blocks; sums in another order."""
    folder = shutil.copytree(two_ranks / "trained", tmp_path / "run")
    shutil.rmtree(folder / "checkpoint-3", ignore_errors=True)
    options = {"max_steps": 3, "save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-3}
    ours = trainer_of(folder, objective=make_model().objective, per_device_train_batch_size=8, **options)
    ours.train(resume_from_checkpoint=True)
    theirs = load_file(two_ranks / "trainer.safetensors")
    for name, value in weights_of(ours).items():
        assert torch.allclose(value, theirs[name], atol=2e-5), name
    origin = json.loads((folder / "checkpoint-2" / "origin.json").read_text())
    assert origin["samples"] == 16
    assert origin["split"] == {"processes": 2, "batch_size": 4, "accumulation": 1}


def test_on_policy_steps_on_two_ranks_are_those_of_one_process(two_ranks, tmp_path):
    ours = on_policy_trainer(tmp_path, batch_size=8)
    ours.train()
    theirs = load_file(two_ranks / "on-policy.safetensors")
    for name, value in weights_of(ours).items():
        assert torch.allclose(value, theirs[name], atol=2e-5), name


def test_a_signal_ends_both_ranks_after_the_same_step(two_ranks):
    results = [json.loads((two_ranks / f"stopped-{rank}.json").read_text()) for rank in (0, 1)]
    assert results[0] == results[1] == {"step": 3, "exit_code": 143}
    assert (two_ranks / "stopped" / "checkpoint-3" / "manifest.json").exists()

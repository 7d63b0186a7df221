"""A process that has imported everything and forks a training run for each line on stdin.

A line is JSON: `folder`, and `crash_at` if the run shall end like a power cut at its n-th file system
call. The answer is the child's pid, then its exit status, a line each. One thread, so that forking is
safe.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from safetensors.torch import save
from transformers import PrinterCallback

from collegium.training import checkpoint
from collegium.training.callbacks import MetricsFile
from tests.support.pico import pico_llama
from tests.support.runs import trainer_of, weights_of


STEPS = 6


def train(folder: Path) -> None:
    """A run with dropout that writes a checkpoint after every step; resumes by itself."""
    trainer = trainer_of(
        folder,
        student=pico_llama(0, dropout=0.2),
        max_steps=STEPS,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=2,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(MetricsFile(folder / "metrics.jsonl"))
    trainer.train(resume_from_checkpoint=True)
    (folder / "weights.safetensors").write_bytes(save(weights_of(trainer)))


def crash_at(number: int) -> None:
    """End the process at the n-th call that changes the file system."""
    calls = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == number:
                os._exit(9)
            return function(*args, **kwargs)

        return call

    os.fsync = counted(os.fsync)
    Path.rename = counted(Path.rename)
    Path.replace = counted(Path.replace)
    shutil.rmtree = counted(shutil.rmtree)
    checkpoint.save_file = counted(checkpoint.save_file)


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            try:
                if "crash_at" in order:
                    crash_at(order["crash_at"])
                train(Path(order["folder"]))
            except BaseException as error:  # the answer must be an exit status, not a second copy of this loop
                print(repr(error), file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()

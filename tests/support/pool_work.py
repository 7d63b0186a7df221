"""Work for a pool of processes, and a program that has one: `pool_work.py FOLDER`."""

import os
import sys
import time
from pathlib import Path

from collegium.paper.workers import finished, worker_pool


def mark(path: Path) -> None:
    """Write the number of threads and what the process sees to a file."""
    import torch

    path.write_text(f"{os.getpid()} {torch.get_num_threads()}")
    print(f"wrote {path.name}", file=sys.stderr)


def fail_or_linger(path: Path) -> None:
    """Fail, or say who is there and stay."""
    if path.name == "bad":
        while not path.with_name("slow").exists():
            time.sleep(0.05)
        raise ValueError("this one is bad")
    linger(path)


def linger(path: Path) -> None:
    """Say who is there and stay."""
    path.with_suffix(".tmp").write_text(str(os.getpid()))
    path.with_suffix(".tmp").rename(path)
    time.sleep(120)


def end_at_once(path: Path) -> None:
    """As a process that is killed."""
    os._exit(9)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    with worker_pool(2, folder / "logs") as workers:
        list(finished(workers, linger, [folder / "one", folder / "two"]))

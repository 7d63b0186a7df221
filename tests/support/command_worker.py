"""A process that has imported everything and forks `collegium` for each line on stdin.

A line is JSON: `words` of the command line, `folder` to run in, `log` that gets what it prints. If wanted:
`ranks`, several of which a process starts that is no more than a launcher; `die_at`, the number of the change to a
file before which it kills itself; `count`, a file that gets the number of such changes; `settings` of modules, by
`module:name`; `nohup`; `terminal`, for one whose other side is closed by SIGUSR1 to this process. The answer is
the pid, then the exit status, a line each. What is started leads a process group.
"""

import gc
import importlib
import json
import os
import pty
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any


sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from collegium.cli.app import main as collegium


PRELOADED = [f"collegium.pipeline.{name}" for name in ("train", "evaluate", "export", "prepare", "cache")]

CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "shutil.rmtree")


def is_change(event: str, arguments: tuple[Any, ...]) -> bool:
    """Whether Python is about to change a file, or to open one that it will change."""
    if event == "open":
        return bool(arguments[2] & (os.O_WRONLY | os.O_RDWR)) and not str(arguments[0]).startswith("/dev/")
    return event in CHANGES


def watch_changes(die_at: int | None) -> list[str]:
    """Note changes of files from now on, and die before the one that is asked for, as by a power cut."""
    seen: list[str] = []

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if is_change(event, arguments):
            seen.append(event)
            if len(seen) == die_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return seen


def run(order: dict[str, Any]) -> int:
    """One command in this process."""
    os.chdir(order["folder"])
    for name, value in order.get("settings", {}).items():
        module, attribute = name.split(":")
        setattr(importlib.import_module(module), attribute, value)
    seen = watch_changes(order.get("die_at")) if {"die_at", "count"} & order.keys() else []
    sys.argv = ["collegium", *order["words"]]
    code = collegium()
    if "count" in order:
        Path(order["count"]).write_text(str(len(seen)))
    return code


def launch(order: dict[str, Any]) -> int:
    """Several ranks; the first exit code that is not 0."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(order["ranks"])}
    os.environ.update(shared, TORCHELASTIC_RUN_ID="none", LOCAL_WORLD_SIZE=str(order["ranks"]))
    ranks = []
    for rank in range(order["ranks"]):
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
        ranks.append(in_child(lambda: run(order)))
    Path(order["log"] + ".ranks").write_text(" ".join(map(str, ranks)))
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in ranks]
    return next((code for code in codes if code), 0)


def in_child(action: Any) -> int:
    """Pid of a child that ends with the exit code that `action` returns."""
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        code = action()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def start(order: dict[str, Any]) -> tuple[int, int | None]:
    """Pid of what was started, and its terminal's other side."""
    masters = pty.openpty() if order.get("terminal") else None

    def work() -> int:
        if masters is None:
            os.setpgid(0, 0)
            output = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        else:
            os.setsid()
            os.close(masters[0])
            output = os.open(os.ttyname(masters[1]), os.O_RDWR)  # the first that a session opens is its terminal
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        if order.get("nohup"):
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        for stream in (1, 2):
            os.dup2(output, stream)
        return launch(order) if order.get("ranks", 1) > 1 else run(order)

    pid = in_child(work)
    if masters is None:
        os.setpgid(pid, pid)  # here too: whoever reads the pid may signal the group at once
        return pid, None
    os.close(masters[1])
    return pid, masters[0]


def serve() -> None:
    """Answer the lines."""
    closing: list[int] = []
    signal.signal(signal.SIGUSR1, lambda *_: os.close(closing.pop()))
    for line in sys.stdin:
        pid, master = start(json.loads(line))
        if master is not None:
            closing.append(master)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in PRELOADED:
        importlib.import_module(name)
    gc.freeze()  # or each child looks through all that was imported again and again
    serve()
    os._exit(0)  # what was imported takes seconds to end in order

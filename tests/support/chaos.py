"""Commands that are killed, asked to stop or cut off from their files again and again, and what must come out.

A trial is a folder of its own: the same command is started there some times and ended at a random moment, then
left alone once. What it leaves must then be what an undisturbed command leaves, file by file and bit by bit. In
between, whatever others may read is whole.
"""

import json
import os
import random
import re
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.forked_command import CommandWorker, ForkedCommand


WISHES = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

Content = dict[str, bytes]


@dataclass(frozen=True)
class Target:
    """A command under test.

    Attributes:
        name: Its name.
        words: The command line, which a trial runs in its own folder.
        arrange: Makes what the command needs in the folder of a trial.
        content: What the command leaves there, without what differs from run to run.
        intact: Raises if something that others may read is damaged; called after each end.
        done: Whether all is there, and the command would refuse to make it again.
        ranks: Number of processes.
        draws: Words that a trial draws one of, and keeps.
    """

    name: str
    words: tuple[str, ...]
    content: Callable[[Path], Content]
    arrange: Callable[[Path], None] = lambda folder: None
    intact: Callable[[Path], None] = lambda folder: None
    done: Callable[[Path], bool] = lambda folder: False
    ranks: int = 1
    draws: tuple[tuple[str, ...], ...] = ((),)


@dataclass(frozen=True)
class Reference:
    """An undisturbed run: what it leaves, how many seconds a core works for it, and how often it changes files."""

    content: Content
    seconds: float
    changes: int


@dataclass
class Chaos:
    """Trials of one target.

    Attributes:
        worker: Starts commands.
        target: What is tried.
        root: Folder of the trials.
        seed: Of all that is random here.
        ends: How often a command was ended, by way.
    """

    worker: CommandWorker
    target: Target
    root: Path
    seed: int
    ends: Counter[str] = field(default_factory=Counter)

    def run(self, num_kills: int) -> None:
        """Try until the command was ended so often; says where it is once in a while.

        Raises:
            AssertionError: with seed and trial, if something came out wrong. Its folder stays.
        """
        generator = random.Random(self.seed)
        references = {drawn: self._reference(drawn) for drawn in self.target.draws}
        begun = said = time.monotonic()
        trial = 0
        while self.ends.total() < num_kills:
            folder = self.root / f"{self.target.name}-{trial}"
            trial += 1
            try:
                drawn = generator.choice(self.target.draws)
                self._try(folder, drawn, references[drawn], generator)
            except AssertionError as error:
                raise AssertionError(f"{self.target.name}, seed {self.seed}, {folder}: {error}") from error
            shutil.rmtree(folder)
            if time.monotonic() - said > 60 or self.ends.total() >= num_kills:
                said = time.monotonic()
                ways = ", ".join(f"{count} {way}" for way, count in sorted(self.ends.items()))
                print(
                    f"{self.target.name}: {self.ends.total()} of {num_kills} ends ({ways}), {trial} trials, "
                    f"0 bad, {said - begun:.0f} s, seed {self.seed}",
                    file=sys.stderr,
                    flush=True,
                )

    def _reference(self, drawn: tuple[str, ...]) -> Reference:
        for name in ("warm-up", "undisturbed"):  # the first one is slower
            folder = self.root / "-".join((self.target.name, name, *drawn))
            self._arrange(folder)
            seconds = 0.0
            command = self._start(folder, drawn, count=str(folder / "changes"))
            while (worked := command.worked()) is not None:
                seconds = worked
                time.sleep(0.002)
            assert command.wait() == 0, command.text
        changes = 0 if self.target.ranks > 1 else int((folder / "changes").read_text())
        return Reference(self.target.content(folder), seconds, changes)

    def _arrange(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.target.arrange(folder)

    def _start(self, folder: Path, drawn: tuple[str, ...], **order: object) -> ForkedCommand:
        words = (*self.target.words, *drawn)
        return self.worker.start(folder, *words, log=folder / "log", ranks=self.target.ranks, **order)

    def _try(self, folder: Path, drawn: tuple[str, ...], reference: Reference, generator: random.Random) -> None:
        self._arrange(folder)
        for _ in range(generator.randint(1, 6)):
            self._end_once(folder, drawn, reference, generator)
            self.target.intact(folder)
            if self.target.done(folder):
                break
        else:
            command = self._start(folder, drawn)
            assert command.wait() == 0, command.text
        found = self.target.content(folder)
        wrong = {name for name in found | reference.content if found.get(name) != reference.content.get(name)}
        assert not wrong, f"{sorted(wrong)} differ; {(folder / 'log').read_text()}"

    def _end_once(
        self, folder: Path, drawn: tuple[str, ...], reference: Reference, generator: random.Random
    ) -> None:
        log = folder / "log"
        before = len(log.read_text()) if log.exists() else 0
        ways = ["kill", "kill", "kill the first", "wish"] + (["kill at a file"] if reference.changes else [])
        way = generator.choice(ways)
        number = generator.choice(WISHES) if way == "wish" else signal.SIGKILL
        moment = generator.uniform(0.0, reference.seconds)
        order = {"die_at": generator.randint(1, reference.changes)} if way == "kill at a file" else {}
        command = self._start(folder, drawn, **order)
        while not order and (worked := command.worked()) is not None and worked < moment:
            time.sleep(0.002)
        if way == "kill the first":
            with suppress(ProcessLookupError):
                os.kill(command.pid, number)
        elif not order:
            command.signal(number)
        code = command.wait()
        text = command.text[before:]
        command.until(lambda: not command.survivors(), 130)  # workers and ranks are gone within two minutes
        if code != 0:
            self.ends[f"by {signal.Signals(number).name}" if way == "wish" else f"by {way}"] += 1
            _require_end(folder, code, number, text, alone=self.target.ranks == 1)


def _require_end(folder: Path, code: int, number: int, text: str, *, alone: bool) -> None:
    """Require the documented exit code, and the checkpoint that the last message names."""
    if alone:
        unheard = not text  # so early that nothing could be asked to hear it
        assert code in ((-number,) if number == signal.SIGKILL or unheard else (128 + number,)), (code, text)
    for step in re.findall(r"after step (\d+); the same command resumes", text):
        (found,) = folder.glob(f"**/checkpoints/checkpoint-{step}/manifest.json")
        assert found.stat().st_size > 0


# What commands leave.


def content_of(folder: Path) -> Content:
    """All files of a folder but its lock, hidden ones included."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def run_content(folder: Path) -> Content:
    """A run folder without what it cost, and the times in its logs, which differ from run to run."""
    content = content_of(folder)
    if "evaluation.json" in content:
        evaluation = json.loads(content["evaluation.json"])
        content["evaluation.json"] = json.dumps(_without(evaluation, {"cost", "sha256"})).encode()
    lines = [json.loads(line) for line in content.pop("metrics.jsonl", b"").splitlines()]
    content["metrics.jsonl"] = json.dumps(
        [line for line in lines if "train/loss" in line or any(key.startswith("eval/") for key in line)]
    ).encode()
    return {
        name: value
        for name, value in content.items()
        if not name.startswith("checkpoints/") or name.endswith("model.safetensors")
    }


def _without(document: dict[str, object], keys: set[str]) -> dict[str, object]:
    return {key: value for key, value in document.items() if key not in keys}

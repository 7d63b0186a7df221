"""One item of a task: a prompt, its right completion, and the others to choose from.

A model learns the completion after the prompt, and is measured by how probable it finds it, or by what it writes
itself. Its content, not its place, decides whether an item belongs to training or to evaluation, so a set of one
file serves both, and no order of it can move an item from one to the other.
"""

import hashlib
import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args


Task = Literal["sentiment", "paraphrase", "ner", "qa", "summarization"]

TASKS: tuple[Task, ...] = get_args(Task)

Part = Literal["train", "evaluation", "all"]

NUM_DISTRACTORS = 3
"""Wrong choices beside the right one, where choices are made up."""


@dataclass(frozen=True)
class TaskItem:
    """A prompt and its completion.

    Attributes:
        prompt: What is given; it ends where the answer begins, without a blank.
        choices: Completions among which one is right; empty where the answer is written freely.
        answer: Index of the right choice; None if there are no choices.
        reference: The right completion, with the blank before it that belongs to its first word.
        key: What the item is about: those of one key are in the same part. That is the text for most tasks and the
            passage for questions about one.
    """

    prompt: str
    choices: tuple[str, ...]
    answer: int | None
    reference: str
    key: str

    @classmethod
    def choosing(cls, prompt: str, choices: tuple[str, ...], answer: int, *, key: str) -> "TaskItem":
        """An item whose answer is one of `choices`."""
        return cls(prompt, choices, answer, choices[answer], key)

    @classmethod
    def writing(cls, prompt: str, reference: str, *, key: str) -> "TaskItem":
        """An item whose answer is written freely."""
        return cls(prompt, (), None, reference, key)

    @property
    def text(self) -> str:
        """Prompt and completion, as they are learnt."""
        return self.prompt + self.reference


def part_of(item: TaskItem, evaluation_share: float) -> Part:
    """`evaluation` for this share of all keys, else `train`; decided by a hash of the key alone."""
    return "evaluation" if _number("part", item.key) < evaluation_share * 2**64 else "train"


def some_items(items: Sequence[TaskItem], count: int) -> list[TaskItem]:
    """At most `count` of them, in their order; hashes decide which ones, not the order."""
    chosen = heapq.nsmallest(count, range(len(items)), key=lambda i: (_number("some", items[i].text), i))
    return [items[index] for index in sorted(chosen)]


def with_distractors(items: Sequence[TaskItem]) -> list[TaskItem]:
    """The same items, each with answers of some others beside its own, in an order that gives nothing away.

    Hashes decide which ones; items with too few other answers among them have fewer choices.
    """
    answers = sorted({item.reference for item in items})
    chosen = []
    for item in items:
        others = (answer for answer in answers if answer != item.reference)
        nearest = heapq.nsmallest(
            NUM_DISTRACTORS, others, key=lambda answer: _number("distractor", item.key, answer)
        )
        choices = tuple(sorted([item.reference, *nearest]))
        chosen.append(replace(item, choices=choices, answer=choices.index(item.reference)))
    return chosen


def _number(purpose: str, *texts: str) -> int:
    """64 bits of a hash."""
    content = "\0".join(texts).encode("utf-8", "replace")
    return int.from_bytes(
        hashlib.blake2b(content, digest_size=8, person=f"task {purpose}".encode()).digest(), "big"
    )

"""Scores on the five tasks: by the most probable of some completions, and by what a model writes.

| task | figures | primary |
|---|---|---|
| sentiment | accuracy, accuracy_norm | accuracy |
| paraphrase | accuracy, accuracy_norm, f1 | accuracy |
| ner | entity_f1, token_f1 of what is written | entity_f1 |
| qa with choices | accuracy, accuracy_norm | accuracy |
| qa from a passage | exact_match, f1 of what is written | f1 |
| summarization | accuracy, accuracy_norm among four summaries, rouge_l of what is written | accuracy_norm |

All lie between 0 and 1. `accuracy_norm` is lm-eval's `acc_norm`: a completion's log-probability is divided by its
characters, without the blank before it, so that a long one has a chance. The prompts are those of training;
nothing is shown before them.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from collegium.data.tasks.items import Task, TaskItem, with_distractors
from collegium.evaluation.answers import AnswerSheet
from collegium.evaluation.resampling import CorpusFigure
from collegium.evaluation.statistics import bootstrap_figure, paired_figure_difference
from collegium.evaluation.task_figures import answer_f1, entity_f1, entity_token_f1, exact_match, f1, mean, rouge_l
from collegium.report.interval import Difference, Interval
from collegium.report.samples import TaskScores


Figures = dict[str, CorpusFigure]
Written = Callable[[Sequence[str], Sequence[str]], CorpusFigure]


@dataclass(frozen=True)
class TaskItems:
    """Items on which models are compared.

    Attributes:
        name: Name in tables.
        task: The task.
        items: At least one; those of `summarization` with summaries of others to choose among.
        max_new_tokens: Of what is written at most.
    """

    name: str
    task: Task
    items: tuple[TaskItem, ...]
    max_new_tokens: int = 64

    @classmethod
    def of(cls, name: str, task: Task, items: Sequence[TaskItem], *, max_new_tokens: int = 64) -> "TaskItems":
        """With distractors where the task needs some."""
        chosen = with_distractors(items) if task == "summarization" else list(items)
        return cls(name, task, tuple(chosen), max_new_tokens)

    @property
    def has_choices(self) -> bool:
        """True if the most probable completion is asked for."""
        return bool(self.items[0].choices)

    @property
    def written_figures(self) -> Mapping[str, Written]:
        """Figures of what is written."""
        if self.task == "ner":
            return {"entity_f1": entity_f1, "token_f1": entity_token_f1}
        if self.task == "summarization":
            return {"rouge_l": rouge_l}
        return {} if self.has_choices else {"exact_match": exact_match, "f1": answer_f1}

    @property
    def primary(self) -> str:
        """The figure that stands for the task."""
        if self.task == "summarization":
            return "accuracy_norm"
        return "accuracy" if self.has_choices else "entity_f1" if self.task == "ner" else "f1"


@dataclass(frozen=True)
class TaskResult:
    """Answers of one model to the items of one task.

    Attributes:
        items: The items.
        figures: Each with its part of every item, in their order.
        chosen: Choice of each item by probability; empty where there are none.
        written: What was written after each prompt; empty where nothing was to be.
    """

    items: TaskItems
    figures: Figures
    chosen: tuple[int, ...]
    written: tuple[str, ...]

    @property
    def value(self) -> float:
        """The primary figure."""
        return self.figures[self.items.primary].value


def measure_task(model: AnswerSheet, items: TaskItems) -> TaskResult:
    """Have a model answer all items of a task."""
    figures: Figures = {}
    chosen: tuple[int, ...] = ()
    written: tuple[str, ...] = ()
    if items.has_choices:
        logprobs = model.choice_logprobs(items.items)
        chosen = tuple(int(row.argmax()) for row in logprobs)
        figures |= choice_figures(items, logprobs)
    if items.written_figures:
        written = tuple(model.write(items.items, items.max_new_tokens))
        references = [item.reference for item in items.items]
        figures |= {name: figure(written, references) for name, figure in items.written_figures.items()}
    return TaskResult(items, figures, chosen, written)


def choice_figures(items: TaskItems, logprobs: Sequence[np.ndarray[Any, np.dtype[np.float64]]]) -> Figures:
    """Accuracy of the most probable choice, as it is and by its length."""
    sizes = [np.array([_characters(choice) for choice in item.choices]) for item in items.items]
    best = [int(row.argmax()) for row in logprobs]
    best_norm = [int((row / size).argmax()) for row, size in zip(logprobs, sizes, strict=True)]
    answers = [item.answer for item in items.items]
    figures = {
        "accuracy": mean(float(a == b) for a, b in zip(best, answers, strict=True)),
        "accuracy_norm": mean(float(a == b) for a, b in zip(best_norm, answers, strict=True)),
    }
    if items.task == "paraphrase":  # of the pairs that mean the same
        figures["f1"] = f1(
            [["same"] * choice for choice in best], [["same"] * (answer or 0) for answer in answers]
        )
    return figures


def _characters(choice: str) -> int:
    """Characters as lm-eval counts them: the blank between prompt and choice is its `target_delimiter`."""
    return max(1, len(choice.removeprefix(" ")))


def baselines(items: TaskItems) -> dict[str, float]:
    """The primary figure of two answers that read no prompt.

    `majority` always gives the most frequent answer, if all items have the same choices or none. `random` draws a
    choice (its expectation), or else gives the answer of another item.
    """
    references = [item.reference for item in items.items]
    common = Counter(references).most_common(1)[0][0]
    if items.has_choices:
        found = {"random": float(np.mean([1.0 / len(item.choices) for item in items.items]))}
        if len({item.choices for item in items.items}) == 1:
            found["majority"] = references.count(common) / len(references)
        return found
    figure = items.written_figures[items.primary]
    answers = {"majority": [common] * len(references), "random": references[1:] + references[:1]}
    return {name: figure(texts, references).value for name, texts in answers.items()}


def summarize_tasks(
    results: Sequence[TaskResult],
    teachers: Mapping[str, Sequence[TaskResult]],
    *,
    confidence: float,
    num_samples: int,
    seed: int,
) -> dict[str, TaskScores]:
    """Scores of a model and of its teachers, by task; all on the same items."""
    options: dict[str, Any] = {"confidence": confidence, "num_samples": num_samples, "seed": seed}

    def intervals(figures: Figures) -> dict[str, Interval]:
        return {name: bootstrap_figure(figure, **options) for name, figure in figures.items()}

    summary = {}
    for number, result in enumerate(results):
        asked = result.items
        summary[asked.name] = TaskScores(
            task=asked.task,
            items=len(asked.items),
            primary=asked.primary,
            figures=intervals(result.figures),
            baselines=baselines(asked),
            teachers={name: intervals(answered[number].figures) for name, answered in teachers.items()},
            per_item=tuple(tuple(row) for row in result.figures[asked.primary].statistics.tolist()),
            sample=_sample(result),
        )
    return summary


def _sample(result: TaskResult) -> dict[str, str]:
    """The first item, for people to read."""
    item = result.items.items[0]
    sample = {"prompt": item.prompt, "reference": item.reference}
    if result.chosen:
        sample["chosen"] = item.choices[result.chosen[0]]
    if result.written:
        sample["written"] = result.written[0]
    return sample


def compare_results(
    result: TaskResult, baseline: TaskResult, *, confidence: float, num_samples: int, seed: int
) -> dict[str, Difference]:
    """Each figure of one model minus that of another on the same items; see `paired_figure_difference`."""
    assert result.items == baseline.items, "of the same items"
    return {
        name: paired_figure_difference(
            figure, baseline.figures[name], confidence=confidence, num_samples=num_samples, seed=seed
        )
        for name, figure in result.figures.items()
    }

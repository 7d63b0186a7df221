"""The sections of a recipe on the five tasks: where items come from, and which. No torch here."""

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field, model_validator

from collegium.recipe.sections.base import Name, Section


class TaskDataSection(Section):
    """Items of one of the five tasks."""

    task: Literal["sentiment", "paraphrase", "ner", "qa", "summarization"]
    """What a row is read as; docs/tasks.md has the columns and the prompts."""
    dataset: str | None = None
    """Hub id or local folder in hub layout, such as `stanfordnlp/sst2`."""
    path: str | None = None
    """Or files: JSONL, Parquet, Arrow, TSV, CoNLL, or a label and a sentence a line; as in `kind: files`."""
    config: str | None = None
    """Configuration of the data set, such as `mrpc`."""
    split: str = "train"
    """Split of the data set."""
    revision: str | None = None
    """Branch, tag or commit of the data set."""
    part: Literal["train", "evaluation", "all"] = "train"
    """Items for training or for evaluation, separated by a hash of their text, so that one set serves both."""
    evaluation_share: float = Field(default=0.2, ge=0, le=1)
    """Share of the items that is for evaluation; must be the same wherever the set is used."""
    max_characters: int = Field(default=1200, ge=16)
    """Longer texts, passages and dialogues are cut to this."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.dataset is None) == (self.path is None):
            raise ValueError("give either `dataset` (on the hub) or `path` (local files)")
        if self.path is not None and (self.config, self.revision, self.split) != (None, None, "train"):
            raise ValueError("`config`, `split` and `revision` are of a `dataset`; leave them out with `path`")
        return self

    @property
    def origin(self) -> tuple[str | None, ...]:
        """The data set or files that are read, to compare with another section's."""
        return (self.dataset, self.path, self.config, self.split, self.revision)


class TaskEvaluationSection(TaskDataSection):
    """A task on which the student and its teachers are measured."""

    name: Name | None = None
    """Name in tables; the task's if not given."""
    part: Literal["train", "evaluation", "all"] = "evaluation"
    """Items of this part; `all` for a set that nothing is trained on."""
    max_items: int = Field(default=400, ge=1)
    """Items at most, chosen by hashes."""
    max_new_tokens: int = Field(default=64, ge=1)
    """Tokens of a written answer at most; a line feed or EOS ends it before."""

    @property
    def label(self) -> str:
        """The name in tables."""
        return self.name or self.task


def names_of_tasks_differ(sections: tuple[TaskEvaluationSection, ...]) -> tuple[TaskEvaluationSection, ...]:
    """Refuse two of one name."""
    labels = [section.label for section in sections]
    if repeated := sorted({label for label in labels if labels.count(label) > 1}):
        raise ValueError(f"{', '.join(repeated)} is there twice: give each a `name` of its own")
    return sections


def require_unseen(trained: Sequence[TaskDataSection], measured: Sequence[TaskEvaluationSection]) -> None:
    """Refuse items for evaluation that are trained on.

    Raises:
        ValueError: with both sections.
    """
    for section in measured:
        for source in trained:
            if source.task != section.task or source.origin != section.origin:
                continue
            shares = (source.evaluation_share, section.evaluation_share)
            if (source.part, section.part) != ("train", "evaluation") or shares[0] != shares[1]:
                raise ValueError(
                    f"evaluation.tasks {section.label!r} (part: {section.part}, evaluation_share {shares[1]:g}) "
                    f"reads what data.sources trains on (part: {source.part}, evaluation_share {shares[0]:g}): "
                    "take part: train there and part: evaluation here, with one evaluation_share"
                )

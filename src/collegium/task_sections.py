"""The sections of a recipe on the five tasks: where items come from, and which. No torch here."""

from typing import Literal, Self

from pydantic import Field, model_validator

from collegium.section import Section


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
    """Items for training or for evaluation, told apart by a hash of their text, so that one set serves both."""
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

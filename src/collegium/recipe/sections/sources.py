"""Sections of a recipe that say where text comes from: the hub, files, or items of tasks. No torch here."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from collegium.recipe.sections.base import Language, Licence, Name, Section
from collegium.recipe.sections.tasks import TaskDataSection


class SourceSection(Section):
    """Text of one domain."""

    name: Name
    """Domain; every table has a column for it."""
    max_documents: int | None = Field(default=None, ge=1)
    """Read at most this many documents, held-out ones included."""
    skip_documents: int = Field(default=0, ge=0)
    """Train on none of the first documents, as many as this, such as those that another run trains on."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Stop when this many training tokens are packed."""
    min_characters: int = Field(default=16, ge=0)
    """Shorter documents are dropped and counted."""
    licence: Licence | None = None
    """Licence of the text, for the model card; what the data set's own card on disk says if not given."""
    language: Language | None = None
    """Language of the text for the model card, such as `en` or `code`."""


class HubSourceSection(SourceSection):
    """A data set on the hub, streamed."""

    kind: Literal["hub"]
    """Streamed with `datasets`."""
    dataset: str
    """Hub id or local folder in hub layout, such as `allenai/c4`."""
    config: str | None = None
    """Configuration, such as `en`."""
    split: str = "train"
    """Split to read."""
    revision: str | None = None
    """Branch, tag or commit."""
    text_column: str = "text"
    """Column that holds the text."""
    prompt_column: str | None = None
    """Column of a prompt that comes before the text and is not learnt, as in data of prompts and completions."""


class FileSourceSection(SourceSection):
    """Files on disk."""

    kind: Literal["files"]
    """Text, JSON, CSV, Parquet or Arrow, compressed or not."""
    path: str
    """File, glob, folder of `save_to_disk`, or `package:NAME/FILE` inside an installed package."""
    format: Literal["auto", "text", "jsonl", "json", "csv", "tsv", "parquet", "arrow"] = "auto"
    """By each file's content and ending if `auto`; docs/text.md has the list."""
    documents: Literal["line", "file", "separator"] = "line"
    """What a document is in a text file."""
    separator: str | None = None
    """Regular expression between documents, for `documents: separator`."""
    text_column: str = "text"
    """Column or key that holds the text, for rows."""
    prompt_column: str | None = None
    """Column or key of a prompt that comes before the text and is not learnt."""

    @model_validator(mode="after")
    def _separator_goes_with_documents(self) -> Self:
        if (self.documents == "separator") != (self.separator is not None):
            raise ValueError("`separator` and `documents: separator` go together")
        if self.separator is not None:
            try:
                re.compile(self.separator)
            except re.error as error:
                raise ValueError(f"separator {self.separator!r} is not a regular expression: {error}") from error
        return self


class TaskSourceSection(SourceSection, TaskDataSection):
    """Items of one of the five tasks, of which the answers are learnt."""

    kind: Literal["task"]
    """Prompts and answers, made of a known data set; set data.add_eos, so that answers end."""


Source = Annotated[HubSourceSection | FileSourceSection | TaskSourceSection, Field(discriminator="kind")]

"""A task's items as documents, prompt and completion, from the hub or from local files."""

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from collegium.base.errors import DataError
from collegium.base.references import find_files
from collegium.data.documents import Document
from collegium.data.files import combined_digest, sampled_digest, whole_digest
from collegium.data.tasks.items import Part, Task, TaskItem, part_of, some_items
from collegium.data.tasks.prompts import item_of
from collegium.data.tasks.rows import read_rows


PROMPTS_VERSION = "1"
"""Version of the prompts in `collegium.data.tasks.prompts`; text prepared with another one is prepared again."""


class Rows(Protocol):
    """Rows of a data set, from any place where reading stopped; see `collegium.data.sources.Source`."""

    @property
    def reference(self) -> str:
        """The data set or path as it was named."""
        ...

    @property
    def label_names(self) -> Mapping[str, list[str]]:
        """Names of the values of columns that hold lists of class labels."""
        ...

    def __iter__(self) -> Iterator[dict[str, Any]]: ...

    def fingerprint(self, options: list[str | None], *, digest: Callable[[Path], str] = whole_digest) -> str:
        """Identity of the rows and of how they are read."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Position of the next row, as JSON."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a position; `{}` is the beginning."""
        ...


class FileRows:
    """Rows of local files; going on after a stop reads a file again from its beginning.

    Args:
        path: A file, a glob pattern, or `package:NAME/FILE`; see `collegium.data.tasks.rows` for formats.

    Raises:
        DataError: if there is no such file.
    """

    label_names: Mapping[str, list[str]] = {}

    def __init__(self, path: str) -> None:
        self.reference = path
        self._files = find_files(path)
        self._file = 0
        self._row = 0

    def fingerprint(self, options: list[str | None], *, digest: Callable[[Path], str] = whole_digest) -> str:
        """Identity of the rows and of how they are read."""
        return combined_digest([*options, *(file.suffix for file in self._files)], self._files, digest=digest)

    def state_dict(self) -> dict[str, Any]:
        """Position of the next row."""
        return {"file": self._file, "row": self._row}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a position; `{}` is the beginning."""
        self._file = state.get("file", 0)
        self._row = state.get("row", 0)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while self._file < len(self._files):
            start = self._row
            for number, row in enumerate(read_rows(self._files[self._file])):
                if number >= start:
                    self._row = number + 1
                    yield row
            self._file += 1
            self._row = 0


class TaskSource:
    """Documents of a task: each item's prompt, which is not learnt, and its completion, which is.

    Items of the other part are not there at all: they are neither read documents nor dropped ones.

    Args:
        name: The domain.
        task: The task.
        rows: Where its rows come from.
        part: Which of its items; see `collegium.data.tasks.items.part_of`.
        evaluation_share: Share of the keys that is for evaluation.
        max_characters: Longer texts, passages and dialogues are cut to this.
    """

    def __init__(
        self,
        name: str,
        task: Task,
        rows: Rows,
        *,
        part: Part = "train",
        evaluation_share: float = 0.2,
        max_characters: int = 1200,
    ) -> None:
        self.name = name
        self.task = task
        self._rows = rows
        self._part = part
        self._evaluation_share = evaluation_share
        self._max_characters = max_characters

    @cached_property
    def fingerprint(self) -> str:
        """Identity of the items and of how they are read."""
        return self._rows.fingerprint(self._options)

    @property
    def earlier_fingerprint(self) -> str:
        """The same of earlier versions, which looked at samples of large files."""
        return self._rows.fingerprint(self._options, digest=sampled_digest)

    @property
    def _options(self) -> list[str | None]:
        share = str(self._evaluation_share)
        size = str(self._max_characters)
        return [PROMPTS_VERSION, self.task, self._part, share, size]

    def state_dict(self) -> dict[str, Any]:
        """Position of the next item."""
        return self._rows.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a position; `{}` is the beginning."""
        self._rows.load_state_dict(state)

    def __iter__(self) -> Iterator[Document]:
        for item in self.items():
            yield Document.checked(item.reference, prompt=item.prompt)

    def items(self) -> Iterator[TaskItem]:
        """Items from the current position on.

        Raises:
            DataError: a row is none of this task.
        """
        for row in self._rows:
            try:
                item = item_of(self.task, self._with_names(row), self._max_characters)
            except DataError as error:
                raise DataError(
                    f"source {self.name!r}: {self._rows.reference} holds no data for task {self.task}: {error}"
                ) from error
            if item is not None and self._part in ("all", part_of(item, self._evaluation_share)):
                yield item

    def some_items(self, count: int) -> list[TaskItem]:
        """At most `count` of all items; see `collegium.data.tasks.items.some_items`."""
        self.load_state_dict({})
        return some_items(list(self.items()), count)

    def _with_names(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row with names for numbers in lists of class labels."""
        names = {column: known for column, known in self._rows.label_names.items() if column in row}
        return {**row, **{column: [known[i] for i in row[column]] for column, known in names.items()}}

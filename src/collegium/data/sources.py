"""Text sources: documents one at a time, in constant memory, from any place where reading stopped.

A source is iterated from its current position; `state_dict()` after a document names the place of
the next one, and loading `{}` goes back to the beginning. Resuming seeks in plain files, skips row
groups in Parquet and whole files on the hub, and decompresses again what lies before in a `.gz`.
"""

import errno
import gzip
import re
import zlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import datasets
import pyarrow as pa

from collegium.data.documents import Document
from collegium.data.files import ByteFile, combined_digest, find_files, format_of, open_bytes
from collegium.data.readers import (
    Documents,
    read_json_lines,
    read_lines,
    read_parquet,
    read_separated,
)
from collegium.errors import DataError, one_line


class Source(Protocol):
    """Documents of one domain."""

    @property
    def name(self) -> str:
        """The domain."""
        ...

    @property
    def fingerprint(self) -> str:
        """Identity of what is read."""
        ...

    def __iter__(self) -> Iterator[Document]:
        """Documents from the current position on."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Position of the next document, as JSON."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a position; `{}` is the beginning."""
        ...


class FileSource:
    """Text, JSONL or Parquet files, each also as `.gz`.

    The fingerprint hashes the order and content of the files, not their names: in whole up to
    8 MiB, above that their size, beginning, middle and end.

    Args:
        name: The domain.
        path: A file, a glob pattern (its files are read in the order of their names), or
            `package:NAME/FILE` inside an installed package, which is found without importing it.
        format: By each file's ending if `auto`; unknown endings are text.
        documents: What a document is in a text file.
        separator: Regular expression between documents, for `documents="separator"`.
        text_column: Column or key that holds the text, for JSONL and Parquet.

    Raises:
        DataError: if there is no such file.
    """

    def __init__(
        self,
        name: str,
        path: str,
        *,
        format: Literal["auto", "text", "jsonl", "parquet"] = "auto",
        documents: Literal["line", "file", "separator"] = "line",
        separator: str | None = None,
        text_column: str = "text",
    ) -> None:
        if (documents == "separator") != (separator is not None):
            raise ValueError(
                f"documents={documents!r} and separator={separator!r}: "
                "a separator is given with documents='separator' and only with it"
            )
        self.name = name
        self._files = find_files(path)
        self._format = format
        self._documents = documents
        self._separator = re.compile(separator) if separator is not None else None
        self._text_column = text_column
        self._file, self._offset = 0, 0

    @cached_property
    def fingerprint(self) -> str:
        """Identity of what is read."""
        separator = self._separator.pattern if self._separator else None
        options = [self._format, self._documents, separator, self._text_column]
        return combined_digest(options, self._files)

    def state_dict(self) -> dict[str, Any]:
        """Position of the next document."""
        return {"file": self._file, "offset": self._offset}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a position; `{}` is the beginning."""
        self._file, self._offset = state.get("file", 0), state.get("offset", 0)

    def __iter__(self) -> Iterator[Document]:
        while self._file < len(self._files):
            problem = None
            try:
                with open_bytes(self._files[self._file]) as file:
                    for document, offset in self._read(file):
                        self._offset = offset
                        yield document
            except EOFError:
                problem = "truncated"
            except (gzip.BadGzipFile, zlib.error):
                problem = "damaged"
            except (OSError, ValueError, pa.ArrowException) as error:
                raise DataError(f"{self._files[self._file]}: cannot be read: {error}") from error
            self._file, self._offset = self._file + 1, 0
            if problem:
                yield Document("", problem)

    def _read(self, file: ByteFile) -> Documents:
        format = self._format if self._format != "auto" else format_of(self._files[self._file])
        if format == "jsonl":
            return read_json_lines(file, self._offset, text_column=self._text_column)
        if format == "parquet":
            return read_parquet(file, self._offset, text_column=self._text_column)
        if self._documents == "line":
            return read_lines(file, self._offset)
        return read_separated(file, self._offset, separator=self._separator)


class HubSource:
    """A data set on the hub, or a local folder in hub layout, streamed with `datasets`.

    The network is not touched before the first document. The fingerprint of a data set on the hub
    is what was asked for, so that a prepared text can be used offline: pin `revision` to a commit
    to make it the identity of the text. A resumed source reads on in the commit it began with.

    Args:
        name: The domain.
        dataset: Hub id, such as `allenai/c4`, or a local folder.
        config: Configuration, such as `en`.
        split: Split to read.
        revision: Branch, tag or commit.
        text_column: Column that holds the text.
    """

    def __init__(
        self,
        name: str,
        dataset: str,
        *,
        config: str | None = None,
        split: str = "train",
        revision: str | None = None,
        text_column: str = "text",
    ) -> None:
        self.name = name
        self._dataset = dataset
        self._config = config
        self._split = split
        self._revision = revision
        self._text_column = text_column
        self._builder: datasets.DatasetBuilder | None = None
        self._stream: datasets.IterableDataset | None = None
        self._state: dict[str, Any] = {}

    @cached_property
    def fingerprint(self) -> str:
        """Identity of what is read."""
        asked = [self._config, self._split, self._text_column]
        if not self._is_local:
            return combined_digest([self._dataset, self._revision, *asked], [])
        data_files = self._load_builder().config.data_files or {}
        files = [Path(str(file)) for split in sorted(data_files) for file in data_files[split]]
        return combined_digest(asked, files)

    def state_dict(self) -> dict[str, Any]:
        """Position of the next document, with the commit that is read."""
        if self._stream is None:
            return self._state
        return {"commit": self._load_builder().hash, "stream": self._stream.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a position; `{}` is the beginning."""
        self._state, self._stream = dict(state), None
        if self._builder is not None and state and state["commit"] != self._builder.hash:
            self._builder = None

    def __iter__(self) -> Iterator[Document]:
        try:
            self._stream = self._load_builder().as_streaming_dataset(split=self._split)
            if self._state:
                self._stream.load_state_dict(self._state["stream"])
                self._state = {}
            for row in self._stream:
                self._check_column(row)
                yield Document.checked(row[self._text_column])
        except DataError:
            raise
        except Exception as error:  # of datasets, fsspec, the network: no common base
            raise self._unreadable(error) from error

    @property
    def _is_local(self) -> bool:
        return Path(self._dataset).exists()

    def _load_builder(self) -> datasets.DatasetBuilder:
        if self._builder is None:
            revision = None if self._is_local else self._state.get("commit", self._revision)
            try:
                self._builder = datasets.load_dataset_builder(self._dataset, self._config, revision=revision)
            except Exception as error:  # as above
                raise self._unreadable(error) from error
        return self._builder

    def _check_column(self, row: Mapping[str, Any]) -> None:
        if self._text_column not in row:
            raise DataError(
                f"source {self.name!r}: {self._dataset} has no column {self._text_column!r}; "
                f"the columns are {', '.join(row)}: set text_column to one of them"
            )

    def _unreadable(self, error: Exception) -> Exception:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            return error
        asked = f"config {self._config}, split {self._split}, revision {self._revision}"
        reason = one_line(error, 300)
        offline = " (HF_HUB_OFFLINE is set)" if datasets.config.HF_HUB_OFFLINE else ""
        return DataError(
            f"source {self.name!r}: {self._dataset} ({asked}) could not be read{offline}: "
            f"{reason}. Connect to the hub, or give a local folder in hub layout, or use "
            "`kind: files` instead"
        )

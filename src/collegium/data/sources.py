"""Text sources: documents one at a time, in constant memory, from any place where reading stopped.

A source is iterated from its current position; `state_dict()` after a document names the place of
the next one, and loading `{}` goes back to the beginning. Resuming seeks in plain files, skips row
groups in Parquet and whole files on the hub, and decompresses again what lies before in a `.gz`.
"""

import gzip
import re
import zlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, Literal, Protocol

import pyarrow as pa

from collegium.base.errors import DataError
from collegium.base.references import find_files
from collegium.data.documents import Document
from collegium.data.files import ByteFile, combined_digest, format_of, open_bytes, sampled_digest
from collegium.data.readers import Columns, Documents, read_json_lines, read_lines, read_parquet, read_separated


class Source(Protocol):
    """Documents of one domain."""

    @property
    def name(self) -> str:
        """The domain."""
        ...

    @property
    def fingerprint(self) -> str:
        """Identity of the text and of how it is read."""
        ...

    @property
    def earlier_fingerprint(self) -> str:
        """The same of earlier versions, which looked at samples of large files."""
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

    The fingerprint hashes the order and the whole content of the files, not their names.

    Args:
        name: The domain.
        path: A file, a glob pattern (its files are read in the order of their names), or
            `package:NAME/FILE` inside an installed package, which is found without importing it.
        format: By each file's ending if `auto`; unknown endings are text.
        documents: What a document is in a text file.
        separator: Regular expression between documents, for `documents="separator"`.
        text_column: Column or key that holds the text, for JSONL and Parquet.
        prompt_column: Column or key of a prompt that comes before the text and is not learnt.

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
        prompt_column: str | None = None,
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
        self._columns = Columns(text_column, prompt_column)
        self._file = 0
        self._offset = 0

    @cached_property
    def fingerprint(self) -> str:
        """Identity of the text and of how it is read."""
        return combined_digest(self._options, self._files)

    @property
    def earlier_fingerprint(self) -> str:
        """The same of earlier versions, which looked at samples of large files."""
        return combined_digest(self._options, self._files, digest=sampled_digest)

    @property
    def _options(self) -> list[str | None]:
        separator = self._separator.pattern if self._separator else None
        return [self._format, self._documents, separator, *self._columns]

    def state_dict(self) -> dict[str, Any]:
        """Position of the next document."""
        return {"file": self._file, "offset": self._offset}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a position; `{}` is the beginning."""
        self._file = state.get("file", 0)
        self._offset = state.get("offset", 0)

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
            self._file += 1
            self._offset = 0
            if problem:
                yield Document("", problem)

    def _read(self, file: ByteFile) -> Documents:
        format = self._format if self._format != "auto" else format_of(self._files[self._file])
        if format == "jsonl":
            return read_json_lines(file, self._offset, columns=self._columns)
        if format == "parquet":
            return read_parquet(file, self._offset, columns=self._columns)
        if self._documents == "line":
            return read_lines(file, self._offset)
        return read_separated(file, self._offset, separator=self._separator)

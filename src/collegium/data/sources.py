"""Text sources: documents one at a time, in constant memory, from any place where reading stopped.

A source is iterated from its current position; `state_dict()` after a document names the place of
the next one, and loading `{}` goes back to the beginning. Resuming seeks in plain files, skips row
groups in Parquet and whole files on the hub, and decompresses again what lies before in a compressed file.
pyarrow is imported for the formats that need it, so that `check` can look at first rows in no time.
"""

import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from lzma import LZMAError
from pathlib import Path
from typing import Any, Literal, Protocol

from collegium.base.errors import DataError, one_line
from collegium.base.references import find_files
from collegium.data.compression import ByteFile, damage_of, open_bytes
from collegium.data.delimited import read_delimited
from collegium.data.documents import Document
from collegium.data.files import combined_digest, sampled_digest
from collegium.data.formats import recognised
from collegium.data.json_array import read_json_array
from collegium.data.readers import read_json_lines, read_lines, read_separated
from collegium.data.rows import REASONS, Columns, Documents


Format = Literal["auto", "text", "jsonl", "json", "csv", "tsv", "parquet", "arrow"]


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
    """Files of text or of rows with a text, compressed or not; docs/text.md has the formats.

    The fingerprint hashes the order and the whole content of the files, not their names.

    Args:
        name: The domain.
        path: A file, a glob pattern (its files are read in the order of their names), a folder of `save_to_disk`,
            or `package:NAME/FILE` inside an installed package, which is found without importing it; or files.
        format: By each file's content and ending if `auto`; unknown endings are text.
        documents: What a document is in a text file.
        separator: Regular expression between documents, for `documents="separator"`.
        text_column: Column or key that holds the text, for rows.
        prompt_column: Column or key of a prompt that comes before the text and is not learnt.

    Raises:
        DataError: if there is no such file.
    """

    def __init__(
        self,
        name: str,
        path: str | Sequence[Path],
        *,
        format: Format = "auto",
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
        self.files = find_files(path) if isinstance(path, str) else list(path)
        self._format = format
        self._documents = documents
        self._separator = re.compile(separator) if separator is not None else None
        self._columns = Columns(text_column, prompt_column)
        self._file = 0
        self._offset = 0

    @cached_property
    def fingerprint(self) -> str:
        """Identity of the text and of how it is read."""
        return combined_digest(self._options, self.files)

    @property
    def earlier_fingerprint(self) -> str:
        """The same of earlier versions, which looked at samples of large files."""
        return combined_digest(self._options, self.files, digest=sampled_digest)

    @property
    def _options(self) -> list[str | None]:
        separator = self._separator.pattern if self._separator else None
        return [self._format, self._documents, separator, *self._columns, *self._recognised_unlike_before()]

    def _recognised_unlike_before(self) -> list[str]:
        """Compression and format of each file, if one is not what earlier versions took it for, else nothing.

        Text that was prepared by them is kept that way.
        """
        found = ["/".join(self.recognise(file)) for file in self.files]
        return found if found != [_by_name_alone(file, self._format) for file in self.files] else []

    def recognise(self, file: Path) -> tuple[str, str]:
        """Compression and format of one of the files.

        Raises:
            DataError: it is of a format that is not read.
        """
        try:
            return recognised(file, asked=self._format, text_column=self._columns.text)
        except OSError as error:
            raise DataError(f"{file}: cannot be read: {error.strerror or error}") from error

    def state_dict(self) -> dict[str, Any]:
        """Position of the next document."""
        return {"file": self._file, "offset": self._offset}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a position; `{}` is the beginning."""
        self._file = state.get("file", 0)
        self._offset = state.get("offset", 0)

    def __iter__(self) -> Iterator[Document]:
        while self._file < len(self.files):
            path = self.files[self._file]
            problem = None
            format = self.recognise(path)[1]
            try:
                with open_bytes(path) as file:
                    for document, offset in self._read(file, format):
                        self._offset = offset
                        yield (
                            document
                            if document.problem is None
                            else document.of(f"{path.name}, {document.detail}")
                        )
            except (EOFError, OSError, zlib.error, LZMAError) as error:
                problem = damage_of(error)
                if problem is None:
                    raise DataError(f"{path}: cannot be read: {one_line(error)}") from error
            except ValueError as error:
                raise DataError(f"{path}: {one_line(error, 1000)}") from error
            self._file += 1
            self._offset = 0
            if problem:
                yield Document("", problem, detail=f"{path.name}: {REASONS[problem]}")

    def _read(self, file: ByteFile, format: str) -> Documents:
        match format:
            case "jsonl":
                return read_json_lines(file, self._offset, columns=self._columns)
            case "json":
                return read_json_array(file, self._offset, columns=self._columns)
            case "csv" | "tsv":
                return read_delimited(file, self._offset, format=format, columns=self._columns)
            case "parquet" | "arrow":
                return _read_table(file, self._offset, format, self._columns)
        if self._documents == "line":
            return read_lines(file, self._offset)
        return read_separated(file, self._offset, separator=self._separator)


def _read_table(file: ByteFile, row: int, format: str, columns: Columns) -> Documents:
    from collegium.data import tables

    read = tables.read_parquet if format == "parquet" else tables.read_arrow
    return read(file, row, columns=columns)


def _by_name_alone(file: Path, format: str) -> str:
    """Compression and format as versions read a file that only knew these endings."""
    name = file.name.lower()
    ending = Path(name.removesuffix(".gz")).suffix
    known = {".jsonl": "jsonl", ".json": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}.get(ending, "text")
    return f"{'gzip' if name.endswith('.gz') else ''}/{known if format == 'auto' else format}"

"""Rows of data sets on the hub, streamed, and documents of their text columns.

A local folder is read as the same files are with `FileSource`, so that a bad row is treated alike; `datasets` says
which files a split has. What it alone can read, and what is on the hub, is streamed with it.
"""

import errno
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from collegium.base.errors import DataError, one_line
from collegium.base.references import saved_files, saved_splits
from collegium.data.compression import without_compression
from collegium.data.documents import Document
from collegium.data.files import combined_digest, sampled_digest, whole_digest
from collegium.data.formats import ENDINGS
from collegium.data.rows import Columns
from collegium.data.sources import FileSource
from collegium.data.tables import texts_of


_BUILDERS = ("json", "csv", "parquet", "arrow", "text")
_LEFT_OUT = frozenset({"name", "version", "data_dir", "data_files", "description"})


class HubRows:
    """Rows of a data set on the hub, or of a local folder in hub layout, streamed with `datasets`.

    The network is not touched before the first row. The fingerprint of a data set on the hub is made of its name,
    configuration, split and revision, so that a prepared text can be used offline: pin `revision` to a commit to
    make it the identity of the text. Rows that are read after a stop are of the commit that they began with.

    Args:
        source: Name of the source, for errors.
        dataset: Hub id, such as `allenai/c4`, or a local folder.
        config: Configuration, such as `en`.
        split: Split to read.
        revision: Branch, tag or commit.
    """

    def __init__(
        self,
        source: str,
        dataset: str,
        *,
        config: str | None = None,
        split: str = "train",
        revision: str | None = None,
    ) -> None:
        self._name = source
        self._dataset = dataset
        self._config = config
        self._split = split
        self._revision = revision
        self._builder: datasets.DatasetBuilder | None = None
        self._stream: datasets.IterableDataset | None = None
        self._state: dict[str, Any] = {}

    @property
    def reference(self) -> str:
        """The data set as it was named."""
        return self._dataset

    def fingerprint(self, options: list[str | None], *, digest: Callable[[Path], str] = whole_digest) -> str:
        """Identity of the rows and of how they are read."""
        asked = [self._config, self._split, *options]
        if not self._is_local:
            return combined_digest([self._dataset, self._revision, *asked], [])
        if saved := self._saved_files():
            return combined_digest(asked, saved, digest=digest)
        builder = self._load_builder()
        data_files = builder.config.data_files or {}
        files = [Path(str(file)) for split in sorted(data_files) for file in data_files[split]]
        # Of CSV, pandas used to read some words as null.
        return combined_digest([*asked, "as it stands"] if builder.name == "csv" else asked, files, digest=digest)

    def local_files(self) -> list[Path] | None:
        """Files of the split, if they lie in a local folder and `FileSource` reads them.

        Raises:
            DataError: the folder has no such split.
        """
        if not self._is_local:
            return None
        if saved := self._saved_files():
            return saved
        builder = self._load_builder()
        by_split = {str(split): files for split, files in (builder.config.data_files or {}).items()}
        if self._split not in by_split:
            raise self._no_split(list(by_split))
        usual = type(builder.config)()
        names = {field.name for field in fields(builder.config)} - _LEFT_OUT
        has_options = any(getattr(builder.config, name) != getattr(usual, name) for name in names)
        files = [Path(str(file)) for file in by_split[self._split]]
        are_known = all(_has_known_ending(file) and file.is_file() for file in files)
        return files if builder.name in _BUILDERS and are_known and not has_options else None

    def _saved_files(self) -> list[Path]:
        """Files of a folder of `save_to_disk`, or of its split."""
        folder = Path(self._dataset)
        splits = saved_splits(folder)
        if splits and self._split not in splits:
            raise self._no_split(splits)
        files = saved_files(folder / self._split if splits else folder)
        if files and self._config is not None:
            raise DataError(
                f"source {self._name!r}: {self._dataset} was written by `save_to_disk` and has no configurations: "
                "leave config out"
            )
        return files

    def _no_split(self, splits: list[str]) -> DataError:
        return DataError(
            f"source {self._name!r}: {self._dataset} has no split {self._split!r}; "
            f"there is {', '.join(splits) or 'none'}: set split to {' or '.join(splits) or 'one'}"
        )

    def state_dict(self) -> dict[str, Any]:
        """Position of the next row, with the commit that is read."""
        if self._stream is None:
            return self._state
        return {"commit": self._load_builder().hash, "stream": self._stream.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a position; `{}` is the beginning."""
        self._state = dict(state)
        self._stream = None
        if self._builder is not None and state and state["commit"] != self._builder.hash:
            self._builder = None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield from self._streamed()

    def tables(self) -> Iterator[pa.Table]:
        """The rows as tables of one row, whose strings are not decoded yet."""
        yield from self._streamed("arrow")

    def _streamed(self, format: str | None = None) -> Iterator[Any]:
        try:
            self._stream = self._load_builder().as_streaming_dataset(split=self._split).with_format(format)
            if self._state:
                self._go_to(self._stream, self._state)
                self._state = {}
            yield from self._stream
        except DataError:
            raise
        except Exception as error:  # of datasets, fsspec, the network: no common base
            raise self._unreadable(error) from error

    def _go_to(self, stream: datasets.IterableDataset, state: Mapping[str, Any]) -> None:
        if _kind(state.get("stream")) != _kind(stream.state_dict()):
            raise DataError(
                f"source {self._name!r}: the preparation was begun by another version of collegium or datasets, "
                "whose position this one cannot go to: delete data.directory, and it is prepared again"
            )
        stream.load_state_dict(state["stream"])

    @property
    def label_names(self) -> dict[str, list[str]]:
        """Names of the values of columns that hold lists of class labels, once rows are read."""
        features = (self._stream.features if self._stream is not None else None) or {}
        inner = {name: getattr(feature, "feature", None) for name, feature in features.items()}
        return {name: list(f.names) for name, f in inner.items() if isinstance(f, datasets.ClassLabel)}

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

    def _unreadable(self, error: Exception) -> Exception:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            return error
        asked = f"config {self._config}, split {self._split}, revision {self._revision}"
        reason = one_line(error, 300)
        offline = " (HF_HUB_OFFLINE is set)" if datasets.config.HF_HUB_OFFLINE else ""
        if self._is_local:
            return DataError(
                f"source {self._name!r}: {self._dataset} ({asked}) could not be read: {reason}. "
                "It is a local folder: fix its files, or use `kind: files`"
            )
        return DataError(
            f"source {self._name!r}: {self._dataset} ({asked}) could not be read{offline}: "
            f"{reason}. Connect to the hub, or give a local folder in hub layout, or use "
            "`kind: files` instead"
        )


class HubSource:
    """Documents of a data set on the hub. See `HubRows` for the other arguments and for resuming.

    Args:
        name: The domain.
        dataset: Hub id, such as `allenai/c4`, or a local folder.
        config: Configuration, such as `en`.
        split: Split to read.
        revision: Branch, tag or commit.
        text_column: Column that holds the text.
        prompt_column: Column of a prompt that comes before the text and is not learnt.
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
        prompt_column: str | None = None,
    ) -> None:
        self.name = name
        self._rows = HubRows(name, dataset, config=config, split=split, revision=revision)
        self._columns = Columns(text_column, prompt_column)

    @cached_property
    def fingerprint(self) -> str:
        """Identity of the text and of how it is read."""
        return self._rows.fingerprint(list(self._columns))

    @property
    def earlier_fingerprint(self) -> str:
        """The same of earlier versions, which looked at samples of large files."""
        return self._rows.fingerprint(list(self._columns), digest=sampled_digest)

    @cached_property
    def _files(self) -> FileSource | None:
        """The source of the same files, if they are local."""
        files = self._rows.local_files()
        if files is None:
            return None
        return FileSource(self.name, files, text_column=self._columns.text, prompt_column=self._columns.prompt)

    def state_dict(self) -> dict[str, Any]:
        """Position of the next document, with the commit that is read."""
        return (self._files or self._rows).state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a position; `{}` is the beginning.

        Raises:
            DataError: an earlier version wrote it, which read local folders in another way.
        """
        if self._files is not None and "stream" in state:
            raise DataError(
                f"source {self.name!r}: the preparation was begun by another version of collegium, whose position "
                "this one cannot go to: delete data.directory, and it is prepared again"
            )
        (self._files or self._rows).load_state_dict(state)

    def __iter__(self) -> Iterator[Document]:
        try:
            yield from self._files or self._streamed()
        except DataError as error:
            raise (
                error if repr(self.name) in str(error) else DataError(f"source {self.name!r}: {error}")
            ) from error

    def _streamed(self) -> Iterator[Document]:
        for number, table in enumerate(self._rows.tables(), 1):
            for texts in texts_of(table, self._columns):
                yield self._columns.document(
                    texts, f"{self._rows.reference}, row {number} from where reading began"
                )


def _has_known_ending(file: Path) -> bool:
    ending = Path(without_compression(file.name.lower())[0]).suffix
    return any(ending in endings for endings in ENDINGS.values())


def _kind(state: Any) -> Any:
    """The kind of iterable in a position of `datasets`, which must be that of the stream that goes there."""
    inner = state.get("examples_iterable") if isinstance(state, dict) else None
    return inner.get("type") if isinstance(inner, dict) else None

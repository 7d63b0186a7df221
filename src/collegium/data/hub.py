"""Rows of data sets on the hub, streamed, and documents of their text columns."""

import errno
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets

from collegium.base.errors import DataError, one_line
from collegium.data.documents import Document
from collegium.data.files import combined_digest, sampled_digest, whole_digest
from collegium.data.readers import Columns


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
        data_files = self._load_builder().config.data_files or {}
        files = [Path(str(file)) for split in sorted(data_files) for file in data_files[split]]
        return combined_digest(asked, files, digest=digest)

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
        try:
            self._stream = self._load_builder().as_streaming_dataset(split=self._split)
            if self._state:
                self._stream.load_state_dict(self._state["stream"])
                self._state = {}
            yield from self._stream
        except DataError:
            raise
        except Exception as error:  # of datasets, fsspec, the network: no common base
            raise self._unreadable(error) from error

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

    def state_dict(self) -> dict[str, Any]:
        """Position of the next document, with the commit that is read."""
        return self._rows.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a position; `{}` is the beginning."""
        self._rows.load_state_dict(state)

    def __iter__(self) -> Iterator[Document]:
        for row in self._rows:
            self._check_columns(row)
            yield self._columns.document(row)

    def _check_columns(self, row: Mapping[str, Any]) -> None:
        for key, column in zip(("text_column", "prompt_column"), self._columns.names, strict=False):
            if column not in row:
                raise DataError(
                    f"source {self.name!r}: {self._rows.reference} has no column {column!r}; "
                    f"the columns are {', '.join(row)}: set {key} to one of them"
                )

"""Data sets of the Python interface: rows with a length, and nothing that would be read to its end first."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import datasets
import torch

from collegium.base.errors import DataError


def rows_of(dataset: Any) -> Sequence[Mapping[str, Any]]:
    """The rows of a data set, which must have a length.

    Raises:
        DataError: it is endless, a set of splits or of columns, or its rows are no mappings.
    """
    if isinstance(dataset, datasets.Dataset):
        return cast(Sequence[Mapping[str, Any]], dataset)
    if isinstance(dataset, datasets.DatasetDict | datasets.IterableDatasetDict):
        raise DataError(
            f"it holds the splits {', '.join(map(str, dataset))}: give one of them, as in dataset['train']"
        )
    streams = (datasets.IterableDataset, torch.utils.data.IterableDataset)
    if isinstance(dataset, streams) or not hasattr(dataset, "__len__"):
        raise DataError(
            f"it is a stream ({type(dataset).__name__}), whose blocks can be neither counted nor shuffled: give "
            "rows that have a length, such as list(dataset.take(10000)), or write the text to files and use a "
            "recipe"
        )
    if isinstance(dataset, Mapping):
        raise DataError(
            f"it is a dict with the keys {', '.join(map(str, dataset))}: give rows, such as "
            "datasets.Dataset.from_dict(...)"
        )
    if isinstance(dataset, str):
        raise DataError("it is text: give rows, such as [{'text': ...}], or datasets.load_dataset(...)['train']")
    rows = [dataset[i] for i in range(len(dataset))]
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise DataError(
                f"row {number} is a {type(row).__name__}: rows are dicts with 'text' or 'input_ids', such as "
                "[{'text': text} for text in texts]"
            )
    return rows

"""Rows as a trainer is given them: a dataset, a list, rows that were read already, or a stream."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from thumbtune.data.formats import Rows, RowStream, stream_dataset
from thumbtune.errors import ConfigError, DataError

_IMAGE_COLUMNS = ("image", "images")


def open_rows(dataset: Any, source: str) -> Rows | RowStream:
    """Rows to tokenize, one at a time. Raises `DataError` where they hold images."""
    if isinstance(dataset, (Rows, RowStream)):
        return dataset
    return stream_dataset(refuse_images(dataset, source), source=source)


def is_stream(dataset: Any) -> bool:
    """Whether a dataset has no known length: an iterable dataset or a generator."""
    if isinstance(dataset, (Rows, RowStream)):
        return False
    return isinstance(dataset, torch.utils.data.IterableDataset) or not hasattr(dataset, "__len__")


def check_stream(config: Any) -> None:
    """Raise `ConfigError` where a run on a stream would have no end."""
    if config.max_steps <= 0:
        raise ConfigError(
            "train_dataset is a stream, whose length nobody knows: set max_steps, on which the learning rate's "
            "schedule depends too, or give a datasets.Dataset"
        )


def refuse_images(dataset: Iterable[Any], source: str) -> Iterable[Any]:
    """The dataset; raises `DataError` at the first row that holds images, at once where its columns tell."""
    for name in set(_IMAGE_COLUMNS) & set(getattr(dataset, "column_names", None) or ()):
        raise _refuse(f"{source} has a column {name!r}")
    return dataset if getattr(dataset, "column_names", None) else _Watched(dataset, source)


class _Watched(Iterable[Any]):
    """Plain rows, looked at on their way."""

    def __init__(self, rows: Iterable[Any], source: str) -> None:
        self._rows, self._source = rows, source

    def __iter__(self) -> Iterator[Any]:
        for number, row in enumerate(self._rows):
            if isinstance(row, Mapping):
                for name in _IMAGE_COLUMNS:
                    if row.get(name):
                        raise _refuse(f"{self._source} row {number} holds {name!r}")
            yield row


def _refuse(what: str) -> DataError:
    return DataError(
        f"{what}: thumbtune trains on text alone. Leave out the rows with images, drop the column if the answer does "
        "not need them, or train this dataset with TRL's trainer"
    )

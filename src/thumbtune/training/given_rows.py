"""Rows as a trainer is given them: a dataset, a list, rows that were read already, or a stream."""

from __future__ import annotations

from typing import Any

import torch

from thumbtune.data.formats import Rows, RowStream, stream_dataset
from thumbtune.errors import ConfigError


def open_rows(dataset: Any, source: str) -> Rows | RowStream:
    """Rows to tokenize, one at a time."""
    if isinstance(dataset, (Rows, RowStream)):
        return dataset
    return stream_dataset(dataset, source=source)


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
